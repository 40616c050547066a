"""ResNet-50 on ImageNet by RigL's recipe: dense, static, SET, RigL and GMP from 80 to 96.5 %, uniform and ERK.

Paper: Evci et al. 2020, Rigging the Lottery, arXiv:1911.11134. Net: v1.5, 25,557,032 parameters. Data: the user's own
folders train/<class>/*.JPEG and val/<class>/*.JPEG, streamed.

    sparsejax train --config configs/imagenet_resnet50.py --workdir runs/r50 --config.data_dir=DIR --config.sparsity=0.9
    sparsejax sweep --config configs/imagenet_resnet50.py --out runs/r50-sweep --workers 1 --config.data_dir=DIR

Expected (RigL's Table 4, top-1 accuracy in %; dense 76.8; 5x: `--config.epochs=510`):

              static  SET   RigL  RigL (ERK)  static (ERK)  GMP   RigL 5x  RigL 5x (ERK)
    80 %      70.6    72.9  74.6  75.1        72.1          75.6  76.6     77.1
    90 %      65.8    69.6  72.0  73.0        67.7          73.9  75.7     76.4
    95 %      59.5    64.4  67.5  69.7                      70.6  73.1     74.5
    96.5 %    55.4    60.8  65.0  67.2                            71.1     72.7

Other papers' rows at 80 / 90 / 95 %, with recipes of their own: SNIP 72.0/67.2/57.8 (`snip`),
SNFS ERK 75.2/72.9/70.0 (`snfs`), DSR 73.3/71.6 (`dsr`), all in that table; AC/DC 76.45/75.03/73.14 (`acdc`, its
repository); STR 76.12 (81.27 %)/74.31 (90.23 %)/70.23 (95.15 %) (`str`, its repository); RigL-ITOP 75.8/73.8 (`itop`);
SRigL 75.01/72.71/69.18 (`srigl`, its notebook), and from the same notebook MEST+EM 75.39/72.58 (`mest`) and Top-KAST
74.76/70.42 (`top_kast`).
Differs: 102 epochs of 312 steps for 32,000 steps of batch 4,096; that batch in 16 parts, so batch norm sees 256 images;
bfloat16. Uniform leaves the first convolution dense. GMP's steps (10 k to 25 k, every 1,000) are JaxPruner's.
Time on one H200, an estimate from FLOPs: 3,210 PFLOP a seed at 20 to 60 TFLOP/s, 15 to 45 hours.
"""

from ml_collections import ConfigDict, config_dict

from sparsejax.training import default_config, with_options

TRAIN_IMAGES = 1_281_167


def get_config(arg: str = "") -> ConfigDict:
    """The config; `arg` is "field=value,field=value", such as "method=set,epochs=5"."""
    config = default_config()
    config.dataset = "image_folder"
    config.data = ConfigDict({"image_size": 224, "workers": 16})
    config.model = "resnet50"
    config.dtype = "bfloat16"
    config.method = "rigl"
    config.sparsity = 0.9
    config.batch_size = 4096
    config.accumulate = 16
    config.epochs = 102
    config.seeds = 1
    config.optimizer = "sgd"
    config.learning_rate = 1.6
    config.momentum = 0.9
    config.weight_decay = 1e-4
    config.label_smoothing = 0.1
    config.schedule = "step"
    config.schedule_args = ConfigDict({"milestones": [0.2933, 0.6843, 0.8798], "factor": 0.1})  # 30, 70, 90 of 102.3
    epoch = TRAIN_IMAGES // config.get_ref("batch_size")
    config.warmup_steps = epoch * 5
    steps = epoch * config.get_ref("epochs")
    config.method_args = ConfigDict(
        {
            "update_every": 100,
            "update_start": steps * 10 // 32,  # of GMP; these two follow epochs and batch_size
            "update_end": steps * 25 // 32,
            "drop_fraction": 0.3,
            "signed": False,  # SET drops the smallest |w|, as RigL's code has it
            "distribution": "erk",
            "where": config_dict.placeholder(str),
        }
    )
    config.eval_every_epochs = 5
    config.checkpoint_every_epochs = 1
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """Dense once; the columns of the table but the longer ones: 25 trials."""
    sparsity = {"sparsity": [0.8, 0.9, 0.95, 0.965]}
    uniform = sparsity | {"method_args.distribution": ["uniform"], "method_args.where": ["except_('stem/*')"]}
    return (
        h.list([{"method": "dense"}])
        + h.product({"method": ["static", "set", "rigl"], **uniform})
        + h.product({"method": ["static", "rigl"], **sparsity})
        + h.product({"method": ["gmp"], **uniform, "method_args.update_every": [1000]})
    )

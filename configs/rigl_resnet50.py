"""ResNet-50 on CIFAR-100: dense, static, SET, RigL and GMP at 80 and 90 %, uniform and ERK, RigL twice as long too.

Paper: Sundar & Dwaraknath 2021, arXiv:2103.15767, which reproduces RigL (Evci et al. 2020, arXiv:1911.11134).
Net: the form for CIFAR, 23,705,252 parameters. Data: the user's own cifar-100-binary.

    sparsejax train --config configs/rigl_resnet50.py --workdir runs/r50 --config.data_dir=DIR --config.sparsity=0.9
    sparsejax sweep --config configs/rigl_resnet50.py --out runs/r50-sweep --workers 0 --config.data_dir=DIR

Expected (that report, test accuracy in %; the order of its columns was recovered from the text; dense 74.7 ± 0.38):

            static  SET   RigL   static, SET, RigL (ERK)   GMP    RigL 2x   RigL 2x (ERK)
    80 %    72.3    73.4  73.5   73.2    73.5  73.4        73.8   74.0      74.4
    90 %    69.7    71.4  71.8   71.5    72.3  72.6        73.1   73.1      73.6

SNFS: 72.3 and 73.0 (ERK) at 80 %, 73.9 and 73.9 at 90 %, as that table has it. Lottery tickets are another command.
Differs: the schedule of this net is not given there; chosen 160 epochs, all else as configs/rigl_wrn22.py.
Time on one H200, an estimate from FLOPs: 56 PFLOP a seed at 20 to 60 TFLOP/s, 16 to 47 minutes (2x: twice that).
"""

from ml_collections import ConfigDict, config_dict

from sparsejax.training import default_config, with_options

TRAIN_IMAGES = 45_000
EPOCHS = 160


def get_config(arg: str = "") -> ConfigDict:
    """The config; `arg` is "field=value,field=value", such as "method=set,epochs=5"."""
    config = default_config()
    config.dataset = "cifar100"
    config.data = ConfigDict({"limit": TRAIN_IMAGES})
    config.augment = "pad_crop_flip(4)"
    config.model = "resnet50"
    config.model_args = ConfigDict({"stem": "cifar"})
    config.method = "rigl"
    config.sparsity = 0.9
    config.batch_size = 128
    config.epochs = EPOCHS
    config.seeds = 3
    config.optimizer = "sgd"
    config.learning_rate = 0.1
    config.momentum = 0.9
    config.weight_decay = 5e-4
    config.schedule = "step"
    config.schedule_args = ConfigDict({"milestones": [0.3072, 0.6144, 0.9216], "factor": 0.2})
    steps = config.data.get_ref("limit") // config.get_ref("batch_size") * config.get_ref("epochs")
    config.method_args = ConfigDict(
        {
            "update_every": 100,
            "update_start": steps // 125,  # of GMP: as there, after 0.8 % of the run
            "update_end": steps * 3 // 4,  # both follow epochs, batch_size and limit
            "drop_fraction": 0.3,
            "skip_step": False,  # that code steps, then changes the mask
            "signed": False,
            "distribution": "erk",
            "where": config_dict.placeholder(str),
        }
    )
    config.eval_every_epochs = 10
    config.checkpoint_every_epochs = 20
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """Dense once; every sparse column at both sparsities: 23 trials."""
    sparsity = {"sparsity": [0.8, 0.9]}
    # uniform: the first convolution is dense, as in RigL's code
    uniform = sparsity | {"method_args.distribution": ["uniform"], "method_args.where": ["except_('stem/*')"]}
    erk = sparsity | {"method_args.distribution": ["erk"]}
    longer = {"epochs": [2 * EPOCHS]}
    return (
        h.list([{"method": "dense"}])
        + h.product({"method": ["static", "set", "rigl", "snfs"], **uniform})
        + h.product({"method": ["static", "set", "rigl", "snfs"], **erk})
        + h.product({"method": ["gmp"], **sparsity, "method_args.distribution": ["global"]})
        + h.product({"method": ["rigl"], **uniform, **longer})
        + h.product({"method": ["rigl"], **erk, **longer})
    )

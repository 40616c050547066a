"""ResNet-50 on ImageNet with N:M masks from scratch: SR-STE, STE, static, GMP, RigL at 2:4, 4:8, 1:4, 2:8 and 1:16.

Paper: Zhou et al. 2021, Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch (SR-STE),
arXiv:2102.04010. Net: v1.5, 25,557,032 parameters; `model=resnet18` is its other. Data: the user's own folders
train/<class>/*.JPEG and val/<class>/*.JPEG, streamed.

    sparsejax train --config configs/nm_resnet50.py --workdir runs/nm --config.data_dir=DIR
    sparsejax sweep --config configs/nm_resnet50.py --out runs/nm-sweep --workers 1 --config.data_dir=DIR

Expected of SR-STE (README of its repository, top-1 accuracy in %): 2:4 77.0 to 77.1; 4:8 77.4; 1:4 75.9; 2:8 76.4;
ResNet-18 2:4 71.2. 1:16 71.5, by the notebook of another paper (SRigL; secondary, check before citing; it has 1:4 as
76.2).

STE, and dense at this recipe, are not given there; `ste`, static, GMP and RigL have the same masks, chosen otherwise.
Differs: label smoothing and momentum are not given there; chosen none and 0.9; bfloat16. First convolution and head are
dense, as there; groups run along input channels.
Time on one H200, an estimate from FLOPs: 3,770 PFLOP a seed at 20 to 60 TFLOP/s, 17 to 52 hours.
"""

from ml_collections import ConfigDict, config_dict

from sparsejax.training import default_config, with_options

TRAIN_IMAGES = 1_281_167
PATTERNS = ((2, 4), (4, 8), (1, 4), (2, 8), (1, 16))


def get_config(arg: str = "") -> ConfigDict:
    """The config; `arg` is "field=value,field=value", such as "method=gmp,epochs=5"."""
    config = default_config()
    config.dataset = "image_folder"
    config.data = ConfigDict({"image_size": 224, "workers": 16})
    config.model = "resnet50"
    config.dtype = "bfloat16"
    config.method = "gmp"
    config.sparsity = 0.5  # what the pattern says
    config.batch_size = 256
    config.epochs = 120
    config.seeds = 1
    config.optimizer = "sgd"
    config.learning_rate = 0.1
    config.momentum = 0.9
    config.weight_decay = 5e-5
    config.schedule = "cosine"
    epoch = TRAIN_IMAGES // config.get_ref("batch_size")
    config.warmup_steps = epoch * 5
    config.method_args = ConfigDict(
        {
            "update_every": 100,
            "update_end": epoch * config.get_ref("epochs") * 3 // 4,  # follows epochs and batch_size
            "drop_fraction": 0.3,
            "pattern": "nm(2, 4)",
            "distribution": config_dict.placeholder(str),  # the pattern fixes it
            "where": "except_('stem/*', 'head/*')",
        }
    )
    config.eval_every_epochs = 5
    config.checkpoint_every_epochs = 1
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """Dense once, five methods with each pattern: 26 trials."""
    patterns = h.list({"method_args.pattern": f"nm({n}, {m})", "sparsity": 1 - n / m} for n, m in PATTERNS)
    methods = h.product({"method": ["sr_ste", "ste", "static", "gmp", "rigl"]})
    return h.list([{"method": "dense"}]) + [method | pattern for pattern in patterns for method in methods]

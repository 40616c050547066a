"""WRN-28-2 on CIFAR-10 from 50 to 90 %, 200 epochs: dense, static, SET, RigL, DSR, SNFS, as in the tables of SNFS.

Papers: Dettmers & Zettlemoyer 2019, Sparse Networks from Scratch (SNFS, sparse momentum), arXiv:1907.04840; Mostafa &
Wang 2019, DSR, arXiv:1902.05967, whose masks rest for the last 10 of 200 epochs. Net: 1,467,610 parameters. Data: the
user's own cifar-10-batches-bin.

    sparsejax train --config configs/snfs_wrn28.py --workdir runs/wrn28 --config.data_dir=DIR --config.sparsity=0.9
    sparsejax sweep --config configs/snfs_wrn28.py --out runs/snfs-wrn28 --workers 0 --config.data_dir=DIR

Expected (tables of SNFS's repository, test accuracy in %; dense 94.70):

                       90 %    80 %    70 %    60 %    50 %
    SET                93.28   94.25   94.40   94.55   94.76
    DSR                93.59   94.40   94.57   94.66   94.73
    sparse momentum    93.61   94.32   94.58   94.68   94.75
    DeepR              91.41   92.36   92.50   92.80   92.92

DeepR is no method here. RigL is not in that table.
Differs: the schedule is not given there; chosen 0.1, ÷ 5 at 30, 60 and 80 %, and batch 128. Weight decay 5e-4, dense
first convolution and head are DSR's. Masks move after every epoch, half of a layer at first.
Time on one H200, an estimate from FLOPs: 12.9 PFLOP a seed at 20 to 60 TFLOP/s, 4 to 11 minutes.
"""

from ml_collections import ConfigDict

from sparsejax.training import default_config, with_options

TRAIN_IMAGES = 50_000


def get_config(arg: str = "") -> ConfigDict:
    """The config; `arg` is "field=value,field=value", such as "method=set,epochs=5"."""
    config = default_config()
    config.dataset = "cifar10"
    config.data = ConfigDict({"limit": TRAIN_IMAGES})
    config.augment = "pad_crop_flip(4)"
    config.model = "wrn"
    config.model_args = ConfigDict({"depth": 28, "width": 2})
    config.method = "rigl"
    config.sparsity = 0.9
    config.batch_size = 128
    config.epochs = 200
    config.seeds = 3
    config.optimizer = "sgd"
    config.learning_rate = 0.1
    config.momentum = 0.9
    config.weight_decay = 5e-4
    config.schedule = "step"
    config.schedule_args = ConfigDict({"milestones": [0.3, 0.6, 0.8], "factor": 0.2})
    epoch = config.data.get_ref("limit") // config.get_ref("batch_size")
    config.method_args = ConfigDict(
        {
            "update_every": epoch,
            "update_end": epoch * config.get_ref("epochs") * 19 // 20,
            "drop_fraction": 0.5,
            "skip_step": False,
            "signed": False,
            "distribution": "erk",
            "where": "except_('stem/*', 'head/*')",
        }
    )
    config.eval_every_epochs = 10
    config.checkpoint_every_epochs = 20
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """Dense once, five methods at five sparsities: 26 trials."""
    return h.list([{"method": "dense"}]) + h.product(
        {"method": ["static", "set", "rigl", "dsr", "snfs"], "sparsity": [0.5, 0.6, 0.7, 0.8, 0.9]}
    )

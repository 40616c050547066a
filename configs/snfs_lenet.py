"""LeNet-300-100 on MNIST from 90 to 99 %: dense, static, SET, RigL, DSR, SNFS, as in the tables of SNFS.

Paper: Dettmers & Zettlemoyer 2019, Sparse Networks from Scratch (SNFS, sparse momentum), arXiv:1907.04840.
Net: 266,610 parameters. Data: the user's own IDX files.

    sparsejax train --config configs/snfs_lenet.py --workdir runs/lenet --config.data_dir=DIR --config.method=set
    sparsejax sweep --config configs/snfs_lenet.py --out runs/snfs-lenet --workers 0 --config.data_dir=DIR

Expected (tables of its repository, test accuracy in %, standard errors 0.01 to 0.14; dense 98.69):

            SET     DSR     sparse momentum   DeepR
    99 %    95.80   97.54   97.53             94.0
    98 %    97.74   98.14   98.20             98.21
    97 %    98.06   98.20   98.30             98.22
    96 %    98.10   98.23   98.42             98.30
    95 %    98.14   98.32   98.53             98.06
    90 %    98.39   98.44   98.67             98.19

DeepR is no method here. RigL is not in that table; its own paper
has an error of 1.44 % at layer sparsities of 99/89 %.
Differs: of the training only the interval (an epoch) and the drop fraction 0.5 with a cosine are given there; chosen
the rest, and ERK densities.
Time on one H200, an estimate: 0.01 PFLOP a seed, so bound by launches; a few minutes a trial.
"""

from ml_collections import ConfigDict

from sparsejax.training import default_config, with_options

TRAIN_IMAGES = 60_000


def get_config(arg: str = "") -> ConfigDict:
    """The config; `arg` is "field=value,field=value", such as "method=set,epochs=5"."""
    config = default_config()
    config.dataset = "mnist"
    config.data = ConfigDict({"limit": TRAIN_IMAGES})
    config.model = "lenet_300_100"
    config.method = "rigl"
    config.sparsity = 0.95
    config.batch_size = 100
    config.epochs = 100
    config.seeds = 5
    config.optimizer = "sgd"
    config.learning_rate = 0.1
    config.momentum = 0.9
    config.weight_decay = 5e-4
    config.schedule = "step"
    config.schedule_args = ConfigDict({"milestones": [0.5, 0.75], "factor": 0.1})
    epoch = config.data.get_ref("limit") // config.get_ref("batch_size")
    config.method_args = ConfigDict(
        {
            "update_every": epoch,
            "update_end": epoch * config.get_ref("epochs"),
            "drop_fraction": 0.5,
            "skip_step": False,
            "signed": False,
            "distribution": "erk",
        }
    )
    config.eval_every_epochs = 5
    config.checkpoint_every_epochs = 20
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """Dense once, five methods at six sparsities: 31 trials."""
    return h.list([{"method": "dense"}]) + h.product(
        {"method": ["static", "set", "rigl", "dsr", "snfs"], "sparsity": [0.9, 0.95, 0.96, 0.97, 0.98, 0.99]}
    )

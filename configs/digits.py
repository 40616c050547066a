"""Five methods on scikit-learn's handwritten digits: the quick comparison.

What: an MLP 64-300-100-10, AdamW, 60 epochs on 1,437 images, tested on 360; dense, static-ERK, SET, RigL and GMP at
95 and 98 % sparsity (ERK densities for all of them), three seeds each.

    sparsejax sweep --config configs/digits.py --out runs/digits --workers 0
    sparsejax train --config configs/digits.py:method=set,sparsity=0.98 --workdir runs/set

Measured (2026-11-20, two CPU cores), test accuracy in %, mean of the three seeds:

               dense   static   SET    RigL   GMP
    dense      96.9
    95 %               96.1     96.0   96.8   96.5
    98 %               65.8     94.5   96.1   96.4

One image of the test set is 0.28 %. Learning rate, epochs, batch, update_every were picked among eight settings
by these same 360 images (there is no validation set), so this is a demonstration, no estimate; static at 98 % spreads
from 53 to 78. Time: all nine trials 35 to 55 s in one process, compilation included.
"""

from ml_collections import ConfigDict, config_dict

from sparsejax.training import default_config, with_options

TRAIN_IMAGES = 1437


def get_config(arg: str = "") -> ConfigDict:
    """The config; `arg` is "field=value,field=value", such as "method=set,epochs=5"."""
    config = default_config()
    config.dataset = "digits"
    config.model = "mlp"
    config.model_args = ConfigDict({"features": (300, 100)})
    config.method = "rigl"
    config.sparsity = 0.95
    config.batch_size = 32
    config.epochs = 60
    steps = TRAIN_IMAGES // config.get_ref("batch_size") * config.get_ref("epochs")
    config.method_args = ConfigDict(
        {
            "update_every": 25,
            "update_end": steps * 3 // 4,  # follows epochs and batch_size
            "drop_fraction": 0.3,
            "distribution": "erk",  # or "er", "uniform", of gmp also "global"
            "pattern": config_dict.placeholder(str),  # "nm(2, 4)", "fan_in", "block(4, 4)", "channel"; None: single
        }
    )
    config.optimizer = "adamw"
    config.learning_rate = 1e-2
    config.weight_decay = 1e-4
    config.schedule = "cosine"
    config.seeds = 3
    config.eval_every_epochs = 10
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """The trials of the sweep: dense once, each sparse method at two sparsities."""
    return h.list([{"method": "dense"}]) + h.product(
        {"method": ["static", "set", "rigl", "gmp"], "sparsity": [0.95, 0.98]}
    )

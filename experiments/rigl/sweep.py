"""RigL on MNIST: LeNet-300-100, five seeds a trial, 20 epochs; dense, static, SET, RigL, GMP at 90, 95, 98, 99.5 %.

Paper: Evci et al. 2020, Rigging the Lottery, arXiv:1911.11134; the claim is in README.md beside this file.

    sparsejax sweep --config experiments/rigl/sweep.py --out runs/rigl --workers 2

Expected: at 98 and 99.5 %, RigL > SET > static beyond their intervals. README.md has the measured table and its time.
"""

from pathlib import Path

from ml_collections import ConfigDict

from sparsejax.training import default_config, with_options

TRAIN_IMAGES = 60_000
BESIDE_CHECKOUT = Path(__file__).resolve().parents[3] / "shared" / "data" / "mnist"


def get_config(arg: str = "") -> ConfigDict:
    """The config of one trial; `arg` is "field=value,field=value", such as "epochs=5"."""
    config = default_config()
    config.dataset = "mnist"
    config.data_dir = str(BESIDE_CHECKOUT) if BESIDE_CHECKOUT.is_dir() else ""
    config.model = "mlp"
    config.model_args = ConfigDict({"features": (300, 100)})
    config.method = "rigl"
    config.sparsity = 0.98
    config.batch_size = 128
    config.epochs = 20
    config.seeds = 5
    config.optimizer = "adamw"
    config.learning_rate = 5e-3
    config.weight_decay = 1e-4
    config.schedule = "cosine"
    steps = TRAIN_IMAGES // config.get_ref("batch_size") * config.get_ref("epochs")
    config.method_args = ConfigDict(
        {
            "update_every": 100,
            "update_end": steps * 3 // 4,  # the paper: 75 % of training
            "drop_fraction": 0.3,
            "distribution": "erk",  # of a matrix ERK is ER; the same for every method
        }
    )
    config.eval_every_epochs = 5
    config.checkpoint_every_epochs = 5
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """Dense once, each sparse method at each sparsity: 17 trials."""
    sparsities = [0.9, 0.95, 0.98, 0.995]
    return h.list([{"method": "dense"}]) + h.product(
        {"method": ["static", "set", "rigl", "gmp"], "sparsity": sparsities}
    )

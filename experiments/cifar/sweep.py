"""ResNet-20 on CIFAR-10: dense, static, SET, RigL and GMP, scaled down to what two cores train in half an hour.

Paper: Evci et al. 2020, Rigging the Lottery, arXiv:1911.11134 (its net on CIFAR-10 is WRN-22-2). At 90 %, three epochs
of 10,000 images, three seeds a trial; h200.py beside this file trains the same config for 60 epochs of all images.

    sparsejax sweep --config experiments/cifar/sweep.py --out runs/cifar --workers 1 --config.data_dir=DIR

DIR holds cifar-10-batches-bin. Measured: README.md has the claim and the table.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from sparsejax.training import with_options

WHOLE = Path(__file__).resolve().parents[2] / "configs" / "cifar_resnet.py"


def get_config(arg: str = "") -> ConfigDict:
    """The config of configs/cifar_resnet.py, shorter; `arg` is "field=value,field=value", such as "method=set"."""
    config = runpy.run_path(str(WHOLE))["get_config"]()
    config.data.limit = 10_000
    config.epochs = 3
    config.warmup_steps = 20
    config.method_args.update_every = 10
    config.checkpoint_every_epochs = 1
    config.eval_every_epochs = 3  # the test set takes as long as half an epoch
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """Dense once, each sparse method at 90 %: five trials."""
    return h.list([{"method": "dense"}]) + h.product({"method": ["static", "set", "rigl", "gmp"], "sparsity": [0.9]})

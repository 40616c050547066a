"""Pruning at initialisation on MNIST: LeNet-300-100, five seeds a trial, 10 epochs; 95 to 99.9 %.

Papers: Tanaka et al. 2020, Pruning neural networks without any data by iteratively conserving synaptic flow,
arXiv:2006.05467; Lee et al. 2019, SNIP, arXiv:1810.02340; Wang et al. 2020, GraSP, arXiv:2002.07376.

    sparsejax sweep --config experiments/synflow/sweep.py --out runs/synflow --workers 2

Expected: magnitude at initialisation falls to chance where a layer is left without weights, at 99.5 % or beyond;
SynFlow holds. README.md beside this file has the measured table and its time.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from sparsejax.training import with_options

LENET = Path(__file__).resolve().parents[2] / "configs" / "mnist_lenet.py"


def get_config(arg: str = "") -> ConfigDict:
    """The config of configs/mnist_lenet.py; every score ranks all layers together."""
    config = runpy.run_path(str(LENET))["get_config"]()
    config.method = "synflow"
    config.method_args.distribution = "global"
    config.epochs = 10
    config.eval_every_epochs = 5
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """Dense once; random masks (ER, and each layer alike) and the four scores, at four sparsities: 25 trials."""
    sparsities = [0.95, 0.99, 0.995, 0.999]
    random = {"method": ["static"], "method_args.distribution": ["erk", "uniform"]}
    return (
        h.list([{"method": "dense"}])
        + h.product(random | {"sparsity": sparsities})
        + h.product({"method": ["magnitude_at_init", "snip", "grasp", "synflow"], "sparsity": sparsities})
    )

"""SRigL on MNIST: LeNet-300-100, five seeds a trial, 20 epochs; constant fan-in with and without ablated neurons.

Paper: Lasby et al. 2024, Dynamic Sparse Training with Structured Sparsity, arXiv:2305.02299; the claim is in README.md
beside this file, with the measured table and its time.

    sparsejax sweep --config experiments/srigl/sweep.py --out runs/srigl --workers 2

Expected: at 99 % SRigL without ablation falls below RigL, with ablation it equals it.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from sparsejax.training import with_options

LENET = Path(__file__).resolve().parents[2] / "configs" / "mnist_lenet.py"


def get_config(arg: str = "") -> ConfigDict:
    """The config of configs/mnist_lenet.py."""
    config = runpy.run_path(str(LENET))["get_config"]()
    config.eval_every_epochs = 5
    config.method_args.ablate = True
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """Dense once; RigL, and SRigL with and without ablation, at four sparsities: 13 trials."""
    sparsities = [0.9, 0.95, 0.99, 0.995]
    return (
        h.list([{"method": "dense"}])
        + h.product({"method": ["rigl"], "sparsity": sparsities})
        + h.product({"method": ["srigl"], "method_args.ablate": [True, False], "sparsity": sparsities})
    )

"""GMP, GraNet and RigL on MNIST: LeNet-300-100, five seeds a trial, 20 epochs, 80 to 98 %.

Papers: Liu et al. 2021, Sparse Training via Boosting Pruning Plasticity, arXiv:2106.10404 (GraNet); Zhu & Gupta 2017,
arXiv:1710.01878 (GMP). The claims are in README.md beside this file, with the measured table and its time.

    sparsejax sweep --config experiments/granet/sweep.py --out runs/granet --workers 2

Expected: GMP near dense at 80 and 90 % and above static by 2 points; GraNet and GMP above RigL at 95 %.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from sparsejax.training import with_options

LENET = Path(__file__).resolve().parents[2] / "configs" / "mnist_lenet.py"


def get_config(arg: str = "") -> ConfigDict:
    """The config of configs/mnist_lenet.py: masks change up to 75 % of training; GraNet's weights move to its end."""
    lenet = runpy.run_path(str(LENET))
    config = lenet["get_config"]()
    config.method_args.rewire_end = lenet["TRAIN_IMAGES"] // config.get_ref("batch_size") * config.get_ref("epochs")
    config.method_args.initial_sparsity = 0.0
    config.eval_every_epochs = 5
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """Dense once; static and GMP at four sparsities, RigL and GraNet, from dense and from 50 %, at two: 15 trials."""
    one_threshold = {"method_args.distribution": ["global"]}
    granet = {"method_args.drop_fraction": [0.5], "method_args.initial_sparsity": [0.0, 0.5]} | one_threshold
    return (
        h.list([{"method": "dense"}])
        + h.product({"method": ["static"], "sparsity": [0.8, 0.9, 0.95, 0.98]})
        + h.product({"method": ["gmp"], "sparsity": [0.8, 0.9, 0.95, 0.98]} | one_threshold)
        + h.product({"method": ["rigl"], "sparsity": [0.95, 0.98]})
        + h.product({"method": ["granet"], "sparsity": [0.95, 0.98]} | granet)
    )

"""N:M while training, on MNIST: an MLP 784-320-160-10, five seeds a trial, 20 epochs; 1:4, 1:8 and 1:16.

Papers: Zhou et al. 2021, Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch, arXiv:2102.04010
(STE, SR-STE); Bambhaniya et al. 2024, Progressive Gradient Flow, arXiv:2402.04744 (MdGf, SdGf).

    sparsejax sweep --config experiments/sr_ste/sweep.py --out runs/sr_ste --workers 2

Expected: SR-STE above STE at 1:8 and 1:16, with a lower SAD; MdGf-exponential at or above SR-STE there. README.md
beside this file has the measured table and its time.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from sparsejax.training import with_options

LENET = Path(__file__).resolve().parents[2] / "configs" / "mnist_lenet.py"


def get_config(arg: str = "") -> ConfigDict:
    """The config of configs/mnist_lenet.py with widths that 16 divides, SGD as in the papers, and a dense head."""
    lenet = runpy.run_path(str(LENET))
    config = lenet["get_config"]()
    config.model_args.features = (320, 160)
    config.method = "sr_ste"
    config.optimizer = "sgd"
    config.learning_rate = 0.05
    config.momentum = 0.9
    steps = lenet["TRAIN_IMAGES"] // config.get_ref("batch_size") * config.get_ref("epochs")
    config.method_args = ConfigDict(
        {
            "pattern": "nm(1, 8)",
            "where": "except_('Dense_2/*')",
            "update_start": steps // 10,  # of MdGf and SdGf: dense until here, N:M and nothing else from the next on
            "update_end": steps * 3 // 4,
            "decay": 1e-3,  # of MdGf: 0.2 % of a masked weight are left at the end
        }
    )
    config.sparsity = 0.875
    config.eval_every_epochs = 5
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """Dense once; four methods at three patterns: 13 trials."""
    patterns = h.zip({"method_args.pattern": ["nm(1, 4)", "nm(1, 8)", "nm(1, 16)"], "sparsity": [0.75, 0.875, 0.9375]})
    methods = h.list(
        [
            {"method": "ste"},
            {"method": "sr_ste"},
            {"method": "mdgf", "method_args.schedule": "exponential"},
            {"method": "sdgf", "method_args.schedule": "stepwise"},
        ]
    )
    return h.list([{"method": "dense"}]) + [method | pattern for method in methods for pattern in patterns]

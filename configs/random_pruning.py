"""Random pruning of ResNet-20 to -110 of widths 8, 16 and 24 on CIFAR-10: static ERK masks, never changed.

Paper: Liu et al. 2022, The Unreasonable Effectiveness of Random Pruning, arXiv:2202.02643. Net: ResNet-20 of width 16
with projected shortcuts, 272,474 parameters. Data: the user's own cifar-10-batches-bin.

    sparsejax train --config configs/random_pruning.py --workdir runs/random --config.data_dir=DIR
    sparsejax sweep --config configs/random_pruning.py --out runs/random-sweep --workers 0 --config.data_dir=DIR

Expected: no numbers; the paper has them in figures alone. The gap between dense and static shrinks as nets grow wider
and deeper, monotonically up to noise.

Masks at SNIP's layer densities are `snip` with `shuffle`. Its WRN-50 on ImageNet has no config.
Differs: shortcuts and seeds are not given there; chosen projections and 3.
Time on one H200, an estimate from FLOPs at 20 to 60 TFLOP/s: from 0.5 PFLOP (ResNet-20 of width 8; bound by launches, a
few minutes) to 27 PFLOP (ResNet-110 of width 24, 8 to 23 minutes) a seed.
"""

from ml_collections import ConfigDict

from sparsejax.training import default_config, with_options


def get_config(arg: str = "") -> ConfigDict:
    """The config; `arg` is "field=value,field=value", such as "model_args.depth=56,epochs=5"."""
    config = default_config()
    config.dataset = "cifar10"
    config.augment = "pad_crop_flip(4)"
    config.model = "resnet_cifar"
    config.model_args = ConfigDict({"depth": 20, "width": 16})
    config.method = "static"
    config.sparsity = 0.9
    config.batch_size = 128
    config.epochs = 160
    config.seeds = 3
    config.optimizer = "sgd"
    config.learning_rate = 0.1
    config.momentum = 0.9
    config.weight_decay = 5e-4
    config.schedule = "step"
    config.schedule_args = ConfigDict({"milestones": [0.5, 0.75], "factor": 0.1})
    config.method_args = ConfigDict({"distribution": "erk"})
    config.eval_every_epochs = 10
    config.checkpoint_every_epochs = 20
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """Each depth at width 16 and each width at depth 20: dense, static and SNIP-ratio at two sparsities; 35 trials."""
    nets = [(depth, 16) for depth in (20, 32, 44, 56, 110)] + [(20, 8), (20, 24)]
    snip_ratio = {"method_args.distribution": ["global"], "method_args.shuffle": [True]}
    trials = (
        h.list([{"method": "dense"}])
        + h.product({"method": ["static"], "sparsity": [0.8, 0.9]})
        + h.product({"method": ["snip"], "sparsity": [0.8, 0.9]} | snip_ratio)
    )
    sizes = [{"model_args.depth": depth, "model_args.width": width} for depth, width in nets]
    return [size | trial for size in sizes for trial in trials]

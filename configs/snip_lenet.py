"""Pruning at initialization on MNIST, LeNet-300-100 and LeNet-5: random, magnitude, SNIP.

Paper: Lee et al. 2019, SNIP: Single-shot Network Pruning based on Connection Sensitivity, arXiv:1810.02340.
Nets: LeNet-300-100, 266,610 parameters; LeNet-5 in Caffe's form, 431,080 parameters. Data: the user's own IDX files.

    sparsejax train --config configs/snip_lenet.py --workdir runs/snip --config.data_dir=DIR --config.sparsity=0.98
    sparsejax sweep --config configs/snip_lenet.py --out runs/snip-sweep --workers 0 --config.data_dir=DIR

Expected of SNIP (its table, by way of repository and paper text; test error in %, dense first): LeNet-300-100 1.7, then
1.6 at 95 % and 2.4 at 98 %; LeNet-5 0.9, then 0.8 at 98 % and 1.1 at 99 %. Its larger nets (VGG, WRN on CIFAR-10) have
no config: VGG-C 95 % 6.82 to 7.27, VGG-D 95 % 6.76 to 7.09, WRN-16-8 95 % 6.21 to 6.63.

Of the two controls no number is given there.
Differs: batch 100 is that of SNIP's scores on MNIST; length and momentum are not given there; chosen 75,000 steps,
x 0.1 every 25,000 of them as there, and 0.9.
Time on one H200, an estimate: 0.1 PFLOP a seed and less, so bound by launches; a few minutes a trial.
"""

from ml_collections import ConfigDict

from sparsejax.training import default_config, with_options


def get_config(arg: str = "") -> ConfigDict:
    """The config; `arg` is "field=value,field=value", such as "method=static,epochs=5"."""
    config = default_config()
    config.dataset = "mnist"
    config.model = "lenet_300_100"
    config.method = "snip"
    config.sparsity = 0.98
    config.batch_size = 100
    config.epochs = 125  # of 600 steps
    config.seeds = 5
    config.optimizer = "sgd"
    config.learning_rate = 0.1
    config.momentum = 0.9
    config.weight_decay = 5e-4
    config.schedule = "step"
    config.schedule_args = ConfigDict({"milestones": [1 / 3, 2 / 3], "factor": 0.1})
    config.method_args = ConfigDict({"distribution": "global"})
    config.eval_every_epochs = 5
    config.checkpoint_every_epochs = 25
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """Both nets: dense once, random, magnitude and SNIP at two sparsities: 14 trials."""
    lenet5 = {"model": "lenet5", "model_args.channels": (20, 50), "model_args.features": (500,)}

    def trials(sparsities):
        return (
            h.list([{"method": "dense"}])
            + h.product({"method": ["static"], "sparsity": sparsities, "method_args.distribution": ["uniform"]})
            + h.product({"method": ["magnitude_at_init", "snip"], "sparsity": sparsities})
        )

    return trials([0.95, 0.98]) + [lenet5 | trial for trial in trials([0.98, 0.99])]

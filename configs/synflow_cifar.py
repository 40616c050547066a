"""Pruning at initialization, VGG-16 and ResNet-18 on CIFAR-10: random and magnitude at 90, 99 and 99.9 %.

Paper: Tanaka et al. 2020, Pruning neural networks without any data by iteratively conserving synaptic flow (SynFlow),
arXiv:2006.05467. Nets: VGG-16, 14,724,042 parameters; ResNet-18 for CIFAR, 11,173,962 parameters. Data: the user's own
cifar-10-batches-bin (CIFAR-100: `--config.dataset=cifar100`, in the same DIR).

    sparsejax train --config configs/synflow_cifar.py --workdir runs/pai --config.data_dir=DIR --config.sparsity=0.99
    sparsejax sweep --config configs/synflow_cifar.py --out runs/pai-sweep --workers 0 --config.data_dir=DIR

Expected (arrays of its repository, test accuracy in %, 3 seeds; 10, of CIFAR-100 1, is chance):

                                     random   magnitude   SNIP    GraSP   SynFlow
    ResNet-18 (≈95.0)      90 %      92.92    94.40       94.29   93.78   94.07
                           99 %      82.98    10          90.80   89.71   90.36
                           99.9 %    13.5     10          78.65   71.44   79.85
    VGG-16 (93.5)          90 %      91.15    93.12       92.26   91.84   93.26
                           99 %      79.14    89.80       89.15   87.49   90.08
                           99.9 %    10       10          76.25   70.93   80.39
    ResNet-18, C-100       90 %      72.59    75.02       74.47   73.20   73.84
    (78.3)                 99 %      54.45    1           55.08   54.06   60.90
                           99.9 %    4.7      1           15.8    9.3     33.7
    VGG-16, C-100 (73)     90 %      68.83    72.23       70.83   70.66   72.08
                           99 %      52.33    60.94       61.28   61.14   63.51

In brackets: dense. VGG-11 (`model=vgg11`) at 99 %: 73.72, 85.25, 84.93, 84.28, 86.83.

A layer that magnitude empties is what those 10 are.
Differs: learning rate, batch, weight decay and their schedule are not given there; chosen.
Time on one H200, an estimate from FLOPs at 20 to 60 TFLOP/s: VGG-16, 15.0 PFLOP a seed, 4 to 13 minutes; ResNet-18,
26.7 PFLOP a seed, 7 to 22 minutes.
"""

from ml_collections import ConfigDict

from sparsejax.training import default_config, with_options


def get_config(arg: str = "") -> ConfigDict:
    """The config; `arg` is "field=value,field=value", such as "model=vgg11,epochs=5"."""
    config = default_config()
    config.dataset = "cifar10"
    config.augment = "pad_crop_flip(4)"
    config.model = "vgg16"
    config.method = "synflow"
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
    config.method_args = ConfigDict({"distribution": "global"})
    config.eval_every_epochs = 10
    config.checkpoint_every_epochs = 20
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """Both nets: dense once, random and four scores at compression 10, 100 and 1,000: 32 trials."""
    nets = [{"model": "vgg16"}, {"model": "resnet18", "model_args.stem": "cifar"}]
    sparsity = {"sparsity": [0.9, 0.99, 0.999]}
    trials = (
        h.list([{"method": "dense"}])
        + h.product({"method": ["static"], **sparsity, "method_args.distribution": ["uniform"]})
        + h.product({"method": ["magnitude_at_init", "snip", "grasp", "synflow"], **sparsity})
    )
    return [net | trial for net in nets for trial in trials]

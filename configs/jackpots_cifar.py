"""Lottery jackpots, VGG-19 and ResNet-32 on CIFAR-10: the dense nets, and jackpots of their weights.

Paper: Zhang et al. 2021, Lottery Jackpots Exist in Pre-trained Models, arXiv:2104.08700. Nets: VGG-19, 20,035,018
parameters; ResNet-32, 466,906 parameters. Data: the user's own cifar-10-batches-bin.

    sparsejax train --config configs/jackpots_cifar.py:method=dense --workdir runs/vgg19 --config.data_dir=DIR
    sparsejax train --config configs/jackpots_cifar.py --workdir runs/jackpots --config.data_dir=DIR \
        --config.method=jackpots --config.init_from=runs/vgg19
    sparsejax sweep --config configs/jackpots_cifar.py --out runs/jackpots-sweep --workers 0 --config.data_dir=DIR

Expected of jackpots (README of its repository, test accuracy in % after 30 / 160 epochs of search):

                 VGG-19, C-10   VGG-19, C-100   ResNet-32, C-10   ResNet-32, C-100
    90 %         93.88/93.94    72.59/74.61     93.70/94.39       72.22/73.43
    95 %         93.49/93.74    71.76/73.35     92.90/93.41       69.38/70.31

The second command searches the mask of the first one's weights, by SGD 0.1, weight decay 5e-4; there in batches of 256.
The sweep has what it is judged by: the dense nets; magnitude pruning of them without training afterwards (`one_shot` at
the last step), where a jackpot starts from; and GMP.
Differs: how the dense nets are trained, and the width of ResNet-32, are not given there; chosen.
Time on one H200, an estimate from FLOPs at 20 to 60 TFLOP/s, 160 epochs: VGG-19, 19.1 PFLOP a seed, 5 to 16 minutes;
ResNet-32, 3.3 PFLOP a seed, a few minutes.
"""

from ml_collections import ConfigDict

from sparsejax.training import default_config, with_options

TRAIN_IMAGES = 50_000


def get_config(arg: str = "") -> ConfigDict:
    """The config; `arg` is "field=value,field=value", such as "method=dense,dataset=cifar100"."""
    config = default_config()
    config.dataset = "cifar10"
    config.data = ConfigDict({"limit": TRAIN_IMAGES})
    config.augment = "pad_crop_flip(4)"
    config.model = "vgg19"
    config.method = "one_shot"
    config.sparsity = 0.9
    config.batch_size = 256
    config.epochs = 160
    config.seeds = 3
    config.optimizer = "sgd"
    config.learning_rate = 0.1
    config.momentum = 0.9
    config.weight_decay = 5e-4
    config.schedule = "cosine"
    steps = config.data.get_ref("limit") // config.get_ref("batch_size") * config.get_ref("epochs")
    config.method_args = ConfigDict(
        {
            "total_steps": steps,  # of the search
            "at_step": steps - 1,  # the last; it follows epochs, batch_size and limit
            "update_every": 100,
            "update_end": steps * 3 // 4,
            "distribution": "uniform",
        }
    )
    config.eval_every_epochs = 10
    config.checkpoint_every_epochs = 20
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """Both nets: dense once, one-shot and GMP at two sparsities: 10 trials."""
    trials = h.list([{"method": "dense"}]) + h.product({"method": ["one_shot", "gmp"], "sparsity": [0.9, 0.95]})
    return [{"model": model} | trial for model in ("vgg19", "resnet32") for trial in trials]

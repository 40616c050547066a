"""ResNet-20 on CIFAR-10: dense, static, SET, RigL and GMP with ERK densities at 80, 90 and 95 %; WRN-22-2 at 90 %.

Paper: Evci et al. 2020, Rigging the Lottery, arXiv:1911.11134 (its nets on CIFAR-10 are wide ResNets;
`--config FILE:model=wrn22_2` takes one). Data: the user's own cifar-10-batches-bin (`data_dir`).

    sparsejax train --config configs/cifar_resnet.py --workdir runs/r20 --config.data_dir=DIR --config.sparsity=0.9
    sparsejax sweep --config configs/cifar_resnet.py --out runs/r20-sweep --workers 0

Not measured at this length; experiments/cifar has it scaled down to two CPU cores. Expected by published tables at 160
epochs and more: dense 92 to 92.5 %; at 90 %, GMP and RigL one to two points below, then SET, then static. Time: an
estimate for one H200 is a minute a trial of ResNet-20, three of WRN-22-2.
"""

from ml_collections import ConfigDict

from sparsejax.training import default_config, with_options

TRAIN_IMAGES = 50_000


def get_config(arg: str = "") -> ConfigDict:
    """The config; `arg` is "field=value,field=value", such as "method=set,epochs=5"."""
    config = default_config()
    config.dataset = "cifar10"
    config.data = ConfigDict({"limit": TRAIN_IMAGES})
    config.augment = "pad_crop_flip(4)"
    config.model = "resnet20"
    config.method = "rigl"
    config.sparsity = 0.9
    config.batch_size = 128
    config.epochs = 60
    config.seeds = 3
    config.optimizer = "sgd"
    config.learning_rate = 0.1
    config.momentum = 0.9
    config.nesterov = True
    config.weight_decay = 5e-4
    config.schedule = "cosine"
    config.warmup_steps = 100
    steps = config.data.get_ref("limit") // config.get_ref("batch_size") * config.get_ref("epochs")
    config.method_args = ConfigDict(
        {
            "update_every": 100,
            "update_end": steps * 3 // 4,  # follows epochs, batch_size and limit
            "drop_fraction": 0.3,
            "distribution": "erk",
        }
    )
    config.checkpoint_every_epochs = 10
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """Dense once, each sparse method at each sparsity; then WRN-22-2 at 90 %: 18 trials."""
    methods = ["static", "set", "rigl", "gmp"]
    return (
        h.list([{"method": "dense"}])
        + h.product({"method": methods, "sparsity": [0.8, 0.9, 0.95]})
        + h.list([{"model": "wrn22_2", "method": "dense"}])
        + h.product({"model": ["wrn22_2"], "method": methods, "sparsity": [0.9]})
    )

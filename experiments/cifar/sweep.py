"""ResNet-20 on CIFAR-10: dense, static, SET, RigL and GMP, scaled down to what two cores train in half an hour.

Paper: Evci et al. 2020, Rigging the Lottery, arXiv:1911.11134 (its net on CIFAR-10 is WRN-22-2). At 90 %, three epochs
of 10,000 images, three seeds a trial; h200.py beside this file trains the same config for 60 epochs of all images.

    sparsejax sweep --config experiments/cifar/sweep.py --out runs/cifar --workers 1 --config.data_dir=DIR

DIR holds cifar-10-batches-bin. Measured: README.md has the claim and the table.
"""

from ml_collections import ConfigDict

from sparsejax.training import default_config, with_options


def get_config(arg: str = "") -> ConfigDict:
    """The config of one trial; `arg` is "field=value,field=value", such as "method=set,epochs=5"."""
    config = default_config()
    config.dataset = "cifar10"
    config.data = ConfigDict({"limit": 10_000})
    config.augment = "pad_crop_flip(4)"
    config.model = "resnet20"
    config.method = "rigl"
    config.sparsity = 0.9
    config.batch_size = 128
    config.epochs = 3
    config.seeds = 3
    config.optimizer = "sgd"
    config.learning_rate = 0.1
    config.momentum = 0.9
    config.nesterov = True
    config.weight_decay = 5e-4
    config.schedule = "cosine"
    config.warmup_steps = 20
    steps = config.data.get_ref("limit") // config.get_ref("batch_size") * config.get_ref("epochs")
    config.method_args = ConfigDict(
        {
            "update_every": 10,
            "update_end": steps * 3 // 4,  # the paper: 75 % of training
            "drop_fraction": 0.3,
            "distribution": "erk",
        }
    )
    config.eval_every_epochs = 3  # the test set takes as long as half an epoch
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """Dense once, each sparse method at 90 %: five trials."""
    return h.list([{"method": "dense"}]) + h.product({"method": ["static", "set", "rigl", "gmp"], "sparsity": [0.9]})

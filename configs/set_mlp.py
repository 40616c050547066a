"""The MLP 4000-1000-4000 on CIFAR-10 with ER(20) densities, 98.3 % sparse: dense, static, SET and RigL.

Paper: Mocanu et al. 2018, Scalable training of artificial neural networks with adaptive sparse connectivity (SET),
arXiv:1707.04780. Net: SReLU, dropout 0.3, 20,373,010 parameters. Data: the user's own cifar-10-batches-bin.

    sparsejax train --config configs/set_mlp.py --workdir runs/set --config.data_dir=DIR
    sparsejax sweep --config configs/set_mlp.py --out runs/set-sweep --workers 0 --config.data_dir=DIR

Expected (its repository, 1,000 epochs, test accuracy in %, largest / last): SET 73.85 / 73.3; dense 70.89 / 70.25; a
fixed random mask 69.21 / 68.83. Other lengths: `--config.epochs=200`.

All of it runs today. RigL is not in that comparison.
Differs: new weights start at 0, as in the mask-based code (the sparse-matrix code draws N(0, 1) / 10), and keep the
others' momentum (that code rebuilds the optimizer each epoch). Augmentation, weight decay and seeds are not given
there; chosen none, 0 and 3.
Time on one H200, an estimate: 6.1 PFLOP a seed, 2 to 5 minutes at 20 to 60 TFLOP/s, but its 500,000 steps of batch 100
are bound by launches and by the optimizer; under 30 minutes at 200 epochs.
"""

from ml_collections import ConfigDict

from sparsejax.training import default_config, with_options

TRAIN_IMAGES = 50_000
EPSILON = 20
LAYERS = ((3072, 4000), (4000, 1000), (1000, 4000))  # the output layer is dense
KEPT = sum(EPSILON * (inputs + outputs) for inputs, outputs in LAYERS)
SPARSITY = 1 - KEPT / sum(inputs * outputs for inputs, outputs in LAYERS)


def get_config(arg: str = "") -> ConfigDict:
    """The config; `arg` is "field=value,field=value", such as "method=set,epochs=5"."""
    config = default_config()
    config.dataset = "cifar10"
    config.data = ConfigDict({"limit": TRAIN_IMAGES})
    config.model = "set_mlp"
    config.method = "set"
    config.sparsity = SPARSITY
    config.batch_size = 100
    config.epochs = 1000
    config.seeds = 3
    config.optimizer = "sgd"
    config.learning_rate = 0.01
    config.momentum = 0.9
    config.method_args = ConfigDict(
        {
            "update_every": config.data.get_ref("limit") // config.get_ref("batch_size"),  # an epoch
            "drop_fraction": 0.3,  # to the end
            "distribution": "er",
            "where": "except_('Dense_3/*')",
        }
    )
    config.eval_every_epochs = 5
    config.checkpoint_every_epochs = 50
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """Dense, and three methods at ER(20): 4 trials."""
    return h.product({"method": ["dense", "static", "set", "rigl"]})

"""ResNet-18 on CIFAR-10, 250 epochs: RigL and SRigL, with and without ablation, from 50 to 99 %.

Paper: Lasby et al. 2024, Dynamic Sparse Training with Structured Sparsity (SRigL), arXiv:2305.02299.
Net: the form for CIFAR, 11,173,962 parameters. Data: the user's own cifar-10-batches-bin.

    sparsejax train --config configs/srigl_resnet18.py --workdir runs/r18 --config.data_dir=DIR --config.sparsity=0.99
    sparsejax sweep --config configs/srigl_resnet18.py --out runs/r18-sweep --workers 0 --config.data_dir=DIR

Expected (its notebook, test accuracy in %, 5 seeds, ± 95 % interval; dense 95.45):

                              50 %       60 %       70 %       80 %       90 %       95 %       99 %
    RigL                      95.40±.06  95.45±.08  95.41±.10  95.20±.08  95.06±.14  94.62±.20  92.88±.14
    SRigL without ablation    95.35±.09  95.37±.15  95.42±.08  95.19±.12  95.00±.11  94.48±.25  91.47±.28
    SRigL                     95.36±.08  95.49±.19  95.29±.10  95.22±.04  95.11±.10  94.70±.18  92.79±.09

Differs: learning rate, its schedule, weight decay and batch are not given there; chosen as in configs/rigl_wrn22.py.
Starting weights are corrected for the sparse fan-in (`init=density`), as there; first convolution and head are sparse.
Time on one H200, an estimate from FLOPs: 41.7 PFLOP a seed at 20 to 60 TFLOP/s, 12 to 35 minutes; five seeds, 1 to 3 h.
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
    config.model = "resnet18"
    config.model_args = ConfigDict({"stem": "cifar"})
    config.init = "density"
    config.method = "rigl"
    config.sparsity = 0.9
    config.batch_size = 128
    config.epochs = 250
    config.seeds = 5
    config.optimizer = "sgd"
    config.learning_rate = 0.1
    config.momentum = 0.9
    config.weight_decay = 5e-4
    config.schedule = "step"
    config.schedule_args = ConfigDict({"milestones": [0.3072, 0.6144, 0.9216], "factor": 0.2})
    steps = config.data.get_ref("limit") // config.get_ref("batch_size") * config.get_ref("epochs")
    config.method_args = ConfigDict(
        {
            "update_every": 100,
            "update_end": steps * 3 // 4,  # follows epochs, batch_size and limit
            "drop_fraction": 0.3,
            "distribution": "erk",
            "ablate": True,
        }
    )
    config.eval_every_epochs = 10
    config.checkpoint_every_epochs = 25
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """Dense once; RigL, and SRigL with and without ablation, at each sparsity: 22 trials."""
    sparsity = {"sparsity": [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99]}
    return (
        h.list([{"method": "dense"}])
        + h.product({"method": ["rigl"], **sparsity})
        + h.product({"method": ["srigl"], **sparsity, "method_args.ablate": [True, False]})
    )

"""VGG-19 and ResNet-50 on CIFAR-10 and -100, 160 epochs: dense, static, SET, RigL, GMP, SNIP, GraSP, SynFlow, GraNet.

Paper: Liu et al. 2021, Sparse Training via Boosting Pruning Plasticity with Neuroregeneration (GraNet),
arXiv:2106.10404. Nets on CIFAR-10: VGG-19, 20,035,018 parameters; ResNet-50 for CIFAR, 23,520,842 parameters. Data: a
directory with the user's own cifar-10-batches-bin and cifar-100-binary.

    sparsejax train --config configs/granet_cifar.py --workdir runs/vgg19 --config.data_dir=DIR --config.sparsity=0.9
    sparsejax sweep --config configs/granet_cifar.py --out runs/granet --workers 0 --config.data_dir=DIR

Expected (its Table 2 by a secondary transcription; check before citing; test accuracy in %):

                        VGG-19, C-10, 90 %   ResNet-50, C-10, 95 %   ResNet-50, C-100, 90 %   VGG-19, C-100, 98 %
    dense               93.85                94.75                   78.23
    GMP                 93.59                94.52                   76.91                    72.07
    SNIP                93.63                90.86                   73.14                    58.46
    GraSP               93.30                91.32                   73.28                    68.90
    SynFlow             93.35                91.22                   73.37                    70.94
    SET                 92.46
    RigL                93.38                93.86                   76.50                    69.82
    GraNet (s_i = 0.5)  93.80                94.38                   77.29                    72.35
    GraNet (s_i = 0)                         94.44

ResNet-34, which is not in the zoo, on CIFAR-10 at 99 % (text of another paper, EAST): RigL 92.92, SET 93.09, SynFlow
86.03.
Differs: batch, momentum, seeds, and the settings of RigL's and SET's rows are not given there; chosen 128, 0.9, 3,
GraNet's own interval and drop fraction, and masks that move until half of the run, where its pruning ends too.
Time on one H200, an estimate from FLOPs at 20 to 60 TFLOP/s: VGG-19, 19.1 PFLOP a seed, 5 to 16 minutes; ResNet-50,
62.3 PFLOP a seed, 17 to 52 minutes.
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
    config.model = "vgg19"
    config.method = "rigl"
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
    steps = config.data.get_ref("limit") // config.get_ref("batch_size") * config.get_ref("epochs")
    config.method_args = ConfigDict(
        {
            "update_every": 1000,
            "update_end": steps // 2,  # follows epochs, batch_size and limit
            "drop_fraction": 0.5,
            "rewire_end": steps,  # of GraNet
            "drop_rounding": "ceil",  # as that code
            "skip_step": False,
            "signed": False,
            "distribution": "erk",
        }
    )
    config.eval_every_epochs = 10
    config.checkpoint_every_epochs = 20
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """Of each of the four columns: dense, GMP over all layers, and the other rows: 40 trials."""
    resnet50 = {"model": "resnet50", "model_args.stem": "cifar"}
    columns = [
        {"model": "vgg19", "dataset": "cifar10", "sparsity": 0.9},
        resnet50 | {"dataset": "cifar10", "sparsity": 0.95},
        resnet50 | {"dataset": "cifar100", "sparsity": 0.9},
        {"model": "vgg19", "dataset": "cifar100", "sparsity": 0.98},
    ]
    methods = h.list([{"method": "dense"}, {"method": "gmp", "method_args.distribution": "global"}])
    methods += h.product({"method": ["rigl", "set", "static"]})
    methods += h.product({"method": ["snip", "grasp", "synflow"], "method_args.distribution": ["global"]})
    granet = {"method": ["granet"], "method_args.distribution": ["global"]}
    methods += h.product(granet | {"method_args.initial_sparsity": [0.5, 0.0]})
    return [column | method for column in columns for method in methods]

"""ViT-B/16 on ImageNet at 80 and 90 %: static, SET, RigL, SRigL, STE, GMP by layer and globally.

Papers: Lee et al. 2023, JaxPruner, arXiv:2304.14082; for RigL at 80 and 90 %, Lasby et al. 2024, SRigL,
arXiv:2305.02299. Net: class token, learned positions, 86,567,656 parameters. Data: the user's own folders
train/<class>/*.JPEG and val/<class>/*.JPEG, streamed.

    sparsejax train --config configs/imagenet_vit.py --workdir runs/vit --config.data_dir=DIR --config.sparsity=0.8
    sparsejax sweep --config configs/imagenet_vit.py --out runs/vit-sweep --workers 1 --config.data_dir=DIR

Expected at 80 % (JaxPruner's README, top-1 accuracy in %; 300 epochs: `--config.epochs=300`):

                   dense  random  magnitude  saliency  global magnitude  STE    static  SET    RigL
    90 epochs      74.04  69.76   72.89      72.80     73.60             74.21  64.61   70.98  71.58
    300 epochs     74.84  73.43   75.73      75.95     75.65             76.13  70.17   75.62  75.64

SRigL's paper, other training, at 80 / 90 %: dense 78.0; RigL 77.9/76.4; SRigL 77.5/76.0, without ablation 73.5/71.3.
Magnitude is `gmp` here, STE is `dnw`; random and saliency as gradual pruning have no name in configs.
Differs: optimizer, batch, augmentation, densities and the steps of the masks are not given there; chosen. bfloat16.
Time on one H200, an estimate from FLOPs: 12,200 PFLOP a seed for 90 epochs at 20 to 60 TFLOP/s, 56 to 169 hours.
"""

from ml_collections import ConfigDict

from sparsejax.training import default_config, with_options

TRAIN_IMAGES = 1_281_167


def get_config(arg: str = "") -> ConfigDict:
    """The config; `arg` is "field=value,field=value", such as "method=set,epochs=300"."""
    config = default_config()
    config.dataset = "image_folder"
    config.data = ConfigDict({"image_size": 224, "workers": 16})
    config.augment = "randaugment(2, 9)"
    config.mixup = 0.2
    config.model = "vit_b"
    config.dtype = "bfloat16"
    config.method = "rigl"
    config.sparsity = 0.8
    config.batch_size = 1024
    config.accumulate = 4
    config.epochs = 90
    config.seeds = 1
    config.optimizer = "adamw"
    config.learning_rate = 1e-3
    config.weight_decay = 0.1
    config.clip_norm = 1.0
    config.schedule = "cosine"
    config.warmup_steps = 10_000
    steps = TRAIN_IMAGES // config.get_ref("batch_size") * config.get_ref("epochs")
    config.method_args = ConfigDict(
        {
            "update_every": 1000,
            "update_start": steps // 4,  # of GMP; these two follow epochs and batch_size
            "update_end": steps * 3 // 4,
            "drop_fraction": 0.3,
            "saliency_threshold": 0.95,  # of SRigL: its paper's for ViT
            "distribution": "uniform",
        }
    )
    config.eval_every_epochs = 5
    config.checkpoint_every_epochs = 1
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """Dense once, six methods at two sparsities, GMP over all layers too: 15 trials."""
    sparsity = {"sparsity": [0.8, 0.9]}
    return (
        h.list([{"method": "dense"}])
        + h.product({"method": ["static", "set", "rigl", "srigl", "gmp"], **sparsity})
        + h.product({"method": ["dnw"], **sparsity, "method_args.update_every": [1]})
        + h.product({"method": ["gmp"], **sparsity, "method_args.distribution": ["global"]})
    )

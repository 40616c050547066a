"""ViT-Ti with patches of 4 on CIFAR-10, its MLPs N:M from 2:4 to 1:32: MdGf, SdGf, SR-STE, STE, and others.

Paper: Bambhaniya et al. 2024, Progressive Gradient Flow for Robust N:M Sparsity Training in Transformers,
arXiv:2402.04744, at a size of our own. Net: 5,362,762 parameters. Data: the user's own cifar-10-batches-bin.

    sparsejax train --config configs/nm_vit_cifar.py --workdir runs/vit-nm --config.data_dir=DIR
    sparsejax sweep --config configs/nm_vit_cifar.py --out runs/vit-nm-sweep --workers 0 --config.data_dir=DIR

Expected: no numbers at this size. By the abstract, its decaying masks gain up to 2 % (vision) over SR-STE above 80 %
sparsity, so from 1:8 on; SR-STE (arXiv:2102.04010) is above STE, more so the larger M / N. No claim at 50 %.

MdGf decays the masks, exponentially; SdGf the structure, stepwise. GMP, one-shot, RigL and static have the same masks,
chosen in other ways.
Differs: net, data and training are chosen; the paper's are larger and not given there.
Time on one H200, an estimate from FLOPs: 21.9 PFLOP a seed at 20 to 60 TFLOP/s, 6 to 18 minutes.
"""

from ml_collections import ConfigDict, config_dict

from sparsejax.training import default_config, with_options

TRAIN_IMAGES = 50_000
PATTERNS = ((2, 4), (1, 4), (1, 8), (1, 16), (1, 32))


def get_config(arg: str = "") -> ConfigDict:
    """The config; `arg` is "field=value,field=value", such as "method=gmp,epochs=5"."""
    config = default_config()
    config.dataset = "cifar10"
    config.data = ConfigDict({"limit": TRAIN_IMAGES})
    config.augment = "pad_crop_flip(4), randaugment(2, 9)"
    config.model = "vit_ti"
    config.model_args = ConfigDict({"patch": 4})
    config.method = "gmp"
    config.sparsity = 0.5  # what the pattern says
    config.batch_size = 512
    config.epochs = 200
    config.seeds = 3
    config.optimizer = "adamw"
    config.learning_rate = 1e-3
    config.weight_decay = 0.05
    config.clip_norm = 1.0
    config.label_smoothing = 0.1
    config.schedule = "cosine"
    steps = config.data.get_ref("limit") // config.get_ref("batch_size") * config.get_ref("epochs")
    config.warmup_steps = steps // 20  # follows epochs, batch_size and limit, as those below
    config.method_args = ConfigDict(
        {
            "update_end": steps * 3 // 4,
            "at_step": steps // 2,  # of one-shot
            "update_start": steps // 10,  # of MdGf, SdGf and GMP: dense until here
            "drop_fraction": 0.3,
            "pattern": "nm(2, 4)",
            "distribution": config_dict.placeholder(str),  # the pattern fixes it
            "where": "only('*/mlp_in/kernel', '*/mlp_out/kernel')",
        }
    )
    config.eval_every_epochs = 10
    config.checkpoint_every_epochs = 20
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """Dense once, eight methods with each pattern: 41 trials."""
    patterns = h.list({"method_args.pattern": f"nm({n}, {m})", "sparsity": 1 - n / m} for n, m in PATTERNS)
    methods = (
        h.product({"method": ["ste", "sr_ste"]})
        + h.product({"method": ["mdgf"], "method_args.schedule": ["exponential"]})
        + h.product({"method": ["sdgf"], "method_args.schedule": ["stepwise"]})
        + h.product({"method": ["gmp", "rigl"], "method_args.update_every": [100]})
        + h.product({"method": ["static", "one_shot"]})
    )
    return h.list([{"method": "dense"}]) + [method | pattern for pattern in patterns for method in methods]

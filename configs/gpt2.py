"""GPT-2 of 124 M at 2:4 and 50 %: AST, SR-STE, static, GMP, one-shot and RigL, with the steps of AST's retraining.

Paper: Huang et al. 2024, Pruning Large Language Models with Semi-Structural Adaptive Sparse Training (AST),
arXiv:2407.20584. Net: 124,439,808 parameters; `model=gpt2_medium` is its 350 M. Data: the user's own train.bin and
val.bin of GPT-2's tokens, as nanoGPT writes them (there: C4).

    sparsejax train --config configs/gpt2.py --workdir runs/gpt2 --config.data_dir=DIR --config.method=dense
    sparsejax sweep --config configs/gpt2.py --out runs/gpt2-sweep --workers 1 --config.data_dir=DIR

Expected of pretrained GPT-2 of 124 M / 350 M at 2:4 (README of its repository, perplexity on WikiText): dense
29.95/21.72; SparseGPT 50.09/31.03; Wanda 115.64/63.71; GMP 33.48/24.83; AST 31.13/23.03.

Not comparable yet: those runs start from OpenAI's weights, where `init_from` takes a run of this package, and measure
WikiText where this one measures val.bin. Wanda and SparseGPT prune after training. With `distill` (alpha 0.67) a dense
run can be the teacher that AST has; its low-rank part, `models.slorb`, has no field.
Differs: 2e-4 to 2e-5, warm-up, 40,000 steps of batch 128, weight decay 0.1 are its own; context, betas, clipping,
dropout are not given there; chosen 1024, (0.9, 0.95), 1 and 0; bfloat16.
Time on one H200, an estimate from FLOPs: 4,480 PFLOP a seed at 20 to 60 TFLOP/s, 21 to 62 hours.
"""

from ml_collections import ConfigDict, config_dict

from sparsejax.training import default_config, with_options


def get_config(arg: str = "") -> ConfigDict:
    """The config; `arg` is "field=value,field=value", such as "method=gmp,epochs=5"."""
    config = default_config()
    config.dataset = "tokens"
    config.data = ConfigDict({"vocab": 50_257})
    config.model = "gpt2"
    config.model_args = ConfigDict({"dropout": 0.0})
    config.dtype = "bfloat16"
    config.method = "gmp"
    config.sparsity = 0.5
    config.batch_size = 128
    config.accumulate = 8
    config.epochs = 40
    config.epoch_steps = 1000
    config.seeds = 1
    config.optimizer = "adamw"
    config.learning_rate = 2e-4
    config.weight_decay = 0.1
    config.betas = [0.9, 0.95]
    config.clip_norm = 1.0
    config.schedule = "cosine"
    config.schedule_args = ConfigDict({"end": 0.1})
    config.warmup_steps = 2000
    steps = config.get_ref("epoch_steps") * config.get_ref("epochs")
    config.method_args = ConfigDict(
        {
            "update_start": steps // 20,  # of GMP: where the warm-up ends
            "update_end": steps * 3 // 4,  # these follow epochs
            "at_step": steps // 2,  # of one-shot
            "drop_fraction": 0.3,
            "distribution": config_dict.placeholder(str),  # N:M fixes it
            "pattern": config_dict.placeholder(str),
        }
    )
    config.checkpoint_every_epochs = 1
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """Dense once, six methods at 2:4, four at 50 % of single weights: 11 trials."""
    methods = h.product({"method": ["static", "one_shot"]})
    methods += h.product({"method": ["gmp", "rigl"], "method_args.update_every": [100]})
    return (
        h.list([{"method": "dense"}])
        + [{"method": method, "method_args.pattern": "nm(2, 4)"} for method in ("ast", "sr_ste")]
        + [method | {"method_args.pattern": "nm(2, 4)"} for method in methods]
        + [method | {"method_args.distribution": "uniform"} for method in methods]
    )

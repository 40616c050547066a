"""A character GPT on tinyshakespeare, three seeds a trial: dense; static, GMP, RigL at 80 %; and 2:4.

Model and text: the Shakespeare model of github.com/karpathy/nanoGPT; the first 90 % of the file to train on, the rest
to test on. 0.8 M parameters as they are, for two cores; 10.7 M with `model=gpt_char`, see h200.py beside this file.

    sparsejax sweep --config experiments/chargpt/sweep.py --out runs/chargpt --workers 1 --config.data_dir=FILE

Measured: README.md has the claim, the table, its time, and a text from each.
"""

from pathlib import Path

from ml_collections import ConfigDict, config_dict

from sparsejax.training import default_config, with_options

BESIDE_CHECKOUT = Path(__file__).resolve().parents[3] / "shared" / "data" / "tinyshakespeare.txt"


def get_config(arg: str = "") -> ConfigDict:
    """The config of one trial; `arg` is "field=value,field=value", such as "method=gmp,epochs=5"."""
    config = default_config()
    config.dataset = "text"
    config.data_dir = str(BESIDE_CHECKOUT) if BESIDE_CHECKOUT.is_file() else ""
    config.model = "gpt_toy"
    config.method = "rigl"
    config.sparsity = 0.8
    config.batch_size = 12
    config.epoch_steps = 250  # windows are drawn anywhere: an epoch is what lies between two evaluations
    config.epochs = 8
    config.seeds = 3
    config.optimizer = "adamw"
    config.learning_rate = 1e-3
    config.weight_decay = 0.1
    config.betas = [0.9, 0.99]
    config.clip_norm = 1.0
    config.schedule = "cosine"
    config.schedule_args = ConfigDict({"end": 0.1})
    config.warmup_steps = 100
    steps = config.get_ref("epoch_steps") * config.get_ref("epochs")
    config.method_args = ConfigDict(
        {
            "update_every": 50,
            "update_end": steps * 3 // 4,  # 75 % of training, for every method
            "drop_fraction": 0.3,
            "distribution": "uniform",
            "pattern": config_dict.placeholder(str),
        }
    )
    config.checkpoint_every_epochs = 4
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """Dense once, three methods at 80 %, and 2:4 reached as GMP reaches a sparsity: five trials."""
    return (
        h.list([{"method": "dense"}])
        + h.product({"method": ["static", "gmp", "rigl"], "sparsity": [0.8]})
        + h.list(
            [{"method": "gmp", "sparsity": 0.5, "method_args.pattern": "nm(2, 4)", "method_args.distribution": None}]
        )
    )

"""A character GPT of 0.8 M parameters: dense, static, GMP and RigL at 80 %.

Model and data: the Shakespeare model for CPUs of github.com/karpathy/nanoGPT, on the user's own text file (`data_dir`):
the first 90 % to train on, the rest to test on.

    sparsejax train --config configs/char_gpt.py --workdir runs/gpt --config.data_dir=tinyshakespeare.txt
    sparsejax sweep --config configs/char_gpt.py --out runs/gpt-sweep --workers 0 --config.data_dir=tinyshakespeare.txt
    sparsejax sample --workdir runs/gpt --prompt "ROMEO:"

Not measured yet. Expected by nanoGPT's README for the dense model at 2,000 steps: validation loss 1.88. With
`model=gpt_char` it is that of 10.7 M parameters for an accelerator (there: 1.47 after 5,000 steps of batch 64).
"""

from ml_collections import ConfigDict, config_dict

from sparsejax.training import default_config, with_options


def get_config(arg: str = "") -> ConfigDict:
    """The config; `arg` is "field=value,field=value", such as "method=gmp,epochs=5"."""
    config = default_config()
    config.dataset = "text"
    config.model = "gpt_toy"
    config.method = "rigl"
    config.sparsity = 0.8
    config.batch_size = 12
    config.epochs = 8
    config.epoch_steps = 250
    config.seeds = 1
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
            "update_end": steps * 3 // 4,  # follows epochs
            "drop_fraction": 0.3,
            "distribution": "uniform",
            "pattern": config_dict.placeholder(str),
        }
    )
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """Dense once, three methods at 80 %."""
    return h.list([{"method": "dense"}]) + h.product({"method": ["static", "gmp", "rigl"], "sparsity": [0.8]})

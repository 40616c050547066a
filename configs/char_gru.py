"""RigL's character GRU on WikiText-103 at 75 %: dense, static, SET, RigL and GMP, 200,000 steps.

Paper: Evci et al. 2020, Rigging the Lottery, arXiv:1911.11134. Net: state 512, embedding 128, readout 256 and 128,
1,182,080 parameters. Data: the user's own text file (`data_dir`), byte by byte, the first 90 % to train on.

    sparsejax train --config configs/char_gru.py --workdir runs/gru --config.data_dir=wiki.train.tokens
    sparsejax sweep --config configs/char_gru.py --out runs/gru-sweep --workers 0 --config.data_dir=wiki.train.tokens

Expected: no numbers; of this experiment only the setting was recovered. What to look at is the order: dense, then GMP
and RigL, then SET, then static.

All of it runs today.
Differs: its L2 of 5e-4 is in Adam's gradient, here AdamW's decoupled decay; bytes for its characters; the last 10 % of
the file for WikiText's own test set; GMP's steps are not given there; chosen.
Time on one H200, an estimate: 23 PFLOP a seed, 6 to 19 minutes at 20 to 60 TFLOP/s; but the 512 tokens of a step come
one after the other, forward and back, and if each takes 10 to 50 us (a guess), it is 0.6 to 3 hours.
"""

from ml_collections import ConfigDict

from sparsejax.training import default_config, with_options


def get_config(arg: str = "") -> ConfigDict:
    """The config; `arg` is "field=value,field=value", such as "method=set,epochs=5"."""
    config = default_config()
    config.dataset = "text"
    config.data = ConfigDict({"unit": "byte"})
    config.model = "gru"
    config.method = "rigl"
    config.sparsity = 0.75
    config.batch_size = 32
    config.epochs = 100
    config.epoch_steps = 2000
    config.seeds = 3
    config.optimizer = "adamw"
    config.learning_rate = 7e-4
    config.weight_decay = 5e-4
    config.clip_norm = 10.0
    steps = config.get_ref("epoch_steps") * config.get_ref("epochs")
    config.method_args = ConfigDict(
        {
            "update_every": 100,
            "update_end": steps,  # to the end, as there; follows epochs
            "drop_fraction": 0.1,
            "signed": False,
            "distribution": "uniform",
        }
    )
    config.checkpoint_every_epochs = 5
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """Dense, and four methods at 75 %: 5 trials."""
    return h.product({"method": ["dense", "static", "set", "rigl", "gmp"]})

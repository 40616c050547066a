"""The lottery ticket's ResNet-20 on CIFAR-10: dense at its three learning rates, static, GMP and RigL at two of them.

Paper: Frankle & Carbin 2019, The Lottery Ticket Hypothesis, arXiv:1803.03635, which calls this net ResNet-18; recipe
of a later code, open_lth. Net: projected shortcuts, 272,474 parameters. Data: the user's own cifar-10-batches-bin.

    sparsejax train --config configs/lottery_resnet.py --workdir runs/lth-r20 --config.data_dir=DIR
    sparsejax procedure imp --config configs/lottery_resnet.py --workdir runs/lth-r20-tickets --config.data_dir=DIR
    sparsejax sweep --config configs/lottery_resnet.py --out runs/lth-r20-sweep --workers 0 --config.data_dir=DIR

Expected (the paper's text, test accuracy of tickets in %): 89.5 at 41.7 to 21.9 % of the weights with learning rate
0.01; 90.5 at 27.1 % with 0.03 after 20,000 steps of warm-up; with 0.1 and no warm-up there are no tickets.

The procedure finds the tickets, 20 % a round of all layers together; the sweep has the nets that they are judged by.
Differs: 160 epochs of batch 128, weight decay 1e-4 and x 0.1 at half and three quarters are open_lth's; momentum and
seeds are not given there; chosen 0.9 and 3.
Time on one H200, an estimate from FLOPs: 2.0 PFLOP a seed at 20 to 60 TFLOP/s, 1 to 2 minutes, and rather a few.
"""

from ml_collections import ConfigDict

from sparsejax.training import default_config, with_options

TRAIN_IMAGES = 50_000


def get_config(arg: str = "") -> ConfigDict:
    """The config; `arg` is "field=value,field=value", such as "method=gmp,epochs=5"."""
    config = default_config()
    config.dataset = "cifar10"
    config.data = ConfigDict({"limit": TRAIN_IMAGES})
    config.augment = "pad_crop_flip(4)"
    config.model = "resnet20"
    config.method = "gmp"
    config.sparsity = 0.729
    config.batch_size = 128
    config.epochs = 160
    config.seeds = 3
    config.optimizer = "sgd"
    config.learning_rate = 0.03
    config.momentum = 0.9
    config.weight_decay = 1e-4
    config.schedule = "step"
    config.schedule_args = ConfigDict({"milestones": [0.5, 0.75], "factor": 0.1})
    config.warmup_steps = 20_000
    steps = config.data.get_ref("limit") // config.get_ref("batch_size") * config.get_ref("epochs")
    config.method_args = ConfigDict(
        {
            "update_every": 100,
            "update_end": steps * 3 // 4,  # follows epochs, batch_size and limit
            "drop_fraction": 0.3,
            "distribution": "erk",
        }
    )
    config.eval_every_epochs = 5
    config.checkpoint_every_epochs = 20
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """Dense at three rates; each method at the rates and densities at which tickets were found: 9 trials."""
    slow, warm, fast = h.zip({"learning_rate": [0.01, 0.03, 0.1], "warmup_steps": [0, 20_000, 0]})
    found = [slow | {"sparsity": 0.781}, warm | {"sparsity": 0.729}]
    methods = h.product({"method": ["static", "gmp", "rigl"]})
    return [rate | {"method": "dense"} for rate in (slow, warm, fast)] + [at | how for at in found for how in methods]

"""The lottery ticket's LeNet-300-100 on MNIST: the dense net, and what its tickets are compared with.

Paper: Frankle & Carbin 2019, The Lottery Ticket Hypothesis, arXiv:1803.03635. Net: 266,610 parameters. Data: the user's
own IDX files.

    sparsejax train --config configs/lottery_lenet.py --workdir runs/lth --config.data_dir=DIR --config.method=dense
    sparsejax procedure imp --config configs/lottery_lenet.py --workdir runs/lth-tickets --config.data_dir=DIR
    sparsejax sweep --config configs/lottery_lenet.py --out runs/lth-sweep --workers 0 --config.data_dir=DIR

Expected (the paper's text): tickets stop early 38 % sooner at 21 % of the weights (2.51 times faster and half a point
better in its summary); 0.3 points above dense at 13.5 %, at the dense accuracy down to 3.6 %, below it from 2.9 %;
randomly started nets of the same masks fall below dense from 21.1 % on. The dense accuracy itself is not given there.

The procedure finds the tickets; experiments/lottery has them measured, shorter. The sweep has what they are compared
with: dense; random masks (`static`); pruning in the middle of the run without rewinding (`one_shot`). Its sparsities
are those of 7, 9 and 15 rounds. Conv-2, -4 and -6 are not in the zoo.
Differs: seeds are not given there; chosen 5. Early stopping is seen to 1,000 steps, an epoch, at best.
Time on one H200, an estimate: 0.005 PFLOP a seed, so bound by launches; a few minutes a trial.
"""

from ml_collections import ConfigDict

from sparsejax.training import default_config, with_options

TRAIN_IMAGES = 60_000
ROUNDS = (7, 9, 15)  # of 20 %


def get_config(arg: str = "") -> ConfigDict:
    """The config; `arg` is "field=value,field=value", such as "method=static,epochs=5"."""
    config = default_config()
    config.dataset = "mnist"
    config.data = ConfigDict({"limit": TRAIN_IMAGES})
    config.model = "lenet_300_100"
    config.method = "one_shot"
    config.sparsity = 0.79
    config.batch_size = 60
    config.epochs = 50  # 50,000 steps
    config.seeds = 5
    config.optimizer = "adam"
    config.learning_rate = 1.2e-3
    steps = config.data.get_ref("limit") // config.get_ref("batch_size") * config.get_ref("epochs")
    config.method_args = ConfigDict(
        {
            "at_step": steps // 2,  # follows epochs, batch_size and limit
            "distribution": "uniform",
        }
    )
    config.checkpoint_every_epochs = 10
    return with_options(config, arg)


def get_hyper(h) -> list[dict]:
    """Dense once, two methods at three sparsities: 7 trials."""
    sparsities = [round(1 - 0.8**rounds, 4) for rounds in ROUNDS]
    return h.list([{"method": "dense"}]) + h.product({"method": ["static", "one_shot"], "sparsity": sparsities})

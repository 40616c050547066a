"""Our training loop against a bare one by hand: steps a second and memory. Raw JSON.

    python experiments/speed/loop.py
    python experiments/speed/loop.py --only mnist-mlp --rounds 9

The same model, optimizer, batches and steps a dispatch, float32, one seed, dense; data files of the sets' own formats
with random content. Ours is `sparsejax.training.train` as a user runs it, from its first to its last but one report of
progress: with its data order, records, schedule and checks for NaN; without compilation, evaluation and checkpoint.
Memory is XLA's own figure of one dispatch: arguments (data set included), results and temporaries.
"""

from __future__ import annotations

import inspect
import struct
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax

from bare import Bare, bare_loop, in_use
from optimizer import Parser, names_among, out_file, rounds, say
from record import default_path, heading
from sparsejax.data.windows import cut_windows
from sparsejax.files import write_json
from sparsejax.training import train
from sparsejax.training.config import resolve
from sparsejax.training.model import make_model
from sparsejax.training.seeds import one_by_one
from sparsejax.training.trial import Trial, load, prepare
from timing import ENOUGH, interleaved, ratios, spread


class Loop(NamedTuple):
    """A case.

    Attributes:
      name: of the row.
      files: `(folder) -> None`, writes its data.
      config: what differs from the defaults; dense, one seed.
      optimizer: `(steps) -> transformation`, the same by hand.
      chunk: steps of a dispatch.
      chunks: dispatches of a measurement.
    """

    name: str
    files: Any
    config: dict[str, Any]
    optimizer: Any
    chunk: int
    chunks: int


def mnist_files(folder: Path) -> None:
    """MNIST's four files, of noise."""
    rng = np.random.default_rng(0)
    for name, size in (("train", 60_000), ("t10k", 200)):
        pixels = rng.integers(0, 256, (size, 28, 28), np.uint8)
        labels = rng.integers(0, 10, size, np.uint8)
        for array, kind in ((pixels, "images-idx3"), (labels, "labels-idx1")):
            head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
            (folder / f"{name}-{kind}-ubyte").write_bytes(head + array.tobytes())


def cifar_files(folder: Path) -> None:
    """CIFAR-10's six files, of noise."""
    rng = np.random.default_rng(0)
    for name, size in (*((f"data_batch_{n}", 600) for n in range(1, 6)), ("test_batch", 200)):
        records = rng.integers(0, 256, (size, 3_073), np.uint8)
        records[:, 0] %= 10
        (folder / f"{name}.bin").write_bytes(records.tobytes())


def text_file(folder: Path) -> None:
    """A million letters."""
    letters = np.random.default_rng(0).integers(97, 123, 1_000_000, np.uint8)
    (folder / "text.txt").write_bytes(letters.tobytes())


def cosine(rate: float, steps: int) -> optax.Schedule:
    return optax.cosine_decay_schedule(rate, steps)


LOOPS = (
    Loop(
        "mnist-mlp",
        mnist_files,
        {
            "dataset": "mnist",
            "model": "lenet_300_100",
            "batch_size": 128,
            "epochs": 3,
            "optimizer": "adamw",
            "weight_decay": 1e-4,
        },
        lambda steps: optax.adamw(cosine(1e-3, steps), weight_decay=1e-4),
        100,
        14,
    ),
    Loop(
        "resnet20",
        cifar_files,
        {"dataset": "cifar10", "model": "resnet20", "batch_size": 64, "optimizer": "sgd", "momentum": 0.9},
        lambda steps: optax.sgd(cosine(1e-3, steps), momentum=0.9),
        10,
        3,
    ),
    Loop(
        "gpt-toy",
        text_file,
        {"dataset": "text", "model": "gpt_toy", "batch_size": 12, "optimizer": "adamw", "weight_decay": 0.1},
        lambda steps: optax.adamw(cosine(1e-3, steps), weight_decay=0.1),
        20,
        6,
    ),
)


class Ours:
    """Runs of one config, each in a folder of its own; the first one compiles."""

    def __init__(self, loop: Loop, data_dir: Path, runs: Path):
        self._runs, self._count = runs, 0
        self.steps = loop.chunk * (loop.chunks + 3)
        common = {"method": "dense", "seeds": 1, "schedule": "cosine", "learning_rate": 1e-3, "epochs": 1}
        config = common | loop.config | {"data_dir": str(data_dir), "chunk_steps": loop.chunk}
        if config["dataset"] == "text":
            config |= {"data_dir": str(data_dir / "text.txt"), "epoch_steps": self.steps}
        self.config = config
        self.trial: Trial = prepare(resolve(config))

    def run(self) -> float:
        """Seconds of a step."""
        stamps: list[tuple[int, float]] = []
        self._count += 1
        train(
            self.config,
            self._runs / str(self._count),
            on_progress=lambda done, total, last: stamps.append((done, time.perf_counter())),
        )
        (first, began), (last, ended) = stamps[0], stamps[-2]
        return (ended - began) / (last - first)

    def bytes(self) -> int:
        """Of a dispatch, as `Bare.bytes`."""
        trial = self.trial
        state, _ = trial.init()
        given = (trial.rates, state, trial.fixed, trial.feed(0, 1), 1)
        program = trial.programs.chunk
        if not hasattr(program, "lower"):  # it dispatches another one step by step
            program = inspect.getclosurevars(program).nonlocals["program"]
        return in_use(program.lower(*given).compile().memory_analysis())


def by_hand(loop: Loop, ours: Ours) -> Bare:
    """The bare loop of a case, on the arrays that ours has on the device."""
    trial = ours.trial
    config, task = trial.config, trial.task
    feed = trial.feed(0, 1)
    params = trial.like.params
    chunk = 1 if one_by_one(params) else loop.chunk
    if config["dataset"] == "text":
        context = task.units
        cut = lambda tokens, starts: cut_windows(tokens, starts, context)
        size = len(feed.arrays) - context
    else:
        cut = lambda data, index: (task.inputs(data[0][index]), data[1][index])
        size = len(feed.arrays[1])
    model = make_model(config, load(config))
    return bare_loop(model, loop.optimizer(trial.grid.total), feed.arrays, cut, size, config["batch_size"], chunk)


def measured(loop: Loop, count: int) -> dict[str, Any]:
    """The row of a case."""
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder) / "data"
        data_dir.mkdir()
        loop.files(data_dir)
        ours = Ours(loop, data_dir, Path(folder) / "runs")
        bare = by_hand(loop, ours)
        steps = loop.chunk * loop.chunks
        ours.run()
        bare.run(loop.chunk)
        seconds = interleaved({"bare": lambda: bare.run(steps) / steps, "ours": ours.run}, count)
        times = {name: spread(list(found.values())) for name, found in seconds.items()}
        ratio = spread(ratios(seconds["ours"], seconds["bare"]))
        return {
            "loop": loop.name,
            "chunk": loop.chunk,
            "steps": steps,
            "ms": {name: 1e3 * found.median for name, found in times.items()},
            "seconds_over_bare": ratio._asdict(),
            "speed_over_bare": 1 / ratio.median,
            "bytes": {"bare": bare.bytes, "ours": ours.bytes()},
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints a table, writes the file."""
    parser = Parser(prog="loop.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    names = [loop.name for loop in LOOPS]
    parser.add_argument("--only", type=names_among(names), metavar="LOOPS", help=", ".join(names))
    parser.add_argument("--rounds", type=rounds, default=ENOUGH, metavar="N", help=f"default {ENOUGH}")
    parser.add_argument("--out", type=out_file, metavar="FILE", help="default: results/loop-<machine>-<date>.json")
    arguments = parser.parse_args(argv)
    only = f" --only {','.join(arguments.only)}" if arguments.only else ""
    results = heading(f"python experiments/speed/loop.py{only} --rounds {arguments.rounds}", arguments.rounds)
    results |= {"kind": "sparsejax-loop", "rows": []}
    out = arguments.out or default_path(results, complete=arguments.only is None)
    out = arguments.out or out.with_name(f"loop-{out.name}")
    for loop in LOOPS:
        if arguments.only is None or loop.name in arguments.only:
            results["rows"].append(measured(loop, arguments.rounds))
            write_json(out, results)
            say(line(results["rows"][-1]))
    print(f"written: {out}")
    return 0


def line(row: dict[str, Any]) -> str:
    """A row of the table, as Markdown."""
    ratio, memory = row["seconds_over_bare"], row["bytes"]["ours"] / row["bytes"]["bare"]
    speed = f"{1 / ratio['median']:.3f} ({1 / ratio['high']:.3f}..{1 / ratio['low']:.3f})"
    times = " | ".join(f"{row['ms'][name]:.4g}" for name in ("bare", "ours"))
    return f"| {row['loop']} | {row['chunk']} | {times} | {speed} | {memory:.3f} |"


if __name__ == "__main__":
    sys.exit(main())

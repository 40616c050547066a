"""The training loop of one trial: all its seeds at once, resumable at every chunk.

The steps are cut into chunks on a fixed grid; a chunk is one dispatch. The report of a chunk is read after the next one is under way,
so that the device does not wait for the host. Checkpoints lie on the grid, hold the whole state, and are made only after every loss up
to them was seen to be finite.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sparsejax import flops
from sparsejax.data import DATASETS, Dataset
from sparsejax.leaves import named_leaves, select_leaves
from sparsejax.training import records
from sparsejax.training.checkpoint import Checkpoints
from sparsejax.training.config import Resolved, resolve
from sparsejax.training.errors import ConfigError, Preempted
from sparsejax.training.evaluation import TestSet, make_test_set
from sparsejax.training.methods import make_transform, update_every
from sparsejax.training.metrics import MetricsWriter, write_json
from sparsejax.training.programs import Programs, example_shape, get_programs, make_model, mask_report
from sparsejax.training.run_dir import finished, opened
from sparsejax.training.state import TrainState, init_state, masks_by_path

Progress = Callable[[int, int, dict[str, Any]], None]


class Grid(NamedTuple):
    """The fixed grid of steps: where chunks end, where to evaluate, where to save.

    Attributes:
      chunk: most steps in one dispatch.
      update: steps between mask updates.
      epoch: steps of an epoch.
      evaluate: steps between evaluations, a multiple of `epoch`.
      save: steps between checkpoints, a multiple of `epoch`; 0: only at the end.
      total: steps of the run.
    """

    chunk: int
    update: int
    epoch: int
    evaluate: int
    save: int
    total: int

    def after(self, step: int) -> int:
        """The end of the chunk that begins at `step`.

        Masks change in the step that follows a multiple of `update`; chunks end right after it, so that a chunk sees one update at
        most, and what it reports about masks holds from its last step on.
        """
        next_update = lambda every: (step - 1) // every * every + every + 1
        return min(next_update(self.chunk), next_update(self.update), step // self.epoch * self.epoch + self.epoch)

    def evaluates(self, step: int) -> bool:
        return step == self.total or step % self.evaluate == 0

    def saves(self, step: int) -> bool:
        return step == self.total or (self.save > 0 and step % self.save == 0)


class Trial(NamedTuple):
    """All that a run needs and that does not change; made before anything is written."""

    config: Resolved
    grid: Grid
    programs: Programs
    train_x: jax.Array
    train_y: jax.Array
    test: TestSet
    seeds: jax.Array
    init: Callable[[], tuple[TrainState, dict[str, Any]]]
    like: TrainState
    sizes: dict[str, int]
    layers: dict[str, int]


def train(
    config: ConfigDict | Mapping[str, Any], workdir: str | Path, *, on_progress: Progress | None = None
) -> dict[str, Any]:
    """Trains one trial in `workdir`, or resumes it there, and returns its result (also in result.json).

    A run killed at any instant and started again ends with the same bits as one that was not. On SIGTERM the chunk under way is
    finished and saved.

    Args:
      config: fields as in `default_config`; missing ones take their defaults.
      workdir: the run's directory; made when everything in the config has been checked.
      on_progress: called as on_progress(done_steps, total_steps, last_metrics), with loss, lr and accuracy per seed in the last.

    Raises:
      ConfigError: the config is wrong, differs from the one in workdir, or another process trains there.
      NonFiniteLoss: a loss was not finite, and config.stop_on_nonfinite is true.
      Preempted: SIGTERM came (a SystemExit with code 143).

    Example:
      >>> train({"dataset": "digits", "method": "rigl", "sparsity": 0.95, "seeds": 3}, "runs/rigl")["accuracy"]
    """
    workdir, resolved = Path(workdir), resolve(config)
    if (result := finished(workdir, resolved)) is not None:
        return result
    trial = prepare(resolved)
    with opened(workdir, resolved):
        if (result := finished(workdir, resolved)) is not None:
            return result
        return _run(trial, workdir, on_progress or (lambda done, total, last: None))


def prepare(config: Resolved) -> Trial:
    """Loads the data and builds the programs of a resolved config; nothing is compiled yet, and nothing written.

    Raises:
      ConfigError: as `train`.
    """
    dataset, train_x, train_y, test = _load(config["dataset"], config["data_dir"], tuple(sorted(config["data"].items())))
    epoch = len(dataset.train_y) // config["batch_size"]  # the incomplete last batch of an epoch is dropped
    if epoch == 0:
        raise ConfigError(f"batch_size: {config['batch_size']} is more than the {len(dataset.train_y)} training examples")
    total = epoch * config["epochs"]
    chunk = config["chunk_steps"]
    evaluate, save = epoch * config["eval_every_epochs"], epoch * config["checkpoint_every_epochs"]
    grid = Grid(chunk, update_every(config) or chunk, epoch, evaluate, save, total)
    seeds = jnp.asarray(config["seeds"], jnp.int32)
    try:
        programs = get_programs(config, dataset, epoch)
        transform = lambda seed: make_transform(config, total, sparsity=config["sparsity"], seed=seed)
        init_all = lambda params: init_state(transform, params, seeds)
        like_params = jax.eval_shape(programs.init_params, seeds)
        like = jax.eval_shape(init_all, like_params)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:  # from the model, the method or its patterns: a refusal names the leaf and the value
        raise ConfigError(f"method {config['method']!r}, model {config['model']!r}: {error}") from error
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), like_params)
    model = make_model(config, dataset)
    layers = flops.layer_flops(lambda params, x: model.apply({"params": params}, x), one, example_shape(dataset))
    masked = masks_by_path(like.opt_state) or {path: None for path, _ in named_leaves(select_leaves(one))}
    sizes = {path: prod(leaf.shape) for path, leaf in named_leaves(one) if path in masked}

    def state_and_report(params):
        state = init_all(params)
        return state, mask_report(state, masks_by_path(state.opt_state))

    # It runs once, so it is compiled in a hurry: half the time.
    start = jax.jit(state_and_report, compiler_options={"xla_backend_optimization_level": 1})
    init = lambda: start(programs.init_params(seeds))
    return Trial(config, grid, programs, train_x, train_y, test, seeds, init, like, sizes, layers)


@lru_cache(maxsize=2)
def _load(name: str, data_dir: str, args: tuple) -> tuple[Dataset, jax.Array, jax.Array, TestSet]:
    """The data set on the host and on the device; trials of a sweep share it."""
    try:
        dataset = DATASETS[name](data_dir, **dict(args))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"dataset {name!r}: {error}") from error
    return dataset, jnp.asarray(dataset.train_x), jnp.asarray(dataset.train_y), make_test_set(dataset.test_x, dataset.test_y)


def _run(trial: Trial, workdir: Path, on_progress: Progress) -> dict[str, Any]:
    started, earlier = time.monotonic(), _seconds_so_far(workdir)
    checkpoints = Checkpoints(workdir / "checkpoints", trial.config["keep_checkpoints"])
    found = checkpoints.restore(trial.like)
    first = None
    if found:
        step, state = found
    else:
        step, (state, first) = 0, trial.init()
    with contextlib.closing(MetricsWriter(workdir / "metrics.jsonl", step)) as writer, contextlib.closing(checkpoints):

        def save(step: int, state: TrainState) -> None:
            writer.sync()
            checkpoints.save(step, state)
            write_json(workdir / "timing.json", {"step": step, "seconds": earlier + time.monotonic() - started})

        if first:  # the masks at step 0; a dense run has none
            writer.write(records.masks_record(0, jax.device_get(first), trial.sizes))
        _loop(trial, step, state, writer, save, on_progress)
    result = records.make_result(
        trial.config, writer.records, steps=trial.grid.total, sizes=trial.sizes, layers=trial.layers
    )
    result["seconds"] = round(earlier + time.monotonic() - started, 3)
    write_json(workdir / "result.json", result)
    return result


def _seconds_so_far(workdir: Path) -> float:
    """What earlier processes spent on this run, up to their last checkpoint; times are no part of what must be identical."""
    import json

    try:
        return float(json.loads((workdir / "timing.json").read_text())["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def _loop(trial: Trial, step: int, state: TrainState, writer: MetricsWriter, save, on_progress: Progress) -> None:
    """Trains from `step` to the end; `save(step, state)` is called with every record up to that step written."""
    grid, programs, test = trial.grid, trial.programs, trial.test
    order, waiting = None, None
    with _sigterm() as terminated:
        while step < grid.total:
            if order is None or step % grid.epoch == 0:
                order = programs.permute(trial.seeds, step // grid.epoch)
            stop = grid.after(step)
            state, report = programs.chunk(state, trial.train_x, trial.train_y, order, stop - step)
            scores = programs.evaluate(state.params, test.x, test.y, test.real) if grid.evaluates(stop) else None
            if waiting:
                _write(trial, writer, on_progress, *waiting)
            step, waiting = stop, (stop, report, scores)
            if grid.saves(step) or terminated.is_set():
                _write(trial, writer, on_progress, *waiting)
                waiting = None
                save(step, state)
            if terminated.is_set():
                raise Preempted(step)


def _write(trial: Trial, writer: MetricsWriter, on_progress: Progress, step: int, report: Any, scores: Any) -> None:
    """Waits for a chunk, checks its losses, writes its records."""
    report, scores = jax.device_get((report, scores))
    if trial.config["stop_on_nonfinite"]:
        records.check_finite(report, step, trial.config["seeds"])
    epoch = step / trial.grid.epoch
    writer.write(records.train_record(step, epoch, report))
    if records.changed(report["masks"]):
        writer.write(records.masks_record(step, report["masks"], trial.sizes))
    if scores is not None:
        writer.write(records.eval_record(step, epoch, *scores, trial.test.size))
    on_progress(step, trial.grid.total, _last_metrics(writer.records))


def _last_metrics(written: list[dict[str, Any]]) -> dict[str, Any]:
    """The newest training loss and learning rate, and the newest test accuracy if there is one."""
    newest = {record["kind"]: record for record in written[-50:]}
    train_part = {name: newest["train"][name] for name in ("step", "epoch", "loss", "lr")}
    return train_part | ({"accuracy": newest["eval"]["accuracy"]} if "eval" in newest else {})


@contextlib.contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, while this block runs in the main thread; elsewhere it is never set."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = signal.signal(signal.SIGTERM, lambda number, frame: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)

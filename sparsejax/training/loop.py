"""The training loop of one trial: all its seeds at once, resumable at every chunk.

The steps are cut into chunks on a fixed grid; a chunk is one dispatch. The report of a chunk is read after the next
one is under way, so that the device does not wait for the host. Checkpoints lie on the grid, hold the whole state,
and are made only after every loss up to them was seen to be finite.
"""

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from sparsejax.files import write_json
from sparsejax.training import records
from sparsejax.training.checkpoint import Checkpoints
from sparsejax.training.compiling import CACHE, kept_in
from sparsejax.training.config import resolve
from sparsejax.training.errors import Preempted
from sparsejax.training.metrics import MetricsWriter
from sparsejax.training.order import epoch_order
from sparsejax.training.profile import span
from sparsejax.training.run_dir import finished, opened
from sparsejax.training.state import TrainState
from sparsejax.training.trial import Trial, prepare

Progress = Callable[[int, int, dict[str, Any]], None]


def train(
    config: ConfigDict | Mapping[str, Any], workdir: str | Path, *, on_progress: Progress | None = None
) -> dict[str, Any]:
    """Trains one trial in `workdir`, or resumes it there, and returns its result (also in result.json).

    A run killed at any instant and started again ends with the same bits as one that was not. On SIGTERM the chunk
    under way is finished and saved. Compiled programs are kept beside `workdir`, in `.compiled` of its parent, for the
    runs there to share; JAX_ENABLE_COMPILATION_CACHE=false or JAX_COMPILATION_CACHE_DIR say otherwise.

    Args:
      config: fields as in `default_config`; missing ones take their defaults.
      workdir: the run's directory; made when everything in the config has been checked.
      on_progress: called as on_progress(done_steps, total_steps, last_metrics); the last is a dict with loss and
        accuracy per seed and lr.

    Raises:
      ConfigError: the config is wrong, differs from the one in workdir, or another process trains there.
      NonFiniteLoss: a loss was not finite, and config.stop_on_nonfinite is true.
      Preempted: SIGTERM came (a SystemExit with code 143).

    Example:
      >>> config = {"dataset": "digits", "method": "static", "sparsity": 0.95, "seeds": 3, "epochs": 1}
      >>> result = train(config, "runs/static")
      >>> result["steps"], result["weights"], result["weights_kept"]
      (11, 50200, [2511, 2511, 2511])
    """
    workdir, resolved = Path(workdir), resolve(config)
    if (result := finished(workdir, resolved)) is not None:
        return result
    trial = prepare(resolved)
    with opened(workdir, resolved), kept_in(workdir.parent / CACHE):
        if (result := finished(workdir, resolved)) is not None:
            return result
        return _run(trial, workdir, on_progress or (lambda done, total, last: None))


def _run(trial: Trial, workdir: Path, on_progress: Progress) -> dict[str, Any]:
    started, earlier = time.monotonic(), _seconds_so_far(workdir)
    checkpoints = Checkpoints(workdir / "checkpoints", trial.config["keep_checkpoints"])
    with span("checkpoint"):
        found = checkpoints.restore(trial.like)
    first = None
    if found:
        step, state = found
    else:
        with span("init"):
            step, (state, first) = 0, trial.init()
            first = jax.device_get(first)
    with contextlib.closing(MetricsWriter(workdir / "metrics.jsonl", step)) as writer, _closing(checkpoints):

        def save(step: int, state: TrainState) -> None:
            with span("checkpoint"):
                writer.sync()
                checkpoints.save(step, state)
                write_json(workdir / "timing.json", {"step": step, "seconds": earlier + time.monotonic() - started})

        if first:  # the masks at step 0; a dense run has none
            writer.write(records.masks_record(0, first, trial.sizes))
        _loop(trial, step, state, writer, save, on_progress)
    result = records.make_result(
        trial.config, writer.records, steps=trial.grid.total, sizes=trial.sizes, layers=trial.layers
    )
    result["seconds"] = round(earlier + time.monotonic() - started, 3)
    write_json(workdir / "result.json", result)
    return result


@contextlib.contextmanager
def _closing(checkpoints: Checkpoints) -> Iterator[None]:
    try:
        yield
    finally:
        with span("checkpoint"):
            checkpoints.close()


def _seconds_so_far(workdir: Path) -> float:
    """What earlier processes spent on this run, up to their last checkpoint. Not part of what must be identical."""
    try:
        return float(json.loads((workdir / "timing.json").read_text())["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def _loop(trial: Trial, step: int, state: TrainState, writer: MetricsWriter, save, on_progress: Progress) -> None:
    """Trains from `step` to the end; `save(step, state)` is called with every record up to that step written."""
    grid, programs, test, seeds = trial.grid, trial.programs, trial.test, trial.config["seeds"]
    order, waiting = None, None
    with _sigterm() as terminated:
        while step < grid.total:
            if order is None or step % grid.epoch == 0:
                with span("data"):
                    order = epoch_order(seeds, step // grid.epoch, len(trial.train_y))
            stop = grid.after(step)
            with span("dispatch"):
                state, report = programs.chunk(trial.rates, state, trial.train_x, trial.train_y, order, stop - step)
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
    with span("train"):
        report = jax.device_get(report)
    with span("evaluate"):
        scores = jax.device_get(scores)
    if trial.config["stop_on_nonfinite"]:
        records.check_finite(report, step, trial.config["seeds"])
    epoch = step / trial.grid.epoch
    with span("metrics"):
        writer.write(records.train_record(step, epoch, report))
        if records.changed(report["masks"]):
            writer.write(records.masks_record(step, report["masks"], trial.sizes))
        if scores is not None:
            writer.write(records.eval_record(step, epoch, scores, trial.test.size))
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

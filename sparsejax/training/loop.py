"""The training loop of one trial: all its seeds at once, resumable at every chunk.

The steps are cut into chunks on a fixed grid; a chunk is one dispatch. The report of a chunk is read after the next
one is under way, so that the device does not wait for the host. Checkpoints lie on the grid, hold the whole state,
and are made only after every loss up to them was seen to be finite.
"""

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from sparsejax.distributions import erk
from sparsejax.files import write_json
from sparsejax.leaves import flax_layout, named_leaves
from sparsejax.masks import get_masks, sparse_states
from sparsejax.patterns import NM
from sparsejax.training import records
from sparsejax.training.best import best_evaluation, exhausted
from sparsejax.training.checkpoint import Checkpoints
from sparsejax.training.compiling import CACHE, kept_in
from sparsejax.training.config import resolve
from sparsejax.training.errors import Preempted
from sparsejax.training.methods import arguments_of
from sparsejax.training.metrics import MetricsWriter
from sparsejax.training.profile import span
from sparsejax.training.run_dir import finished, opened
from sparsejax.training.start import Start, describe
from sparsejax.training.state import TrainState, masks_by_path
from sparsejax.training.storage import storage
from sparsejax.training.throughput import Throughput
from sparsejax.training.trial import Trial, prepare
from sparsejax.training.writers import open_writers

Progress = Callable[[int, int, dict[str, Any]], None]


def train(
    config: ConfigDict | Mapping[str, Any],
    workdir: str | Path,
    *,
    start: Start | None = None,
    until: int | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Trains one trial in `workdir`, or resumes it there, and returns its result (also in result.json).

    A run killed at any instant and started again ends with the same bits as one that was not. On SIGTERM the chunk
    under way is finished and saved. Compiled programs are kept beside `workdir`, in `.compiled` of its parent, for the
    runs there to share; JAX_ENABLE_COMPILATION_CACHE=false or JAX_COMPILATION_CACHE_DIR say otherwise.

    Args:
      config: fields as in `default_config`; missing ones take their defaults.
      workdir: the run's directory; made when everything in the config has been checked.
      start: where the run begins, if not at the config's initial weights; the same at each call.
      until: the step to end at, before the config's last; schedules are cut off there. At the step of the start,
        nothing is trained: that state is evaluated and saved.
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
    workdir, resolved, begun = Path(workdir), resolve(config), describe(start, until)
    if (result := finished(workdir, resolved, begun)) is not None:
        return result
    trial = prepare(resolved, start, until)
    with opened(workdir, resolved, begun), kept_in(workdir.parent / CACHE):
        if (result := finished(workdir, resolved, begun)) is not None:
            return result
        return _run(trial, workdir, on_progress or (lambda done, total, last: None))


def _run(trial: Trial, workdir: Path, on_progress: Progress) -> dict[str, Any]:
    started, earlier, config = time.monotonic(), _seconds_so_far(workdir), trial.config
    checkpoints = Checkpoints(workdir / "checkpoints", config["keep_checkpoints"])
    with span("checkpoint"):
        found = checkpoints.restore(trial.like, trial.place.of(trial.like))
    first, nothing_to_train = None, trial.grid.first >= trial.grid.total
    if found and not nothing_to_train:
        step, state = found
        trial.feed.restore(step, checkpoints.data(step))
    else:
        with span("init"):
            found, step, (state, first) = None, trial.grid.first, trial.init()
            first = jax.device_get(first)
    also, kept = open_writers(config["log"], workdir, config, step), step if found else 0
    with contextlib.closing(MetricsWriter(workdir / "metrics.jsonl", kept, also)) as writer, _closing(checkpoints):

        def save(step: int, state: TrainState) -> None:
            with span("checkpoint"):
                writer.sync()
                checkpoints.save(step, state, trial.feed.state())
                write_json(workdir / "timing.json", {"step": step, "seconds": earlier + time.monotonic() - started})

        if first:  # the masks at the start; a dense run has none
            writer.write(records.masks_record(step, first, trial.sizes))
        if nothing_to_train:
            writer.write(_evaluated(trial, step, state))
            if step not in checkpoints.steps():  # a killed run was here before, with the same bits
                save(step, state)
        with _best(trial, workdir) as save_best, contextlib.closing(trial.feed):
            speed = Throughput(workdir / "timing.jsonl", trial.rates_of_a_step, writer.pass_on)
            step, state = _loop(_Run(trial, writer, speed, save, save_best, on_progress), step, state)
    result = records.make_result(
        config,
        writer.records,
        task=trial.task.name,
        metric=trial.task.metric,
        steps=step,
        total=trial.grid.total,
        sizes=trial.sizes,
        layers=trial.layers,
        stored=_stored(trial, state),
        skipped=trial.skipped,
    )
    result["seconds"] = round(earlier + time.monotonic() - started, 3)
    write_json(workdir / "result.json", result)
    return result


def _stored(trial: Trial, state: TrainState) -> dict[str, Any]:
    """What the last masks save, N:M where that is their pattern; and the densities of ERK, to compare theirs with."""
    pattern = arguments_of(trial.config).get("pattern")
    nm = (pattern.n, pattern.m) if isinstance(pattern, NM) else None
    found = storage(trial.like.params, jax.device_get(masks_by_path(state.opt_state)), nm, trial.layout)
    if not trial.config["sparsity"]:
        return found
    shapes = {path: leaf for path, leaf in named_leaves(trial.like.params) if path in trial.sizes}
    one = {path: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for path, leaf in shapes.items()}
    return found | {"density_erk": erk(one, 1 - trial.config["sparsity"], trial.layout or flax_layout)}


class _Run(NamedTuple):
    """What the loop works with."""

    trial: Trial
    writer: MetricsWriter
    speed: Throughput
    save: Callable[[int, TrainState], None]
    save_best: Callable[[int, TrainState], None] | None
    on_progress: Progress


@contextlib.contextmanager
def _best(trial: Trial, workdir: Path) -> Iterator[Callable[[int, TrainState], None] | None]:
    """What saves the best checkpoint, where the config wants it kept."""
    if not trial.config["keep_best"]:
        yield None
        return
    best = Checkpoints(workdir / "best", keep=1)
    best.drop_damaged(trial.like)

    def save(step: int, state: TrainState) -> None:
        if step not in best.steps():  # a killed run was here before, with the same bits
            best.save(step, state)

    with _closing(best):
        yield save


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


def _loop(run: _Run, step: int, state: TrainState) -> tuple[int, TrainState]:
    """Trains from `step` to the end, and returns where that was; saves with every record up to that step written."""
    trial, grid = run.trial, run.trial.grid
    watched = trial.config["keep_best"] or trial.config["patience"] > 0
    waiting: list[_Done] = []  # one at most

    def catch_up() -> None:
        while waiting:
            _write(run, waiting.pop())

    with _sigterm() as terminated:
        while step < grid.total and not _exhausted(run):
            stop = grid.after(step)
            with span("data"):
                feed = trial.feed(step, stop, catch_up)
            with span("dispatch"):
                state, report = trial.programs.chunk(trial.rates, state, trial.fixed, feed, stop - step)
                if trial.streamed and (grid.evaluates(stop) or grid.saves(stop)):
                    _come_to_rest(run, stop, report, catch_up)
                scores = _evaluate(trial, state) if grid.evaluates(stop) else None
                on_path = _on_path(trial, state) if scores is not None else None
            catch_up()
            step = stop
            waiting.append(_Done(stop, report, scores, on_path, trial.feed.skipped))
            saves = grid.saves(step) or terminated.is_set()
            if saves or (watched and scores is not None):  # what is kept, and whether to go on, hangs on the scores
                catch_up()
                if scores is not None and _is_best(run, step):
                    with span("checkpoint"):
                        run.save_best(step, state)  # type: ignore[misc]
                if saves or _exhausted(run):
                    run.save(step, state)
                run.speed.pause()
            if terminated.is_set():
                raise Preempted(step)
    return step, state


def _evaluate(trial: Trial, state: TrainState) -> dict[str, jax.Array]:
    return trial.test.summed(trial.programs.evaluate, trial.programs.to_evaluate(state))


def _on_path(trial: Trial, state: TrainState) -> dict[str, jax.Array] | None:
    if not trial.config["log_topology"] or not sparse_states(state.opt_state):
        return None
    return trial.programs.on_path(state.params, state.model_state, get_masks(state.opt_state))


def _evaluated(trial: Trial, step: int, state: TrainState) -> dict[str, Any]:
    """The record of an evaluation that nothing runs beside."""
    scores = trial.task.scores(jax.device_get(_evaluate(trial, state)), trial.test.size)
    return records.eval_record(step, step / trial.grid.epoch, scores, trial.test.skipped)


def _exhausted(run: _Run) -> bool:
    return exhausted(run.writer.records, run.trial.task.metric, run.trial.config["patience"])


def _is_best(run: _Run, step: int) -> bool:
    best = best_evaluation(run.writer.records, run.trial.task.metric) if run.save_best else None
    return best is not None and best["step"] == step


def _come_to_rest(run: _Run, step: int, report: Any, catch_up: Callable[[], None]) -> None:
    """Waits for a chunk of a stream, whose evaluation keeps this process busy as long as the device."""
    catch_up()
    run.speed.pause()  # the chunk before was not seen as soon as it was done, this one is
    jax.block_until_ready(report)
    run.speed.seen(step)


class _Done(NamedTuple):
    """A chunk that was handed to the device: where it ends, its report, its evaluation, examples skipped up to it.

    `on_path` is how many weights lie on a path, None where that is not logged.
    """

    step: int
    report: Any
    scores: Any
    on_path: Any
    skipped: int


def _write(run: _Run, done: _Done) -> None:
    """Waits for a chunk, checks its losses, writes its records."""
    (step, report, scores, on_path, skipped), trial, writer = done, run.trial, run.writer
    with span("train"):
        report = jax.device_get(report)
    run.speed.seen(step)
    with span("evaluate"):
        scores, on_path = jax.device_get((scores, on_path))
    if trial.config["stop_on_nonfinite"]:
        records.check_finite(report, step, trial.config["seeds"])
    epoch = step / trial.grid.epoch
    with span("metrics"):
        writer.write(records.train_record(step, epoch, report, skipped))
        if records.changed(report["masks"]):
            writer.write(records.masks_record(step, report["masks"], trial.sizes))
        if scores is not None:
            tested = trial.task.scores(scores, trial.test.size)
            places = math.prod(trial.task.example.shape) if step == trial.grid.total else 0
            writer.write(records.topology_record(step, epoch, report, scores, on_path, trial.sizes, places=places))
            writer.write(records.eval_record(step, epoch, tested, trial.test.skipped))
            run.speed.record(step)
            run.speed.pause()
        run.on_progress(step, trial.grid.total, _last_metrics(writer.records))


def _last_metrics(written: list[dict[str, Any]]) -> dict[str, Any]:
    """The newest training loss and learning rate, and the newest test accuracy or loss if there is one."""
    newest = {record["kind"]: record for record in written[-50:]}
    train_part = {name: newest["train"][name] for name in ("step", "epoch", "loss", "lr")}
    tested = newest.get("eval", {})
    if "accuracy" in tested:
        return train_part | {"accuracy": tested["accuracy"]}
    return train_part | ({"validation loss": tested["loss"]} if tested else {})


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

"""A sweep on this machine: what is left to do, in processes or in this one, and the report at the end.

OUT/config.json          the trials with their resolved configs
OUT/trials/<name>/       the run directories; log.txt is the output of the trial's process
OUT/trials/<name>/failed.json    only where the last try failed
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from sparsejax.launch import config as configs
from sparsejax.launch import local, trials
from sparsejax.launch.config import InputError
from sparsejax.launch.files import locked, read_json, write_json
from sparsejax.launch.progress import Display, duration
from sparsejax.launch.signals import Stops
from sparsejax.launch.trials import Trial
from sparsejax.report import collect, write

FAILED = 1  # exit code of a sweep in which a trial failed
FINAL_CODES = (2, 3)  # of a trial: bad input, non-finite loss; a second try would end the same


def run_sweep(spec: str, overrides: Mapping[str, str], out: Path, workers: int, console: Console) -> int:
    """Runs the trials that are not finished, then writes and shows the table and the plots.

    Args:
      spec: the config file, FILE or FILE:arg.
      overrides: field -> text, of the command line.
      out: the sweep's directory.
      workers: local processes at a time; 0 runs the trials here, in turn, sharing compiled programs.
      console: where progress and the table go.

    Returns:
      exit code: 0; 1 if a trial failed; 128 + n when signal n stopped it.

    Raises:
      InputError: one line; nothing has been written then.
    """
    source = configs.read_source(spec)
    _check_out(out)
    mark = trials.fingerprint(source, spec, overrides, _version())
    before = trials.sweep_config(out)
    if (
        before
        and before.get("fingerprint") == mark
        and all(_result(out, t["name"]) for t in before["trials"])
    ):
        console.print(
            f"all {len(before['trials'])} trials in {out} are done", highlight=False, soft_wrap=True
        )
        write.show_sweep(out, console, redraw=False)
        return 0
    plan = trials.expand(configs.load(spec, hyper_too=True), overrides)
    _check_unchanged(out, plan)
    trials.check_data(trial for trial in plan if not _result(out, trial.name))
    with _claimed(out):
        content = {"config_file": spec, "overrides": dict(overrides), "fingerprint": mark}
        write_json(out / "config.json", {**content, "trials": [trial._asdict() for trial in plan]})
        code = _run_pending(out, plan, workers, console)
        if code < 128:
            write.show_sweep(out, console)
        return code


def _run_pending(out: Path, plan: Sequence[Trial], workers: int, console: Console) -> int:
    todo = [trial for trial in plan if not _result(out, trial.name)]
    done = len(plan) - len(todo)
    if not todo:
        console.print(f"all {done} trials in {out} are done", highlight=False, soft_wrap=True)
        return 0
    with Display(console, len(plan), done) as display, Stops(here=workers == 0) as stops:
        if done:
            display.say(f"{done} of {len(plan)} trials in {out} are done already")
        run = _here if workers == 0 else _in_processes
        failed = run(out, todo, workers, display, stops)
    if stops.signal:
        console.print("stopped; the same command goes on from here", highlight=False)
        return 128 + stops.signal
    return FAILED if failed else 0


def _in_processes(out: Path, todo: Sequence[Trial], workers: int, display: Display, stops: Stops) -> int:
    """Runs each trial as a process of its own; returns how many failed."""
    jobs = [
        local.Job(trial.name, trial_command(out, trial.name), _run_dir(out, trial.name) / "log.txt")
        for trial in todo
    ]
    failed = 0
    events = local.run(jobs, workers=workers, final_codes=FINAL_CODES, stop=lambda: stops.count)
    with contextlib.closing(events):
        for event in events:
            log = _run_dir(out, event.name) / "log.txt"
            if isinstance(event, local.Started):
                display.start(event.name)
            elif isinstance(event, local.Progress):
                display.step(event.name, event.done, event.total)
            elif event.code == 0 and _result(out, event.name):
                _succeeded(out, event.name, display)
            elif stops.count:
                display.end(event.name)
            elif event.retried:
                display.end(event.name)
                display.say(f"{event.name}: {_how(event.code)}; it will be tried once more; log: {log}")
            else:
                failed += 1
                _note_failure(out, event.name, _how(event.code), event.attempts, _last_line(log), display)
    return failed


def trial_command(out: Path, name: str) -> list[str]:
    """The command that runs one trial, which a person can also type."""
    spec = f"{out / 'config.json'}:{name}"
    return [
        sys.executable,
        "-m",
        "sparsejax.cli",
        "train",
        "--config",
        spec,
        "--workdir",
        str(_run_dir(out, name)),
    ]


def _here(out: Path, todo: Sequence[Trial], workers: int, display: Display, stops: Stops) -> int:
    """Runs one trial after the other in this process; returns how many failed."""
    del workers
    failed = 0
    for trial in todo:
        for attempt in (1, 2):
            if stops.count:
                return failed
            display.start(trial.name)
            error = _train_here(out, trial.name, display, stops)
            if isinstance(error, SystemExit):  # SIGTERM reached the run itself, which has saved
                stops.note(signal.SIGTERM)
            if stops.count and not _result(out, trial.name):
                return failed
            if error is None:
                _succeeded(out, trial.name, display)
                break
            final = attempt == 2 or _is_final(error)
            log = _append_log(out, trial.name, error)
            if not final:
                display.say(f"{trial.name}: {_named(error)}; it will be tried once more; log: {log}")
            else:
                failed += 1
                _note_failure(out, trial.name, "an error", attempt, _named(error), display)
                break
    return failed


def _train_here(out: Path, name: str, display: Display, stops: Stops) -> BaseException | None:
    from sparsejax.training import train

    def follow(done: int, total: int, metrics: Mapping[str, Any]) -> None:
        display.step(name, done, total, metrics)
        stops.forward()

    try:
        train(configs.load(f"{out / 'config.json'}:{name}").config, _run_dir(out, name), on_progress=follow)
    except (Exception, SystemExit) as error:
        return error
    return None


def _is_final(error: BaseException) -> bool:
    from sparsejax.training import ConfigError, NonFiniteLoss

    return isinstance(error, ConfigError | NonFiniteLoss)


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _append_log(out: Path, name: str, error: BaseException) -> Path:
    log = _run_dir(out, name) / "log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        file.writelines(traceback.format_exception(error))
    return log


def _succeeded(out: Path, name: str, display: Display) -> None:
    (_run_dir(out, name) / "failed.json").unlink(missing_ok=True)
    collect.write_sweep_metrics(out)
    result = _result(out, name) or {}
    accuracy = result.get("accuracy") or [float("nan")]
    percent = 100 * sum(accuracy) / len(accuracy)
    display.finish(name, f"accuracy {percent:.2f} % in {duration(result.get('seconds', 0))}")


def _note_failure(out: Path, name: str, how: str, attempts: int, reason: str, display: Display) -> None:
    log = _run_dir(out, name) / "log.txt"
    entry = {"how": how, "attempts": attempts, "reason": reason, "log": str(log)}
    write_json(_run_dir(out, name) / "failed.json", entry)
    times = "once" if attempts == 1 else "twice" if attempts == 2 else f"{attempts} times"
    display.finish(name, f"failed {times} ({how}): {reason}; log: {log}")


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _last_line(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else "no output"
    return "no log"


def _check_out(out: Path) -> None:
    """Refuses a place that is not a directory of ours, before anything is made."""
    for path in (out, *out.parents):
        if path.exists() and not path.is_dir():
            raise InputError(f"--out: {path} is a file, not a directory")
    if (
        out.is_dir()
        and trials.sweep_config(out) is None
        and any(not p.name.startswith(".") for p in out.iterdir())
    ):
        raise InputError(f"--out: {out} is not empty and holds no sweep")


def _check_unchanged(out: Path, plan: Sequence[Trial]) -> None:
    """What is on disk under a trial's name must be that trial."""
    for trial in plan:
        old = read_json(_run_dir(out, trial.name) / "config.json")
        changed = trials.difference(old, trial.config) if isinstance(old, dict) else ""
        if changed:
            raise InputError(
                f"--out: trial {trial.name} in {out} has another config: {changed}; choose another --out"
            )


@contextlib.contextmanager
def _claimed(out: Path) -> Iterator[None]:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".lock").touch()
    except OSError as error:
        raise InputError(f"--out: {out} cannot be written: {error.strerror}") from error
    with locked(out / ".lock") as free:
        if not free:
            raise InputError(f"--out: another process is running the sweep in {out}")
        yield


def _run_dir(out: Path, name: str) -> Path:
    return out / "trials" / name


def _result(out: Path, name: str) -> dict[str, Any] | None:
    return read_json(_run_dir(out, name) / "result.json")


def _version() -> str:
    try:
        return importlib.metadata.version("sparsejax")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"

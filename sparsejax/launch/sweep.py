"""A sweep on this machine: what is left to do, in processes or in this one, and the report at the end.

OUT/config.json          the trials with their resolved configs
OUT/trials/<name>/       the run directories; log.txt is the output of the trial's process
OUT/trials/<name>/failed.json    only where the last try failed
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from sparsejax.files import locked, read_json, write_json
from sparsejax.launch import config as configs
from sparsejax.launch import local, outcome, trials
from sparsejax.launch.config import InputError
from sparsejax.launch.progress import Display
from sparsejax.launch.signals import Stops
from sparsejax.launch.terminal import say
from sparsejax.launch.trials import Trial
from sparsejax.report import write

FAILED = 1  # exit code of a sweep in which a trial failed
FINAL_CODES = (2, 3)  # of a trial: bad input, non-finite loss; a second try would end the same


def run_sweep(
    spec: str, overrides: Mapping[str, str], out: Path, workers: int, console: Console, profile: bool = False
) -> int:
    """Runs the trials that are not finished, then writes and shows the table and the plots.

    Args:
      spec: the config file, FILE or FILE:arg.
      overrides: field -> text, of the command line.
      out: the sweep's directory.
      workers: local processes at a time; 0 runs the trials here, in turn, sharing compiled programs.
      console: where progress and the table go.
      profile: whether to show where the time of each trial went, and write it to profile.json.

    Returns:
      exit code: 0; 1 if a trial failed; 128 + n when signal n stopped it.

    Raises:
      InputError: one line; nothing has been written then.
    """
    source = configs.read_source(spec)
    _check_out(out)
    mark = trials.fingerprint(source, spec, overrides, _version())
    before = trials.sweep_config(out)
    if before and before.get("fingerprint") == mark and _all_done(out, before["trials"]):
        say(console, f"all {len(before['trials'])} trials in {out} are done")
        write.show_sweep(out, console, redraw=False)
        return 0
    plan = trials.expand(configs.load(spec, hyper_too=True), overrides)
    _check_unchanged(out, plan)
    trials.check_data(trial for trial in plan if not outcome.result_of(out, trial.name))
    from sparsejax.launch import profiles  # here: it brings jax

    with _claimed(out), profiles.profiled_sweep(profile, out, workers, console):
        content = {"config_file": spec, "overrides": dict(overrides), "fingerprint": mark}
        write_json(out / "config.json", {**content, "trials": [trial._asdict() for trial in plan]})
        with profiles.while_trials_run():
            code = _run_pending(out, plan, workers, console, profile)
        if code < 128:
            with profiles.span("report"):
                write.show_sweep(out, console)
        return code


def _run_pending(out: Path, plan: Sequence[Trial], workers: int, console: Console, profile: bool) -> int:
    todo = [trial for trial in plan if not outcome.result_of(out, trial.name)]
    done = len(plan) - len(todo)
    if not todo:
        say(console, f"all {done} trials in {out} are done")
        return 0
    with Display(console, len(plan), done) as display, Stops(here=workers == 0) as stops:
        if done:
            display.say(f"{done} of {len(plan)} trials in {out} are done already")
        if workers == 0:
            from sparsejax.launch import here  # here: it brings jax

            failed = here.run(out, todo, display, stops, profile)
        else:
            failed = _in_processes(out, todo, workers, display, stops, profile)
    if stops.signal:
        say(console, "stopped; the same command goes on from here")
        return 128 + stops.signal
    return FAILED if failed else 0


def _in_processes(out: Path, todo: Sequence[Trial], workers: int, display: Display, stops: Stops, profile: bool) -> int:
    """Runs each trial as a process of its own; returns how many failed."""
    flags = ["--profile"] if profile else []
    jobs = [
        local.Job(trial.name, [*trial_command(out, trial.name), *flags], outcome.run_dir(out, trial.name) / "log.txt")
        for trial in todo
    ]
    failed = 0
    events = local.run(jobs, workers=workers, final_codes=FINAL_CODES, stop=lambda: stops.count)
    with contextlib.closing(events):
        for event in events:
            log = outcome.run_dir(out, event.name) / "log.txt"
            if isinstance(event, local.Started):
                display.start(event.name)
            elif isinstance(event, local.Progress):
                display.step(event.name, event.done, event.total)
            elif event.code == 0 and outcome.result_of(out, event.name):
                outcome.succeeded(out, event.name, display)
            elif stops.count:
                display.end(event.name)
            elif event.retried:
                display.end(event.name)
                display.say(f"{event.name}: {_how(event.code)}; it will be tried once more; log: {log}")
            else:
                failed += 1
                outcome.failed(out, event.name, _how(event.code), event.attempts, outcome.last_line(log), display)
    return failed


def trial_command(out: Path, name: str) -> list[str]:
    """The command that runs one trial, which a person can also type."""
    spec = f"{out / 'config.json'}:{name}"
    program = [sys.executable, "-m", "sparsejax.cli", "train"]
    return [*program, "--config", spec, "--workdir", str(outcome.run_dir(out, name))]


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _check_out(out: Path) -> None:
    """Refuses a place that is not a directory of ours, before anything is made."""
    for path in (out, *out.parents):
        if path.exists() and not path.is_dir():
            raise InputError(f"--out: {path} is a file, not a directory")
    ours = trials.sweep_config(out) is not None
    if out.is_dir() and not ours and any(not path.name.startswith(".") for path in out.iterdir()):
        raise InputError(f"--out: {out} is not empty and holds no sweep")


def _check_unchanged(out: Path, plan: Sequence[Trial]) -> None:
    """What is on disk under a trial's name must be that trial."""
    from sparsejax.training.run_dir import completed  # here: it brings jax

    for trial in plan:
        old = read_json(outcome.run_dir(out, trial.name) / "config.json")
        changed = trials.difference(completed(old), completed(trial.config)) if isinstance(old, dict) else ""
        if changed:
            raise InputError(f"--out: trial {trial.name} in {out} has another config: {changed}; choose another --out")


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


def _all_done(out: Path, entries: Sequence[Mapping[str, Any]]) -> bool:
    return all(outcome.result_of(out, entry["name"]) for entry in entries)


def _version() -> str:
    try:
        return importlib.metadata.version("sparsejax")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"

"""The trials of a sweep in this process, one after the other, so that they share compiled programs."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsejax.launch import config as configs
from sparsejax.launch import outcome, profiles
from sparsejax.launch.progress import Display
from sparsejax.launch.signals import Stops
from sparsejax.launch.trials import Trial
from sparsejax.training import ConfigError, NonFiniteLoss, Preempted, train


def run(out: Path, todo: Sequence[Trial], display: Display, stops: Stops, profile: bool = False) -> int:
    """Runs one trial after the other in this process, each with a profile.json if asked; returns how many failed."""
    failures = 0
    for trial in todo:
        for attempt in (1, 2):
            display.start(trial.name)
            try:
                with profiles.profiled(profile, outcome.run_dir(out, trial.name)):
                    error = _train_here(out, trial.name, display)
            except Preempted:
                if not stops.count:  # it was SIGTERM itself, to which the run listened
                    stops.note(signal.SIGTERM)
                return failures
            if error is None:
                outcome.succeeded(out, trial.name, display)
                break
            final = attempt == 2 or isinstance(error, ConfigError | NonFiniteLoss)
            log = outcome.append_log(out, trial.name, error)
            if final:
                failures += 1
                outcome.failed(out, trial.name, "exception", attempt, _named(error), display)
                break
            display.say(f"{trial.name}: {_named(error)}; it will be tried once more; log: {log}")
    return failures


def _train_here(out: Path, name: str, display: Display) -> Exception | None:
    def follow(done: int, total: int, metrics: Mapping[str, Any]) -> None:
        display.step(name, done, total, metrics)

    try:
        train(configs.load(f"{out / 'config.json'}:{name}").fresh(), outcome.run_dir(out, name), on_progress=follow)
    except Exception as error:
        return error
    return None


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"

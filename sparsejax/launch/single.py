"""One run: `sparsejax train`, at a terminal, in a pipe, or as a process of a sweep."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from sparsejax.files import read_json
from sparsejax.launch import config as configs
from sparsejax.launch.config import InputError
from sparsejax.launch.local import PROGRESS_FD
from sparsejax.launch.progress import brief, duration, score
from sparsejax.launch.signals import Stops
from sparsejax.launch.terminal import complain, say

NON_FINITE = 3  # exit code of a run whose loss stopped being finite: another try would end the same

Follow = Callable[[int, int, Mapping[str, Any]], None]


def run_train(spec: str, overrides: Mapping[str, str], workdir: Path, console: Console, profile: bool = False) -> int:
    """Trains one run in `workdir`, or goes on with it.

    Args:
      spec: the config file, FILE or FILE:arg.
      overrides: field -> text, of the command line.
      workdir: the run directory.
      console: where progress and the last line go.
      profile: whether to show where the time went, and write it to profile.json.

    Returns:
      exit code: 0; 3 for a non-finite loss; 128 + n when signal n stopped it.

    Raises:
      InputError: one line; nothing has been written then.
    """
    config = configs.load(spec).fresh()
    configs.apply(config, overrides)
    done_before = (workdir / "result.json").exists()
    from sparsejax.launch import profiles  # here: it brings jax
    from sparsejax.training import ConfigError, NonFiniteLoss, Preempted, train

    with Stops(here=True) as stops:
        try:
            with (
                profiles.profiled(profile and not done_before, workdir, since_start=True),
                _following(console) as follow,
            ):
                result = train(config, workdir, on_progress=follow)
        except ConfigError as error:
            raise InputError(str(error)) from error
        except NonFiniteLoss as error:
            complain(f"{error}; run directory: {workdir}")
            return NON_FINITE
        except Preempted as error:
            text = f"stopped and saved at step {error.step:,} in {workdir}; the same command goes on"
            say(console, text)
            return 128 + (stops.signal or signal.SIGTERM)
    already = "done already: " if done_before else ""
    say(console, f"{already}{summary(result)}; {workdir}")
    if profile and PROGRESS_FD not in os.environ:  # a sweep shows those of all its trials together
        profiles.show({workdir.name: read_json(workdir / profiles.NAME) or {}}, console)
    return 0


def summary(result: Mapping[str, Any]) -> str:
    """`accuracy 97.22 % (96.94..97.50, 3 seeds), 2.0 % of 266,200 weights kept, 12 s`."""
    kept = result["weights_kept"]
    share = 100 * sum(kept) / len(kept) / max(result["weights"], 1)
    parts = [score(result), f"{share:.1f} % of {result['weights']:,} weights kept"]
    return ", ".join([*parts, duration(result.get("seconds", 0))])


@contextlib.contextmanager
def _following(console: Console):
    """How progress is shown: told to the sweep, drawn as a bar, or a line at each tenth."""
    if PROGRESS_FD in os.environ:
        yield _tell(int(os.environ[PROGRESS_FD]))
    elif not console.is_terminal:
        yield _lines(console)
    else:
        columns = (
            TextColumn("step {task.completed:,.0f} of {task.total:,.0f}"),
            BarColumn(bar_width=32),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(compact=True),
            TextColumn("left  {task.fields[note]}"),
        )
        with Progress(*columns, console=console, transient=True, speed_estimate_period=120) as bar:
            task = bar.add_task("", total=1, note="compiling", visible=False)

            def draw(done: int, total: int, metrics: Mapping[str, Any]) -> None:
                bar.update(task, completed=done, total=total, note=brief(metrics), visible=True)

            yield draw


def _tell(descriptor: int) -> Follow:
    def tell(done: int, total: int, metrics: Mapping[str, Any]) -> None:
        try:
            os.write(descriptor, f"{done} {total}\n".encode())
        except BrokenPipeError:  # the sweep is gone, however it ended: save and end too
            os.kill(os.getpid(), signal.SIGTERM)

    return tell


def _lines(console: Console) -> Follow:
    shown = [0]

    def line(done: int, total: int, metrics: Mapping[str, Any]) -> None:
        if (tenth := 10 * done // max(total, 1)) > shown[0]:
            shown[0] = tenth
            say(console, f"step {done:,} of {total:,}: {brief(metrics)}")

    return line

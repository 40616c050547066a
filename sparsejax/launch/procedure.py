"""One procedure: `sparsejax procedure`, its rounds one after the other in this process."""

from __future__ import annotations

import inspect
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from sparsejax.launch import config as configs
from sparsejax.launch.config import InputError, nearest
from sparsejax.launch.progress import brief
from sparsejax.launch.signals import Stops
from sparsejax.launch.single import NON_FINITE, summary
from sparsejax.launch.terminal import complain, say

_OWN = ("config", "workdir", "on_progress")  # arguments that are not the user's to set by --args


def run_procedure(
    name: str,
    spec: str,
    overrides: Mapping[str, str],
    options: Mapping[str, str],
    workdir: Path,
    console: Console,
) -> int:
    """Runs a procedure in `workdir`, or goes on with it; a line for each round.

    Args:
      name: of the procedure.
      spec: the config file, FILE or FILE:arg.
      overrides: field -> text, of `--config.field`.
      options: argument -> text, of `--args.name`.
      workdir: the procedure's directory.
      console: where the lines go.

    Returns:
      exit code, as `run_train`.

    Raises:
      InputError: one line; nothing has been written then, unless it is a later round that cannot begin.
    """
    file = configs.load(spec)
    config = file.fresh()
    configs.apply(config, overrides)
    from sparsejax.training import ConfigError, NonFiniteLoss, Preempted  # here: it brings jax
    from sparsejax.training.procedures import PROCEDURES

    if name not in PROCEDURES:
        raise InputError(f"{name}: no such procedure{nearest(name, PROCEDURES)} one of {', '.join(PROCEDURES)}")
    arguments = _arguments(PROCEDURES[name], options)
    with Stops(here=True) as stops:
        try:
            for done in PROCEDURES[name](config, workdir, on_progress=_tenths(console), **arguments):
                say(console, f"{done.name}: {summary(done.result)}")
        except ConfigError as error:
            raise InputError(str(error)) from error
        except NonFiniteLoss as error:
            complain(f"{error}; directory: {workdir}")
            return NON_FINITE
        except Preempted as error:
            say(console, f"stopped and saved at step {error.step:,} of a round in {workdir}; the same command goes on")
            return 128 + (stops.signal or signal.SIGTERM)
    say(console, f"done; sparsejax report {workdir} shows the table")
    return 0


def _arguments(procedure: Callable[..., Any], options: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of a procedure, from their texts."""
    known = [name for name in inspect.signature(procedure).parameters if name not in _OWN]
    for option in options:
        if option not in known:
            raise InputError(f"--args.{option}: no such argument{nearest(option, known)} one of {', '.join(known)}")
    return {option: configs.literal(text) for option, text in options.items()}


def _tenths(console: Console) -> Callable[[int, int, Mapping[str, Any]], None]:
    """At a terminal, one line that the next one writes over; elsewhere nothing within a round."""

    def show(done: int, total: int, metrics: Mapping[str, Any]) -> None:
        if console.is_terminal and 10 * done // max(total, 1) != 10 * (done - 1) // max(total, 1):
            console.print(f"step {done:,} of {total:,}: {brief(metrics)}", end="\r" if done < total else "\n")

    return show

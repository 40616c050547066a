"""A run's directory: one process at a time, the config that it belongs to, the mark that it is done."""

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sparsejax.files import write_json
from sparsejax.training.config import Resolved, first_difference
from sparsejax.training.errors import ConfigError
from sparsejax.training.fields import RULES
from sparsejax.training.optimizers import own_values

# A run may go on on other devices (its bits are then others, to rounding), and be logged elsewhere.
_MAY_DIFFER = {"mesh", "log"}
# Nor does what is read hang on these: where the one before stopped at a damaged file, leaving it out goes on.
_MAY_DIFFER_IN_DATA = {"workers", "on_error"}


def finished(workdir: Path, config: Resolved, start: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """The result of a run that is done; None if it has still to run. Writes nothing.

    Args:
      workdir, config: of the run.
      start: what `start.describe` says of where it begins.

    Raises:
      ConfigError: if the directory belongs to a run with another config, or that began elsewhere.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"workdir: {str(workdir)!r} is not a directory")
    written = _read(workdir / "config.json")
    if written is not None and (difference := first_difference(completed(written), _compared(config))):
        raise ConfigError(f"workdir {workdir} belongs to another config: {difference}; use another workdir")
    if written is not None and (_read(workdir / "start.json") or {}) != (start or {}):
        raise ConfigError(f"workdir {workdir} belongs to a run that began elsewhere (start.json); use another workdir")
    return _read(workdir / "result.json") if written is not None else None


def completed(written: Mapping[str, Any]) -> Resolved:
    """A config.json with the fields that have come since it was written, at the defaults that mean what was then."""
    whole = {field: rule[0] for field, rule in RULES.items()} | dict(written)
    return _compared(whole | own_values(whole))


def _compared(config: Mapping[str, Any]) -> Resolved:
    data = {name: value for name, value in config["data"].items() if name not in _MAY_DIFFER_IN_DATA}
    return {field: value for field, value in config.items() if field not in _MAY_DIFFER} | {"data": data}


@contextlib.contextmanager
def opened(workdir: Path, config: Resolved, start: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Makes the directory with its config.json, and start.json if there is a start, and holds its lock.

    Raises:
      ConfigError: if another process holds the lock, or the directory cannot be made.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = open(workdir / ".lock", "w")  # noqa: SIM115 - closing it is what releases the lock
    except OSError as error:
        raise ConfigError(f"workdir: cannot write to {str(workdir)!r}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"workdir {workdir} is in use by another process (it holds {lock.name})") from None
        if start:
            write_json(workdir / "start.json", start)
        write_json(workdir / "config.json", config)
        yield


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}; move it away or use another workdir") from error

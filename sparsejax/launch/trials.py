"""From a config file to the list of trials: overrides applied, everything checked, each with its name."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sparsejax.launch import config as configs
from sparsejax.launch.config import ConfigFile, InputError


class Trial(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: of its directory, unique in the sweep.
      overrides: what it changes in the config file's config, as far as it changes the run.
      config: the resolved config.
    """

    name: str
    overrides: dict[str, Any]
    config: dict[str, Any]


def expand(file: ConfigFile, overrides: Mapping[str, str]) -> list[Trial]:
    """The trials of `get_hyper`, in its order; trials that come out the same are one.

    Args:
      file: loaded with `hyper_too`.
      overrides: of the command line, as text; they win over the trial's own.

    Raises:
      InputError: one line, for the first trial that cannot run.
    """
    from sparsejax.training import ConfigError, resolve  # here: it brings jax

    if file.trials is None:
        raise InputError(f"--config: {file.spec} has no get_hyper(h), so there is nothing to sweep; use train")
    trials: list[Trial] = []
    for changes in file.trials:
        config = file.fresh()
        configs.apply(config, changes, prefix="get_hyper: ")
        configs.apply(config, overrides)
        try:
            resolved = resolve(config)
        except ConfigError as error:
            raise InputError(f"--config: {error}") from error
        if all(resolved != trial.config for trial in trials):
            own = {field: value for field, value in changes.items() if field not in overrides}
            own |= {field: _at(resolved, field) for field in overrides if field in changes}
            if resolved["method"] == "dense":
                own.pop("sparsity", None)
            trials.append(Trial(trial_name(own) or resolved["method"], own, resolved))
    return _distinct(trials)


def trial_name(overrides: Mapping[str, Any]) -> str:
    """A name that is readable and safe as a directory: `rigl-0.98`, `set-0.9-drop_fraction=0.5`."""
    lead = [_text(overrides[field]) for field in ("method", "sparsity") if field in overrides]
    short = {field: field.rsplit(".", 1)[-1] for field in overrides}
    names = {f: short[f] if list(short.values()).count(short[f]) == 1 else f for f in overrides}
    rest = [f"{names[f]}={_text(v)}" for f, v in overrides.items() if f not in ("method", "sparsity")]
    name = re.sub(r"[^\w.=,+@-]+", "_", "-".join(lead + rest)).strip(".")
    return name if len(name) <= 100 else f"{name[:91]}-{_digest(dict(overrides))}"


def check_data(trials: Iterable[Trial]) -> None:
    """Reads every data set once, so that a missing file is told before anything runs; raises InputError."""
    from sparsejax.data import DATASETS

    seen = []
    for trial in trials:
        wanted = [trial.config[field] for field in ("dataset", "data_dir", "data")]
        if wanted in seen:
            continue
        seen.append(wanted)
        name, data_dir, options = wanted
        try:
            DATASETS[name](data_dir, **options)
        except (ValueError, TypeError, OSError) as error:
            raise InputError(f"dataset {name!r}: {error}") from error


def fingerprint(source: bytes, spec: str, overrides: Mapping[str, str], version: str) -> str:
    """Equal for two commands that ask for the same trials."""
    _, arg = configs.split_spec(spec)
    return hashlib.sha256(json.dumps([source.hex(), arg, dict(overrides), version]).encode()).hexdigest()


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str:
    """The first field in which two configs differ, with both values; empty if they are equal."""
    for field in sorted({*old, *new}):
        a, b = old.get(field), new.get(field)
        if a != b:
            if isinstance(a, dict) and isinstance(b, dict):
                return difference(a, b, f"{prefix}{field}.")
            return f"{prefix}{field} was {a!r} there and is {b!r} now"
    return ""


def _distinct(trials: list[Trial]) -> list[Trial]:
    names = [trial.name for trial in trials]
    return [t._replace(name=f"{t.name}-{_digest(t.overrides)}") if names.count(t.name) > 1 else t for t in trials]


def _at(config: Mapping[str, Any], field: str) -> Any:
    value: Any = config
    for name in field.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _text(value: Any) -> str:
    value = value.item() if hasattr(value, "item") else value
    return ",".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)


def _digest(overrides: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(overrides, sort_keys=True, default=str).encode()).hexdigest()[:8]


def sweep_config(path: Path) -> dict[str, Any] | None:
    """What SWEEP/config.json holds, or None if `path` holds no sweep."""
    from sparsejax.files import read_json

    value = read_json(path / "config.json")
    return value if isinstance(value, dict) and isinstance(value.get("trials"), list) else None

"""Config files and `--config.field=value`: what a user types becomes a ConfigDict, or one line about it."""

from __future__ import annotations

import ast
import copy
import difflib
import json
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from sparsejax.launch import hyper

# Fields that take one of two types (`seeds`: how many, or which); every other field keeps the type it has.
TWO_TYPES = {"seeds": (int, tuple)}
_OPEN = ("data", "mesh", "distill")  # beside *_args
_WORDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    tuple: "a list",
    list: "a list",
}


class InputError(ValueError):
    """What the user asked for cannot be done: one line that names it, for stderr and exit code 2."""


class ConfigFile(NamedTuple):
    """A loaded config file.

    Attributes:
      spec: as it was given, FILE or FILE:arg.
      source: the bytes of the file.
      fresh: makes the config anew, as `get_config(arg)` does, so that fields computed from others still follow
        them; overrides are not yet applied.
      trials: what `get_hyper(h)` returned, or None where the file has no get_hyper.
    """

    spec: str
    source: bytes
    fresh: Callable[[], ConfigDict]
    trials: list[hyper.Trial] | None


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no known name is like this one."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def split_spec(spec: str) -> tuple[Path, str]:
    """FILE or FILE:arg as (path, arg)."""
    for suffix in (".py", ".json"):
        head, found, arg = spec.partition(suffix + ":")
        if found:
            return Path(head + suffix), arg
    return Path(spec), ""


def read_source(spec: str) -> bytes:
    """The bytes of the config file that `spec` names; raises InputError if there is none."""
    path, _ = split_spec(spec)
    if not path.exists():
        siblings = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise InputError(f"--config: {path} does not exist{nearest(str(path), siblings)}")
    if path.suffix not in (".py", ".json") or not path.is_file():
        raise InputError(f"--config: {path} is not a .py or .json file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"--config: {path} cannot be read: {error.strerror}") from error


def load(spec: str, *, hyper_too: bool = False) -> ConfigFile:
    """Loads FILE.py[:arg] (get_config and get_hyper), or the config.json of an earlier run.

    Args:
      spec: FILE.py:arg, where arg goes to get_config; or a run's config.json; or SWEEP/config.json:TRIAL.
      hyper_too: whether to call get_hyper as well.

    Raises:
      InputError: one line with the file, and the line in it where there is one.
    """
    source = read_source(spec)
    path, arg = split_spec(spec)
    if path.suffix == ".json":
        fields = _from_json(path, source, arg)
        return ConfigFile(spec, source, lambda: ConfigDict(copy.deepcopy(fields)), None)
    # compiled by hand: an import would leave a __pycache__ beside the user's configs
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    _call(path, lambda: exec(compile(source, str(path), "exec"), module.__dict__))
    fresh = lambda: _get_config(path, module, arg)
    fresh()
    trials = None
    if hyper_too and hasattr(module, "get_hyper"):
        trials = _call(path, lambda: module.get_hyper(hyper.h))
        if not isinstance(trials, list) or not trials:
            raise InputError(f"{path}: get_hyper must return a list of trials, not {trials!r}")
        found = trials
        trials = _call(path, lambda: [hyper.check_trial("get_hyper", trial) for trial in found])
    return ConfigFile(spec, source, fresh, trials)


def _get_config(path: Path, module: ModuleType, arg: str) -> ConfigDict:
    if not callable(getattr(module, "get_config", None)):
        raise InputError(f"{path}: defines no get_config(arg)")
    config = _call(path, lambda: module.get_config(arg) if arg else module.get_config())
    if not isinstance(config, ConfigDict):
        raise InputError(f"{path}: get_config must return a ConfigDict, not {type(config).__name__}")
    return config


def _call(path: Path, function: Callable[[], Any]) -> Any:
    """Runs the user's code; whatever it raises becomes one line with the place in her file."""
    try:
        return function()
    except SyntaxError as error:
        raise InputError(f"{error.filename}:{error.lineno}: {error.msg}: {(error.text or '').strip()}") from error
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        place = f"{path}:{frames[-1].lineno}" if frames else str(path)
        what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise InputError(f"{place}: {what}") from error


def _from_json(path: Path, source: bytes, trial: str) -> dict[str, Any]:
    """The config.json of a run, or one trial in the config.json of a sweep."""
    try:
        fields = json.loads(source)
    except ValueError as error:
        raise InputError(f"--config: {path} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InputError(f"--config: {path} holds no config but a {type(fields).__name__}")
    if not trial:
        if "trials" in fields:
            raise InputError(f"--config: {path} is a sweep; name one of its trials behind it, {path}:NAME")
        return fields
    configs = {entry["name"]: entry["config"] for entry in fields.get("trials", ())}
    if trial not in configs:
        raise InputError(f"--config: {path} has no trial {trial!r}{nearest(trial, configs)}")
    return configs[trial]


def apply(config: ConfigDict, overrides: Mapping[str, Any], *, prefix: str = "--config.") -> None:
    """Sets fields of `config` in place; text is read by the field's type, other values must have it.

    Args:
      config: changed in place, also where it is locked.
      overrides: dotted field -> text or value. New names are taken only in dicts of arguments (`*_args`,
        `data`, `mesh`, `distill`), since what they may hold depends on the method, model and data
        set, and is checked with them.
      prefix: put before the field in error messages.

    Raises:
      InputError: for an unknown field or a wrong type.
    """
    for key, value in overrides.items():
        *parents, last = key.split(".")
        node, seen = config, ""
        for name in parents:
            node, seen = _known(node, name, prefix, seen), f"{seen}{name}."
            if not isinstance(node, ConfigDict):
                raise InputError(f"{prefix}{key}: {seen[:-1]} is {node!r} and has no fields of its own")
        open_dict = bool(parents) and (parents[-1].endswith("_args") or parents[-1] in _OPEN)
        if open_dict and value in (None, "None"):  # an argument goes back to its default
            value = None
        elif last in node or not open_dict:
            value = _converted(_known(node, last, prefix, seen), node.get_type(last), value, f"{prefix}{key}", last)
        elif isinstance(value, str):
            value = literal(value)
        with node.unlocked(), node.ignore_type():
            node[last] = value


def _known(node: ConfigDict, name: str, prefix: str, seen: str) -> Any:
    if name not in node:
        near = nearest(name, node.keys())
        raise InputError(f"{prefix}{seen}{name}: no such field{near or '; the fields are ' + ', '.join(sorted(node))}")
    return node[name]


def _converted(old: Any, kind: type, value: Any, flag: str, name: str) -> Any:
    kinds = TWO_TYPES.get(name, (kind,))
    value = value.item() if hasattr(value, "item") else value  # a NumPy scalar of get_hyper
    if isinstance(old, ConfigDict):
        raise InputError(f"{flag}: is a group; set one of its fields, as in {flag}.{next(iter(old), 'name')}=...")
    if old is None and value in (None, "None", "none"):
        return None
    for wanted in kinds:
        try:
            return _as_type(wanted, value)
        except (ValueError, SyntaxError, TypeError, KeyError):
            continue
    if kind is list and isinstance(value, str) and all(isinstance(member, str) for member in old):
        return [word.strip() for word in value.strip("[]").split(",") if word.strip()]
    words = " or ".join(_WORDS.get(wanted, wanted.__name__) for wanted in kinds)
    raise InputError(f"{flag}: {value!r} is not {words} (the config has {old!r})")


def _as_type(kind: type, value: Any) -> Any:
    """The value, or the value that the text stands for, as `kind`; raises where that would lose anything."""
    text = isinstance(value, str)
    if kind is str and text:
        return value
    if kind is bool and text:
        return {"true": True, "false": False, "1": True, "0": False}[value.lower()]
    if kind in (int, float) and text:
        return kind(value)
    if kind in (tuple, list):
        members = (
            ast.literal_eval(value if value.strip()[:1] in ("(", "[") else f"({value.rstrip(', ')},)")
            if text
            else value
        )
        return kind(members) if isinstance(members, tuple | list) else _no(value)
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(None, kind):
        return literal(value) if text else value
    return value if type(value) is kind else _no(value)


def _no(value: Any) -> Any:
    raise TypeError(value)


def literal(text: str) -> Any:
    """The Python literal that a text is, true and false too; else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)

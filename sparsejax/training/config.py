"""A run's config: its fields with their defaults, and the check of everything that a user can mistype.

`resolve` turns a `ConfigDict` (or a dict) into the plain dict that is written to config.json: every field present,
references followed, `seeds` a list, `method_args` and `data` cut to what this method and this data set take. Nothing
on disk is touched before it has passed.
"""

import ast
import contextlib
import difflib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from sparsejax.data import DATASETS
from sparsejax.models import MODELS
from sparsejax.training.errors import ConfigError
from sparsejax.training.methods import METHODS, OPTIMIZERS, SCHEDULES, method_arguments

Resolved = dict[str, Any]

# field -> (default, allowed type, what is allowed in words, test)
_Rule = tuple[Any, type | tuple[type, ...], str, Callable[[Any], bool]]
_RULES: dict[str, _Rule] = {
    "method": ("dense", str, "a method's name", lambda v: True),
    "sparsity": (0.9, (float, int), "a number in [0, 1)", lambda v: 0 <= v < 1),
    "method_args": ({}, dict, "arguments of the methods", lambda v: True),
    "model": ("mlp", str, "a model's name", lambda v: True),
    "model_args": ({}, dict, "arguments of the model", lambda v: True),
    "dataset": ("digits", str, "a data set's name", lambda v: True),
    "data_dir": ("", str, "a directory", lambda v: True),
    "data": ({}, dict, "arguments of the data set", lambda v: True),
    "optimizer": ("adamw", str, "an optimizer's name", lambda v: True),
    "learning_rate": (1e-3, (float, int), "a number > 0", lambda v: 0 < v < float("inf")),
    "weight_decay": (0.0, (float, int), "a number >= 0", lambda v: 0 <= v < float("inf")),
    "momentum": (0.9, (float, int), "a number in [0, 1)", lambda v: 0 <= v < 1),
    "schedule": ("constant", str, "a schedule's name", lambda v: True),
    "warmup_steps": (0, int, "an integer >= 0", lambda v: v >= 0),
    "batch_size": (128, int, "an integer >= 1", lambda v: v >= 1),
    "epochs": (10, int, "an integer >= 1", lambda v: v >= 1),
    "seeds": (1, (int, list), "an integer n >= 1 (seeds 0..n-1) or different integers in 0..2**31-1", lambda v: True),
    "eval_every_epochs": (1, int, "an integer >= 1", lambda v: v >= 1),
    "checkpoint_every_epochs": (0, int, "an integer >= 0 (0: only at the end)", lambda v: v >= 0),
    "keep_checkpoints": (2, int, "an integer >= 1", lambda v: v >= 1),
    "chunk_steps": (100, int, "an integer >= 1 (most training steps in one dispatch)", lambda v: v >= 1),
    "stop_on_nonfinite": (True, bool, "true or false", lambda v: True),
}


def default_config() -> ConfigDict:
    """A config with every field at its default; a file in configs/ starts from it and changes what it means to say."""
    return ConfigDict({field: rule[0] for field, rule in _RULES.items()})


def with_options(config: ConfigDict, arg: str) -> ConfigDict:
    """Applies `arg` = "key=value,key=value" (dots reach nested fields) to `config`, and returns it.

    Values are Python literals, or else strings: `epochs=5,method=set,model_args.features=(32,16)`. Fields that are
    computed from others follow them.

    Raises:
      ConfigError: for an item without "=", an unknown key, or a value of the wrong type.

    Example:
      >>> with_options(default_config(), "epochs=3,method=rigl").method
      'rigl'
    """
    for item in _split(arg):
        key, equals, text = (part.strip() for part in item.partition("="))
        if not equals:
            raise ConfigError(f"config option {item!r} is not of the form key=value")
        *parents, last = key.split(".")
        node = config
        for parent in parents:
            node = _child(node, parent, key)
        _child(node, last, key)
        try:
            with node.ignore_type() if key == "seeds" else contextlib.nullcontext():  # a number or a list
                node[last] = _literal(text)
        except TypeError as error:
            raise ConfigError(f"{key}: {text!r} is not of type {type(node[last]).__name__}") from error
    return config


def _child(node: Any, name: str, key: str) -> Any:
    if not isinstance(node, ConfigDict) or name not in node:
        known = node.keys() if isinstance(node, ConfigDict) else ()
        raise ConfigError(unknown(f"config option {key}", name, known))
    return node[name]


def _split(arg: str) -> list[str]:
    """Splits at the commas that are outside brackets."""
    items, depth = [""], 0
    for char in arg:
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            items.append("")
        else:
            items[-1] += char
    return [item for item in items if item.strip()]


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)


def unknown(field: str, value: object, known: Iterable[str]) -> str:
    """The sentence "field: unknown 'rigel'; did you mean 'rigl'? one of dense, gmp, ..."."""
    names = sorted(known)
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" did you mean {near[0]!r}?" if near else ""
    return f"{field}: unknown {value!r};{hint} one of {', '.join(names) or '(nothing)'}"


def resolve(config: ConfigDict | Mapping[str, Any]) -> Resolved:
    """The checked config as a plain dict that survives a round trip through JSON.

    `method_args` may hold arguments of several methods, so that one config serves a sweep over them: each method
    takes those that it has; a name that no method has is an error.

    Raises:
      ConfigError: one line that names the first wrong field, its value and what is allowed.
    """
    given = _plain(config.to_dict() if isinstance(config, ConfigDict) else dict(config))
    for field in given:
        if field not in _RULES:
            raise ConfigError(unknown("config", field, _RULES))
    out = {field: _checked(field, given.get(field, rule[0]), rule) for field, rule in _RULES.items()}
    for field, known in _choices().items():
        if out[field] not in known:
            raise ConfigError(unknown(field, out[field], known))
    out["seeds"] = _seeds(out["seeds"])
    out["sparsity"] = 0.0 if out["method"] == "dense" else float(out["sparsity"])
    out["method_args"] = _method_args(out["method"], out["method_args"])
    known_data = _keywords(DATASETS[out["dataset"]]) - {"data_dir"}
    _check_names("data", out["data"], set().union(*(_keywords(source) for source in DATASETS.values())) - {"data_dir"})
    out["data"] = {name: value for name, value in out["data"].items() if name in known_data}
    _check_names("model_args", out["model_args"], _keywords(MODELS[out["model"]]) - {"classes", "parent", "name"})
    if out["optimizer"] == "adam" and out["weight_decay"]:
        raise ConfigError(f"weight_decay: {out['weight_decay']} with optimizer 'adam', which has none; use 'adamw'")
    try:
        return json.loads(json.dumps(out))
    except TypeError as error:
        raise ConfigError(
            f"config: only numbers, strings, lists and true, false, null can be written to config.json: {error}"
        ) from error


def _choices() -> dict[str, Iterable[str]]:
    return {
        "method": METHODS, "model": MODELS, "dataset": DATASETS, "optimizer": OPTIMIZERS, "schedule": SCHEDULES,
    }  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping | ConfigDict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _checked(field: str, value: Any, rule: _Rule) -> Any:
    _, kind, words, test = rule
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds) or not test(value):
        raise ConfigError(f"{field}: {value!r} is not {words}")
    return float(value) if isinstance(value, int) and float in kinds else value


def _seeds(seeds: int | list) -> list[int]:
    out = list(range(seeds)) if isinstance(seeds, int) else seeds
    fine = all(isinstance(s, int) and not isinstance(s, bool) and 0 <= s < 2**31 for s in out)
    if not out or not fine or len(set(out)) != len(out):
        raise ConfigError(f"seeds: {seeds!r} is not {_RULES['seeds'][2]}")
    return out


def _method_args(method: str, args: dict[str, Any]) -> dict[str, Any]:
    accepted = {name: method_arguments(name) for name in METHODS}
    _check_names("method_args", args, set().union(*accepted.values()))
    every = args.get("update_every", 1)
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise ConfigError(f"method_args.update_every: {every!r} is not an integer >= 1")
    return {name: value for name, value in args.items() if name in accepted[method]}


def _keywords(function: Callable) -> set[str]:
    return set(inspect.signature(function).parameters)


def _check_names(field: str, given: Iterable[str], known: set[str]) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(unknown(field, name, known))


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """Names the first field in which two resolved configs differ, with both values; None if they are equal."""
    for field in sorted(old.keys() | new.keys()):
        a, b = old.get(field), new.get(field)
        if isinstance(a, dict) and isinstance(b, dict):
            for name in sorted(a.keys() | b.keys()):
                if a.get(name) != b.get(name):
                    return f"{field}.{name} is {a.get(name)!r} there and {b.get(name)!r} here"
        elif a != b:
            return f"{field} is {a!r} there and {b!r} here"
    return None

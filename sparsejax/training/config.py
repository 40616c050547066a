"""A run's config: its fields with their defaults, and the check of everything that a user can mistype.

`resolve` turns a `ConfigDict` (or a dict) into the plain dict that is written to config.json: every field present,
references followed, `seeds` a list, `method_args`, `schedule_args` and `data` cut to what this method, schedule and
data set take. Nothing on disk is touched before it has passed.
"""

import ast
import contextlib
import copy
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from sparsejax.data import DATASETS
from sparsejax.models import MODELS
from sparsejax.training.errors import ConfigError
from sparsejax.training.fields import DISTILL, MESH, RULES, check_names, checked, checked_group, unknown
from sparsejax.training.methods import LATENT, METHODS, has_sparsity, method_arguments, method_parameters
from sparsejax.training.model import FORM_ARGUMENTS
from sparsejax.training.optimizers import OPTIMIZERS, own_values
from sparsejax.training.schedules import SCHEDULES, schedule_arguments

Resolved = dict[str, Any]
_NOT_IN_MODEL_ARGS = {"classes", "vocab", "dtype", "parent", "name"}  # they follow from other fields


def default_config() -> ConfigDict:
    """A config with every field at its default; a file in configs/ starts from it and changes what it means to say."""
    return ConfigDict({field: copy.deepcopy(rule[0]) for field, rule in RULES.items()})


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


def resolve(config: ConfigDict | Mapping[str, Any]) -> Resolved:
    """The checked config as a plain dict that survives a round trip through JSON.

    `method_args` may hold arguments of several methods, so that one config serves a sweep over them: each method
    takes those that it has; a name that no method has is an error.

    Raises:
      ConfigError: one line that names the first wrong field, its value and what is allowed.
    """
    given = _plain(config.to_dict() if isinstance(config, ConfigDict) else dict(config))
    check_names("config", given, RULES)
    out = {field: checked(field, given.get(field, rule[0]), rule) for field, rule in RULES.items()}
    for field, known in _choices().items():
        if out[field] not in known:
            raise ConfigError(unknown(field, out[field], known))
    out["seeds"] = _seeds(out["seeds"])
    out["sparsity"] = _sparsity(out["method"], float(out["sparsity"]), "sparsity" in given)
    out["method_args"] = _method_args(out["method"], out["method_args"])
    out["data"] = _data_args(out["dataset"], out["data"])
    out["schedule_args"] = schedule_arguments(out["schedule"], out["schedule_args"])
    out["distill"] = checked_group("distill", out["distill"], DISTILL)
    out["mesh"] = checked_group("mesh", out["mesh"], MESH)
    check_names("model_args", out["model_args"], _keywords(MODELS[out["model"]]) - _NOT_IN_MODEL_ARGS | FORM_ARGUMENTS)
    if out["model_args"].get("sparse_ift") is not None:  # the model's widths follow the sparsity: its programs, too
        out["model_args"] = {"ift_sparsity": out["sparsity"]} | out["model_args"]
    out |= own_values(out)
    if out["init"] == "density" and out["method"] in LATENT:
        raise ConfigError(f"init: 'density' with method {out['method']!r}, whose masks choose among unscaled weights")
    if out["batch_size"] % out["accumulate"]:
        raise ConfigError(f"accumulate: {out['accumulate']} does not divide batch_size {out['batch_size']}")
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


def _seeds(seeds: int | list) -> list[int]:
    out = list(range(seeds)) if isinstance(seeds, int) else seeds
    fine = all(isinstance(s, int) and not isinstance(s, bool) and 0 <= s < 2**31 for s in out)
    if not out or not fine or len(set(out)) != len(out):
        raise ConfigError(f"seeds: {seeds!r} is not {RULES['seeds'][2]}")
    return out


def _sparsity(method: str, sparsity: float, given: bool) -> float:
    """The sparsity; 0 for a dense run, and for methods that find their own, which refuse any other."""
    if method == "dense":
        return 0.0
    if has_sparsity(method):
        return sparsity
    if given and sparsity:
        raise ConfigError(f"sparsity: {sparsity} with method {method!r}, which finds its own; set sparsity to 0")
    return 0.0


def _method_args(method: str, args: dict[str, Any]) -> dict[str, Any]:
    accepted = {name: method_arguments(name) for name in METHODS}
    check_names("method_args", args, set().union(*accepted.values()))
    every = args.get("update_every", 1)
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise ConfigError(f"method_args.update_every: {every!r} is not an integer >= 1")
    taken = {name: value for name, value in args.items() if name in accepted[method]}
    parameters = method_parameters(method)
    for name, value in taken.items():
        if value is None and (default := parameters[name].default) is not None:
            raise ConfigError(
                f"method_args.{name}: None; {method} takes a value there, such as its default {default!r}"
            )
    return taken


def _data_args(dataset: str, args: dict[str, Any]) -> dict[str, Any]:
    check_names("data", args, set().union(*(_keywords(source) for source in DATASETS.values())) - {"data_dir"})
    return {name: value for name, value in args.items() if name in _keywords(DATASETS[dataset]) - {"data_dir"}}


def _keywords(function: Callable) -> set[str]:
    return set(inspect.signature(function).parameters)


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

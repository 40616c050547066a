"""From the words of a config to an optax transform: the method around the optimizer."""

import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import optax

import sparsejax
from sparsejax import distributions, leaves, patterns
from sparsejax.leaves import Layout
from sparsejax.training.at_init import AT_INIT
from sparsejax.training.errors import ConfigError
from sparsejax.training.optimizers import make_optimizer


def dense(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """No sparsity: the optimizer as it is."""
    return inner


# name in a config -> factory; the first line of its docstring is what `sparsejax list` shows
METHODS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "dense": dense,
    "static": sparsejax.static,
    "one_shot": sparsejax.one_shot,
    "gmp": sparsejax.gmp,
    "set": sparsejax.set_,
    "rigl": sparsejax.rigl,
    "itop": sparsejax.itop,
    "snfs": sparsejax.snfs,
    "dsr": sparsejax.dsr,
    "mest": sparsejax.mest,
    "srigl": sparsejax.srigl,
    "granet": sparsejax.granet,
    **AT_INIT,
}
_NOT_IN_CONFIGS = {"inner", "sparsity", "masks", "layout", "seed"}

# What a string in method_args may name. "global" is a string for the factories too.
_NAMED: dict[str, dict[str, Any]] = {
    "distribution": {
        "uniform": distributions.uniform,
        "er": distributions.er,
        "erk": distributions.erk,
        "global": "global",
    },
    "pattern": {
        "unstructured": patterns.unstructured,
        "nm": patterns.nm,
        "fan_in": patterns.fan_in,
        "block": patterns.block,
        "channel": patterns.channel,
    },
    "where": {"only": leaves.only, "except_": leaves.except_},
}


def method_arguments(name: str) -> set[str]:
    """The names that a config's `method_args` may give to this method."""
    return set(inspect.signature(METHODS[name]).parameters) - _NOT_IN_CONFIGS


def update_grid(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """(start, every) of the mask updates, from the config or else the method's defaults; None without such a grid."""
    parameters = inspect.signature(METHODS[config["method"]]).parameters
    if "update_every" not in parameters:
        return None
    default = {name: parameters[name].default for name in ("update_start", "update_every") if name in parameters}
    values = default | config["method_args"]
    return values.get("update_start", 0), values["update_every"]


def dense_gradient_every(config: Mapping[str, Any]) -> int | None:
    """Every how many steps a method needs the gradient of all weights: None never, 1 at each step (SNFS)."""
    if config["method"] == "snfs":
        return 1
    by_gradient = config["method"] in ("rigl", "srigl", "granet", "itop")
    grid = update_grid(config) if by_gradient and config["method_args"].get("grow") != "random" else None
    return grid and grid[1]


RATES = ("learning_rate", "weight_decay")
_METHOD_RATES = ("drop_fraction",)  # in method_args


def rates_of(config: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a resolved config that a program takes as arguments, so that trials over them share it."""
    method_rates = {name: config["method_args"][name] for name in _METHOD_RATES if name in config["method_args"]}
    return {name: config[name] for name in RATES} | method_rates


def with_rates(config: Mapping[str, Any], rates: Mapping[str, Any]) -> dict[str, Any]:
    """The config with other rates; they may be traced."""
    fields = {name: value for name, value in rates.items() if name in RATES}
    method_args = {name: value for name, value in rates.items() if name not in RATES}
    return {**config, **fields, "method_args": {**config["method_args"], **method_args}}


def make_transform(
    config: Mapping[str, Any],
    total_steps: int,
    *,
    sparsity: float,
    seed: Any = 0,
    layout: Layout | None = None,
    masks: Any = None,
):
    """The optax transform that a resolved config describes.

    Args:
      config: a resolved config.
      total_steps: steps of the whole run; most schedules end there.
      sparsity: fraction of zeros; acts in `init` alone.
      seed: the method's seed; may be traced.
      layout: of the model's leaves; None: Flax's.
      masks: of a method that has them chosen before the first step (`first_masks`).

    Raises:
      ConfigError: if the method refuses its arguments.
    """
    name = config["method"]
    inner = make_optimizer(config, total_steps)
    if name == "dense":
        return inner
    arguments = arguments_of(config) | ({} if masks is None else {"masks": masks})
    try:
        return METHODS[name](inner, sparsity=sparsity, seed=seed, layout=layout, **arguments)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"method {name!r}: {error}") from error


def arguments_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved config's `method_args`, with the functions and patterns that its strings stand for."""
    return {key: _named(key, value) for key, value in config["method_args"].items()}


def _named(argument: str, value: Any) -> Any:
    """The function or pattern that a string such as "erk" or "nm(2, 4)" stands for; other values as they are."""
    if argument not in _NAMED or value is None:
        return value
    field, known = f"method_args.{argument}", _NAMED[argument]
    if not isinstance(value, str):
        raise ConfigError(f"{field}: {value!r} is not a string; one of {', '.join(known)}")
    name, args, keywords = _call(field, value)
    if name not in known:
        raise ConfigError(f"{field}: unknown {value!r}; one of {', '.join(known)}")
    called = args is not None
    if argument == "distribution":
        if called:
            raise ConfigError(f"{field}: {value!r} takes no arguments; write {name!r}")
        return known[name]
    if name == "block" and args and not isinstance(args[0], tuple):
        args = (tuple(args),)  # block(4, 4) is short for block((4, 4))
    try:
        return known[name](*(args or ()), **keywords)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{field}: {value!r}: {error}") from error


def _call(field: str, text: str) -> tuple[str, tuple | None, dict[str, Any]]:
    """Reads "name" or "name(literals)" without evaluating anything; args is None where there are no brackets."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, None, {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and all(k.arg for k in node.keywords):
            args = tuple(ast.literal_eval(arg) for arg in node.args)
            return node.func.id, args, {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        pass
    if text.strip() in _NAMED["distribution"]:  # "global" is a keyword of Python
        return text.strip(), None, {}
    raise ConfigError(f"{field}: {text!r} is not a name or a call with plain numbers, such as nm(2, 4)")

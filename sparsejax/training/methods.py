"""From the words of a config to an optax transform: optimizer, schedule, then the method around them."""

import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

import sparsejax
from sparsejax import distributions, leaves, patterns
from sparsejax.training.errors import ConfigError


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


def make_transform(config: Mapping[str, Any], total_steps: int, *, sparsity: float, seed: Any = 0):
    """The optax transform that a resolved config describes.

    Args:
      config: a resolved config.
      total_steps: steps of the whole run; the cosine schedule ends there.
      sparsity: fraction of zeros; acts in `init` alone.
      seed: the method's seed; may be traced.

    Raises:
      ConfigError: if the method refuses its arguments.
    """
    name = config["method"]
    inner = make_optimizer(config, total_steps)
    if name == "dense":
        return inner
    arguments = {key: _named(key, value) for key, value in config["method_args"].items()}
    try:
        return METHODS[name](inner, sparsity=sparsity, seed=seed, **arguments)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"method {name!r}: {error}") from error


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


def constant(peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Linear from 0 over warmup_steps, then constant."""
    del total_steps
    if warmup_steps == 0:
        return optax.constant_schedule(peak)
    return optax.linear_schedule(0.0, peak, warmup_steps)


def cosine(peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Linear from 0 over warmup_steps, then half a cosine to 0 at the last step."""
    if warmup_steps >= total_steps:
        raise ConfigError(f"warmup_steps: {warmup_steps} is not below the {total_steps} steps of the run")
    if warmup_steps == 0:
        return optax.cosine_decay_schedule(peak, total_steps)
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, total_steps)


SCHEDULES = {"constant": constant, "cosine": cosine}


def make_schedule(config: Mapping[str, Any], total_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step."""
    peak, shape = config["learning_rate"], SCHEDULES[config["schedule"]](1.0, config["warmup_steps"], total_steps)
    return lambda step: peak * shape(step)  # the peak may be traced, which optax's schedules do not expect


def _matrices(params: Any) -> Any:
    """Weight decay is for kernels, not for biases and norm scales: the standard recipe, for adamw and sgd alike."""
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)


def adamw(rate: optax.Schedule, config: Mapping[str, Any]) -> optax.GradientTransformation:
    """AdamW; weight_decay is decoupled (times the learning rate) and acts on kernels only."""
    return optax.adamw(rate, weight_decay=config["weight_decay"], mask=_matrices)


def adam(rate: optax.Schedule, config: Mapping[str, Any]) -> optax.GradientTransformation:
    """Adam, without weight decay."""
    del config
    return optax.adam(rate)


def sgd(rate: optax.Schedule, config: Mapping[str, Any]) -> optax.GradientTransformation:
    """SGD with momentum; weight_decay is L2 (added to the gradient) and acts on kernels only."""
    decay = optax.add_decayed_weights(config["weight_decay"], mask=_matrices)
    return optax.chain(decay, optax.sgd(rate, momentum=config["momentum"] or None))


OPTIMIZERS = {"adamw": adamw, "adam": adam, "sgd": sgd}


def make_optimizer(config: Mapping[str, Any], total_steps: int) -> optax.GradientTransformation:
    """The optimizer that the method wraps."""
    return OPTIMIZERS[config["optimizer"]](make_schedule(config, total_steps), config)

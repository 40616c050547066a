"""From the words of a config to an optax transform: the method around the optimizer."""

import ast
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import optax

import sparsejax
from sparsejax import distributions, leaves, patterns, saliency
from sparsejax.leaves import Layout, Where
from sparsejax.training.at_init import AT_INIT
from sparsejax.training.errors import ConfigError
from sparsejax.training.optimizers import make_optimizer
from sparsejax.transforms.acdc import phases_of


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
    "bdwp": sparsejax.bdwp,
    "cast": sparsejax.cast,
    "ast": sparsejax.ast,
    "ste": sparsejax.ste,
    "sr_ste": sparsejax.sr_ste,
    "dnw": sparsejax.dnw,
    "asp": sparsejax.asp,
    "mdgf": sparsejax.mdgf,
    "sdgf": sparsejax.sdgf,
    "top_kast": sparsejax.top_kast,
    "iss_p": sparsejax.iss_p,
    "str": sparsejax.str_,
    "spartan": sparsejax.spartan,
    "scl": sparsejax.scl,
    "movement": sparsejax.movement,
    "edge_popup": sparsejax.edge_popup,
    "jackpots": sparsejax.jackpots,
    "acdc": sparsejax.acdc,
    "sap": sparsejax.sap,
    "obert": sparsejax.obert,
    **AT_INIT,
}
MANY_GRADIENTS = frozenset({"obert"})  # methods whose update takes `grads_fn`
_NOT_IN_CONFIGS = {"inner", "aux_inner", "sparsity", "masks", "layout", "seed", "criterion", "norms", "wants_masks"}
# Methods whose params are made of weights and scores in the state.
SCORED = ("spartan", "scl", "movement", "edge_popup", "jackpots")
LATENT = ("str", *SCORED)

# Methods whose rule is a part of Adam's: the config's AdamW becomes this one, and these method_args are its own.
_ADAMS: dict[str, Callable[..., optax.GradientTransformation]] = {"ast": sparsejax.ast_adam, "cast": sparsejax.adam_s}
_OF_ADAM = ("masked_decay", "decay_steps")

# Distributions that a call makes; the others are distributions, with options that a call may fix.
_MADE: dict[str, Any] = {
    "set_epsilon": distributions.set_epsilon,
    "table": distributions.table,
    "smart_ratio": saliency.smart_ratio,
}
_SHOWN = {"table": "table({'head/*': 1.0}, 'erk')", "smart_ratio": "smart_ratio(['conv1/*', 'conv2/*', 'fc/*'])"}

# What a string in method_args may name. "global" and "lamp" are strings for the factories too.
_NAMED: dict[str, dict[str, Any]] = {
    "distribution": {
        "uniform": distributions.uniform,
        "er": distributions.er,
        "erk": distributions.erk,
        "uniform_plus": distributions.uniform_plus,
        "erk_plus": distributions.erk_plus,
        "global": "global",
        "lamp": "lamp",
        **_MADE,
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
    return set(method_parameters(name)) - _NOT_IN_CONFIGS


def method_parameters(name: str) -> dict[str, inspect.Parameter]:
    """The parameters of a method, and of the optimizer that is a part of it."""
    own = inspect.signature(_ADAMS[name]).parameters if name in _ADAMS else {}
    return {**inspect.signature(METHODS[name]).parameters, **{key: own[key] for key in _OF_ADAM if key in own}}


def has_sparsity(name: str) -> bool:
    """Whether a method is asked for a sparsity; others (STR, SCL, dense) find their own, or have none."""
    return "sparsity" in inspect.signature(METHODS[name]).parameters


def update_grid(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """(start, every) of the mask updates, from the config or else the method's defaults; None without such a grid."""
    parameters = inspect.signature(METHODS[config["method"]]).parameters
    if "update_every" not in parameters or config["method"] == "acdc":
        return None
    default = {name: parameters[name].default for name in ("update_start", "update_every") if name in parameters}
    values = default | config["method_args"]
    return values.get("update_start", 0), values["update_every"]


def update_steps(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The steps at which masks change, of a method that has a list of them instead of a grid: AC/DC.

    Raises:
      ConfigError: the method refuses them.
    """
    if config["method"] != "acdc":
        return ()
    names = inspect.signature(phases_of).parameters
    try:
        sparse, dense = phases_of(**{name: value for name, value in config["method_args"].items() if name in names})
    except (ValueError, TypeError) as error:
        raise ConfigError(f"method 'acdc': {error}") from error
    return tuple(sorted([*sparse, *dense]))


_OFTEN = 5  # steps; dispatches and records of so few would cost more than what they train


def changes_often(config: Mapping[str, Any]) -> bool:
    """Whether masks may change at so many steps (each one of a straight-through method) that no chunk ends with it."""
    grid = update_grid(config)
    return grid is not None and grid[1] < _OFTEN


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
    where: Where | None = None,
    masks: Any = None,
):
    """The optax transform that a resolved config describes.

    Args:
      config: a resolved config.
      total_steps: steps of the whole run; most schedules end there.
      sparsity: fraction of zeros; acts in `init` alone.
      seed: the method's seed; may be traced.
      layout: of the model's leaves; None: Flax's.
      where: the model's leaves to sparsify, unless method_args say so; None: the default predicate.
      masks: those to begin under, in place of the method's own: of one that has them chosen before the first step
        (`first_masks`), or of a run that begins elsewhere (`Start`).

    Raises:
      ConfigError: if the method refuses its arguments.
    """
    name = config["method"]
    given = {"sparsity": sparsity, "seed": seed, "layout": layout, "total_steps": total_steps}
    taken = inspect.signature(METHODS[name]).parameters
    arguments = {key: value for key, value in given.items() if key in taken} | arguments_of(config, where)
    if masks is not None:
        arguments["masks"] = masks
        arguments.pop("sparsity", None)
    if name in _ADAMS:
        inner = make_optimizer(config, total_steps, _own_adam(name, arguments))
        arguments = {key: value for key, value in arguments.items() if key not in _OF_ADAM} | {"wants_masks": True}
    else:
        inner = make_optimizer(config, total_steps)
    if name == "dense":
        return inner
    try:
        if masks is not None and "masks" not in taken:
            raise ValueError("it chooses its own masks and cannot begin under given ones; 'static' can")
        return METHODS[name](inner, **arguments)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"method {name!r}: {error}") from error


def _own_adam(name: str, arguments: Mapping[str, Any]) -> Callable[..., optax.GradientTransformation]:
    """A method's Adam, with what the method_args say of it; the ramp of CAST's lasts until its masks are laid on."""
    given = {key: arguments[key] for key in _OF_ADAM if key in arguments}
    if name == "cast":
        until = arguments.get("update_end", inspect.signature(sparsejax.cast).parameters["update_end"].default)
        given = {"decay_steps": until, **given}
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)[: 1 + (key == "masked_decay")]) or value < 0:
            kind = "a number" if key == "masked_decay" else "an integer"
            raise ConfigError(f"method_args.{key}: {value!r} is not {kind} >= 0")
    return partial(_ADAMS[name], **given)


def arguments_of(config: Mapping[str, Any], where: Where | None = None) -> dict[str, Any]:
    """A resolved config's `method_args`, with the functions and patterns that its strings stand for.

    `where` is taken where they name none.
    """
    given = {key: _named(key, value) for key, value in config["method_args"].items()}
    return given if where is None or given.get("where") is not None else given | {"where": where}


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
    if argument == "distribution":
        return _distribution(field, value, name, args, keywords)
    if name == "block" and args and not isinstance(args[0], tuple):
        args = (tuple(args),)  # block(4, 4) is short for block((4, 4))
    try:
        return known[name](*(args or ()), **keywords)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{field}: {value!r}: {error}") from error


def _distribution(field: str, text: str, name: str, args: tuple | None, keywords: dict[str, Any]) -> Any:
    """The distribution of a name or a call: `erk`, `erk_plus(head_density=0.5)`, `table({"head/*": 1.0}, "erk")`."""
    found = _NAMED["distribution"][name]
    if args is None:
        if name in _SHOWN:
            raise ConfigError(f"{field}: {text!r} needs arguments, such as {_SHOWN[name]}")
        return found() if name in _MADE else found
    parameters = inspect.signature(found).parameters.items() if callable(found) else ()
    options = [n for n, p in parameters if name in _MADE or p.kind is p.KEYWORD_ONLY]
    if (args and name not in _MADE) or not set(keywords) <= set(options):
        allowed = f"takes no arguments but {', '.join(options)}, by name" if options else "takes no arguments"
        raise ConfigError(f"{field}: {text!r} {allowed}; or write {name!r}")
    if name == "table":
        args = (*args[:1], *(_shares(field, each) for each in args[1:]))
        keywords = {n: _shares(field, value) if n == "default" else value for n, value in keywords.items()}
    try:
        return found(*args, **keywords) if name in _MADE else partial(found, **keywords)
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{field}: {text!r}: {error}") from error


def _shares(field: str, name: Any) -> Any:
    """The distribution with which the layers that a table does not name share the rest."""
    found = _named("distribution", name)
    if not callable(found):
        raise ConfigError(f"{field}: {name!r} is not a distribution by which the other layers could share the rest")
    return found


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

"""What is connected with what in a jaxpr: each value that hangs on the input or on a mask as an array of 0 and 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from sparsejax.jaxpr_walk import computed, jaxprs

PARAM, DATA = 0, 1


class Signal(NamedTuple):
    """A value that is followed.

    Attributes:
      on: float32, 1 where it is connected with the input (or, of a weight, kept), else 0.
      kind: PARAM while only masks went into it, else DATA.
      level: through how many reductions (means, sums) it came since the last product with weights.
    """

    on: jax.Array
    kind: int
    level: int


@jax.custom_vjp
def anything(count: jax.Array) -> jax.Array:
    """1 where a count is > 0; its gradient likewise, 1 where the one that arrives is > 0."""
    return (count > 0).astype(jnp.float32)


anything.defvjp(lambda count: (anything(count), None), lambda _, g: ((g > 0).astype(jnp.float32),))


def propagate(jaxpr: Any, consts: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    """The outputs of a jaxpr, those that hang on a Signal among its inputs as Signals."""
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *values], strict=True))
    for eqn in jaxpr.eqns:
        given = [var.val if isinstance(var, core.Literal) else known[var] for var in eqn.invars]
        outs = _equation(eqn, given) if any(isinstance(v, Signal) for v in given) else computed(eqn, given)
        known.update(zip(eqn.outvars, outs, strict=True))
    return [var.val if isinstance(var, core.Literal) else known[var] for var in jaxpr.outvars]


def _equation(eqn: Any, values: list[Any]) -> list[Any]:
    name = eqn.primitive.name
    for names, rule in _RULES:
        if name in names:
            return rule(eqn, values)
    if name == "scan":
        return _scan(eqn, values)
    inner = [value for value in eqn.params.values() if hasattr(value, "eqns")]
    if len(inner) == 1 and len(jaxprs(inner)[0].invars) == len(values):
        return propagate(jaxprs(inner)[0], getattr(inner[0], "consts", ()), values)
    if inner or any(not _fits(value, out) for value in values if isinstance(value, Signal) for out in eqn.outvars):
        raise ValueError(f"cannot follow connections through {name!r}: pass a forward pass without it")
    return _elementwise(eqn, values)


def _fits(value: Signal, out: Any) -> bool:
    """Whether it is a scalar, or of the output's shape but for axes of size 1, which newer versions of JAX repeat."""
    sizes = zip(value.on.shape, out.aval.shape)
    return value.on.ndim == 0 or (value.on.ndim == len(out.aval.shape) and all(a in (1, b) for a, b in sizes))


def _elementwise(eqn: Any, values: list[Any]) -> list[Any]:
    """Any of the operands; of those of less level where they differ; data over masks but in a product of both."""
    given = [value for value in values if isinstance(value, Signal)]
    kind = max(value.kind for value in given)
    data = [value for value in given if value.kind == kind]
    level = min(value.level for value in data)
    near = [value.on for value in data if value.level == level]
    shape = eqn.outvars[0].aval.shape
    on = near[0] if len(near) == 1 else anything(sum(jnp.broadcast_to(each, shape) for each in near))
    if eqn.primitive.name == "mul" and len(data) < len(given):
        on = on * math.prod([value.on for value in given if value.kind < kind], start=1.0)  # type: ignore[arg-type]
    return [Signal(jnp.broadcast_to(on, shape), kind, level) for _ in eqn.outvars]


def _moved(eqn: Any, values: list[Any]) -> list[Any]:
    """What only moves entries about: the same for 0 and 1; what is not followed comes in as 0."""
    given = [value for value in values if isinstance(value, Signal)]
    first = next(i for i, value in enumerate(values) if isinstance(value, Signal))
    numbers = [_on(v) if isinstance(v, Signal) or i in _OPERANDS.get(eqn.primitive.name, (first,)) else v
               for i, v in enumerate(values)]  # fmt: skip
    found = eqn.primitive.bind(*numbers, **eqn.params)
    kind, level = max(value.kind for value in given), min(value.level for value in given)
    return [Signal(on, kind, level) for on in (found if eqn.primitive.multiple_results else [found])]


_OPERANDS = {"dynamic_update_slice": (0, 1), "pad": (0, 1), "concatenate": range(1 << 20)}


def _on(value: Any) -> jax.Array:
    return value.on if isinstance(value, Signal) else jnp.zeros(jnp.shape(value))


def _gathered(eqn: Any, values: list[Any]) -> list[Any]:
    """Rows by a fixed index are moved; an embedding is a lookup by data, which reaches all of it."""
    if isinstance(values[1], Signal):
        return [Signal(jnp.ones(eqn.outvars[0].aval.shape), DATA, 0)]
    return _moved(eqn, values)


def _each(eqn: Any, values: list[Any]) -> list[Any]:
    del eqn
    return values


def _reduced(eqn: Any, values: list[Any]) -> list[Any]:
    (value,) = values
    on = anything(value.on.sum(axis=eqn.params["axes"]))
    return [Signal(on, value.kind, value.level + 1)]


def _windowed(eqn: Any, values: list[Any]) -> list[Any]:
    """Pooling of any kind: whether anything in the window is on."""
    value = next(value for value in values if isinstance(value, Signal))
    names = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
    count = lax.reduce_window(value.on, 0.0, lax.add, *(eqn.params[name] for name in names))
    return [value._replace(on=anything(count))]


def _product(eqn: Any, values: list[Any]) -> list[Any]:
    """Any pair of which both are on; of data and data, any of which either is."""
    params = eqn.params | {"preferred_element_type": jnp.dtype("float32")}
    times = lambda a, b: eqn.primitive.bind(a, b, *values[2:], **params)
    given = [value for value in values if isinstance(value, Signal)]
    numbers = [v.on if isinstance(v, Signal) else (v != 0).astype(jnp.float32) for v in values[:2]]
    if len(given) == 2 and all(value.kind == DATA for value in given):
        either = [times(numbers[0], jnp.ones_like(numbers[1])), times(jnp.ones_like(numbers[0]), numbers[1])]
        return [Signal(anything(either[0] + either[1]), DATA, min(value.level for value in given))]
    return [Signal(anything(times(*numbers)), max(value.kind for value in given), 0)]


def _branches(eqn: Any, values: list[Any]) -> list[Any]:
    """Any of a cond's branches."""
    found = [propagate(branch.jaxpr, branch.consts, values[1:]) for branch in eqn.params["branches"]]
    outs = []
    for column in zip(*found):
        signals = [value for value in column if isinstance(value, Signal)]
        on = anything(sum((value.on for value in signals), jnp.zeros(jnp.shape(_on(column[0])))))
        kind, level = max((v.kind for v in signals), default=PARAM), min((v.level for v in signals), default=0)
        outs.append(Signal(on, kind, level))
    return outs


def _scan(eqn: Any, values: list[Any]) -> list[Any]:
    """A loop: the same loop over 0 and 1. What is carried is followed as soon as one pass through the body makes it."""
    closed = eqn.params["jaxpr"]
    body, consts = jaxprs([closed])[0], getattr(closed, "consts", ())
    sliced = sum(jnp.ndim(_array(v)) > var.aval.ndim for v, var in zip(values, body.invars))
    carried = len(eqn.outvars) - sum(a.aval.ndim > b.aval.ndim for a, b in zip(eqn.outvars, body.outvars))
    first = len(values) - sliced - carried
    fixed, carry, xs = values[:first], values[first : first + carried], values[first + carried :]

    def run(carry, xs):
        outs = propagate(body, consts, [*fixed, *carry, *xs])
        return [_as(value, like) for value, like in zip(outs, carry)] + outs[carried:], outs[:carried]

    first_of = [lambda v=v: _back(_array(v)[0], _tag(v)) for v in xs]
    while True:
        kinds: list[Any] = []
        jax.eval_shape(lambda kinds=kinds, carry=carry: kinds.extend(map(_tag, run(carry, [x() for x in first_of])[1])))
        grown = [_joined(value, tag) for value, tag in zip(carry, kinds)]
        if [_tag(value) for value in grown] == [_tag(value) for value in carry]:
            break
        carry = grown
    tags: list[Any] = []

    def step(arrays, slices):
        followed = lambda given, like: [_back(array, _tag(value)) for array, value in zip(given, like)]
        outs, _ = run(followed(arrays, carry), followed(slices, xs))
        tags.append([_tag(value) for value in outs])
        return [_array(value) for value in outs[:carried]], [_array(value) for value in outs[carried:]]

    ends, stacked = lax.scan(
        step, [_array(v) for v in carry], [_array(v) for v in xs],
        length=eqn.params["length"], reverse=eqn.params["reverse"],
    )  # fmt: skip
    return [_back(array, tag) for array, tag in zip([*ends, *stacked], tags[0])]


def _tag(value: Any) -> tuple[int, int] | None:
    return (value.kind, value.level) if isinstance(value, Signal) else None


def _array(value: Any) -> Any:
    return value.on if isinstance(value, Signal) else value


def _back(array: Any, tag: tuple[int, int] | None) -> Any:
    return array if tag is None else Signal(array, *tag)


def _as(value: Any, like: Any) -> Any:
    """A body's output as what it is in the carry."""
    return value if _tag(like) is None else Signal(_on(value), *(_tag(like) or (DATA, 0)))


def _joined(value: Any, tag: tuple[int, int] | None) -> Any:
    """What is carried, followed if an output is: data if either is, of the lesser level."""
    own = _tag(value)
    if tag is None or own is None:
        return value if tag is None else Signal(_on(value), *tag)
    return Signal(value.on, max(own[0], tag[0]), min(own[1], tag[1]))


_Rule = Callable[[Any, list[Any]], list[Any]]
_RULES: list[tuple[set[str], _Rule]] = [
    ({"dot_general", "conv_general_dilated", "ragged_dot_general"}, _product),
    (
        {
            *("reshape", "transpose", "broadcast_in_dim", "squeeze", "expand_dims", "rev", "slice", "split", "copy"),
            *("dynamic_slice", "dynamic_update_slice", "concatenate", "pad"),
        },
        _moved,
    ),
    ({"gather"}, _gathered),
    (
        {
            *("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"),
            *("argmax", "argmin"),
        },
        _reduced,
    ),
    ({"reduce_window_max", "reduce_window_sum", "reduce_window_min"}, _windowed),
    ({"sharding_constraint", "optimization_barrier"}, _each),
    ({"cond"}, _branches),
]

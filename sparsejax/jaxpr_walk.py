"""The multiplications in a jaxpr, by the parameter that takes part in them: what `flops.layer_flops` counts.

Each value has a rank, which says what it was made from, such that an output has the largest rank among its
inputs: CONSTANT, then 1, 2, ... for the parameters from the smallest to the largest, then DATA. So a loop's
carry settles after a few passes, and where parameters meet in one weight the largest owns it. A product of
matrices is DATA unless all of it is constant: it has none of its factors' zeros.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.extend import core

CONSTANT, DATA = 0, math.inf


def walk(jaxpr: Any, ranks: Sequence[float]) -> tuple[list[float], Counter[float]]:
    """Ranks of the outputs of a jaxpr, given those of its inputs, and the FLOPs by rank of the parameter."""
    known = dict(zip(jaxpr.invars, ranks, strict=True))
    flops: Counter[float] = Counter()

    def rank_of(value: Any) -> float:
        return CONSTANT if isinstance(value, core.Literal) else known.get(value, CONSTANT)

    for eqn in jaxpr.eqns:
        ranks_out, work = _equation(eqn, [rank_of(value) for value in eqn.invars])
        known.update(zip(eqn.outvars, ranks_out, strict=True))
        flops.update(work)
    return [rank_of(value) for value in jaxpr.outvars], flops


def jaxprs(values: Any) -> list[Any]:
    """The jaxprs among the values, alone or in tuples; before jax 0.12, closed ones hold another."""
    flat = [item for value in values for item in (value if isinstance(value, tuple | list) else (value,))]
    return [getattr(item, "jaxpr", item) for item in flat if hasattr(item, "eqns")]


def computed(eqn: Any, values: Sequence[Any]) -> list[Any]:
    """The outputs of an equation; before jax 0.10, the functions that it calls are parameters of their own."""
    bound = eqn.primitive.get_bind_params(eqn.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    found = eqn.primitive.bind(*functions, *values, **params)
    return list(found) if eqn.primitive.multiple_results else [found]


def _equation(eqn: Any, ranks: list[float]) -> tuple[list[float], Mapping[float, int]]:
    """Ranks of an equation's outputs, and its FLOPs by rank."""
    name = eqn.primitive.name
    if name in _MULTIPLICATIONS:
        owner = max((rank for rank in ranks[:2] if rank != DATA), default=CONSTANT)
        return [DATA if any(ranks) else CONSTANT], {owner: 2 * _MULTIPLICATIONS[name](eqn)}
    inner = jaxprs(eqn.params.values())
    if name == "scan":
        return _scan(eqn, inner[0], ranks)
    if name == "while":
        return _while(eqn, ranks)
    if name == "cond":
        branches = [walk(branch, ranks[1:]) for branch in inner]
        chosen = max((flops for _, flops in branches), key=lambda flops: sum(flops.values()))
        return [max(ranks[0], *column) for column in zip(*(outs for outs, _ in branches))], chosen
    if len(inner) == 1 and _shapes(inner[0].invars) == _shapes(eqn.invars):
        return walk(inner[0], ranks)
    for jaxpr in inner:
        if walk(jaxpr, [DATA] * len(jaxpr.invars))[1]:
            raise ValueError(f"cannot count the FLOPs inside {name!r}: pass a forward pass without it")
    return [max(ranks, default=CONSTANT)] * len(eqn.outvars), {}


def _scan(eqn: Any, body: Any, ranks: list[float]) -> tuple[list[float], Mapping[float, int]]:
    """The body's FLOPs times the length. Inputs: (constants, carry, xs); outputs: (carry, ys)."""
    sliced_in = sum(whole.aval.ndim > part.aval.ndim for whole, part in zip(eqn.invars, body.invars))
    sliced_out = sum(whole.aval.ndim > part.aval.ndim for whole, part in zip(eqn.outvars, body.outvars))
    carried = len(eqn.outvars) - sliced_out
    outs, flops = _loop(body, ranks, len(ranks) - sliced_in - carried, carried)
    return outs, {rank: count * eqn.params["length"] for rank, count in flops.items()}


def _while(eqn: Any, ranks: list[float]) -> tuple[list[float], Mapping[float, int]]:
    """One run of condition and body. Inputs: (the condition's constants, the body's constants, carry)."""
    condition, body = jaxprs([eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]])
    carried = len(eqn.outvars)
    first = len(condition.invars) - carried
    outs, flops = _loop(body, ranks[first:], len(body.invars) - carried, carried)
    return outs, flops + walk(condition, ranks[:first] + outs)[1]


def _loop(body: Any, ranks: list[float], first: int, carried: int) -> tuple[list[float], Counter[float]]:
    """Walk a loop's body until the ranks of its carry (`carried` inputs from `first` on) grow no more."""
    while True:
        outs, flops = walk(body, ranks)
        carry = ranks[first : first + carried]
        grown = [max(pair) for pair in zip(carry, outs)]
        if grown == carry:
            return carry + outs[carried:], flops
        ranks = ranks[:first] + grown + ranks[first + carried :]


def _shapes(values: Sequence[Any]) -> list[tuple[int, ...] | None]:
    return [getattr(value.aval, "shape", None) for value in values]


def _dot_general(eqn: Any) -> int:
    """Multiply-accumulates: every element of the output is a sum over the contracted axes."""
    (contracted, _), _ = eqn.params["dimension_numbers"]
    return eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)


def _ragged_dot_general(eqn: Any) -> int:
    """Multiply-accumulates where each row meets the weights of one group (mixture of experts)."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = numbers.dot_dimension_numbers
    macs = eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
    # Where the groups split the contracted axis, each has an output of its own and sums over its part only.
    split = numbers.lhs_ragged_dimensions[0] in contracted
    return macs // eqn.invars[2].aval.shape[-1] if split else macs


def _conv_general_dilated(eqn: Any) -> int:
    """Multiply-accumulates: an output element is a sum over the taps and the input channels of its group."""
    params = eqn.params
    _, kernel_axes, out_axes = params["dimension_numbers"]
    kernel, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
    macs = out[out_axes[0]] * out[out_axes[1]] * kernel[kernel_axes[1]]
    windows = zip(params["window_strides"], params["padding"], params["lhs_dilation"], params["rhs_dilation"])
    for out_axis, kernel_axis, window in zip(out_axes[2:], kernel_axes[2:], windows):
        macs *= _taps(out[out_axis], kernel[kernel_axis], *window)
    return macs


def _taps(places: int, taps: int, stride: int, padding: tuple[int, int], spread: int, dilation: int) -> int:
    """Pairs of output position and tap along one axis, less those that meet a zero between two inputs."""
    if spread == 1:
        return places * taps
    starts = [place * stride - padding[0] for place in range(places)]
    return sum((start + tap * dilation) % spread == 0 for start in starts for tap in range(taps))


_MULTIPLICATIONS: dict[str, Callable[[Any], int]] = {
    "dot_general": _dot_general,
    "ragged_dot_general": _ragged_dot_general,
    "conv_general_dilated": _conv_general_dilated,
}

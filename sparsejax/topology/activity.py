"""Which ReLU units are ever active: the outputs of each ReLU of a forward pass, found in its jaxpr."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from sparsejax.jaxpr_walk import computed, jaxprs

_NAMES = ("relu", "relu6")


def relu_outputs(function: Callable[..., Any], *args: Any) -> tuple[Any, dict[str, jax.Array]]:
    """(function(*args), {"relu_0": output of the first `jax.nn.relu`, ...}) in the order of computation.

    Followed into jit, remat and custom derivatives; a ReLU inside a loop (scanned layers) is not among them. Works
    under jit and vmap.

    Example:
      >>> _, found = relu_outputs(lambda x: jax.nn.relu(x) + jax.nn.relu(-x), jnp.array([1.0, -2.0]))
      >>> {name: value.tolist() for name, value in found.items()}
      {'relu_0': [1.0, 0.0], 'relu_1': [0.0, 2.0]}
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    (jaxpr,) = jaxprs([closed])
    if not _has_relu(jaxpr):
        return function(*args), {}
    found: list[jax.Array] = []
    outputs = _run(jaxpr, closed.consts, jax.tree.leaves(args), found)
    named = {f"relu_{index}": value for index, value in enumerate(found)}
    return jax.tree.unflatten(jax.tree.structure(shape), outputs), named


def active_units(outputs: Mapping[str, jax.Array], real: jax.Array | None = None) -> dict[str, jax.Array]:
    """In how many examples each unit (place along the last axis) is not zero everywhere, int32 (units,).

    Args:
      outputs: (B, ..., units) by name.
      real: bool (B, ...), False at examples that do not count.

    Example:
      >>> active_units({"a": jnp.array([[1.0, 0.0], [2.0, 3.0], [0.0, 0.0]])})["a"].tolist()
      [2, 1]
    """

    def counted(output):
        on = output != 0
        if real is not None and output.shape[: real.ndim] == real.shape:
            on &= real.reshape(*real.shape, *(1,) * (output.ndim - real.ndim))
        return on.any(axis=tuple(range(1, output.ndim - 1))).sum(axis=0, dtype=jnp.int32)

    return {name: counted(output) for name, output in outputs.items() if output.ndim > 1}


def dead_units(function: Callable[..., Any], *args: Any) -> dict[str, float]:
    """The share of each ReLU's units that are 0 for every example of a batch, and at every position of it.

    Args:
      function, *args: a forward pass and what it is called with.

    Returns:
      "relu_0", ... in the order of computation -> share.

    Example:
      >>> dead_units(lambda x: jax.nn.relu(x), jnp.array([[1.0, -1.0], [0.5, -2.0]]))
      {'relu_0': 0.5}
    """
    counts = active_units(relu_outputs(function, *args)[1])
    return {name: float((np.asarray(count) == 0).mean()) for name, count in counts.items()}


def _has_relu(jaxpr: Any) -> bool:
    return any(_is_relu(eqn) or any(map(_has_relu, _inside(eqn))) for eqn in jaxpr.eqns)


def _is_relu(eqn: Any) -> bool:
    return eqn.params.get("name") in _NAMES and len(eqn.outvars) == 1


def _inside(eqn: Any) -> list[Any]:
    """The one jaxpr that an equation calls with its own operands; none of a loop."""
    inner = jaxprs(eqn.params.values())
    same = len(inner) == 1 and [v.aval for v in inner[0].invars] == [v.aval for v in eqn.invars]
    return inner if same and eqn.primitive.name != "scan" else []


def _run(jaxpr: Any, consts: Any, values: list[Any], found: list[jax.Array]) -> list[Any]:
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *values], strict=True))
    for eqn in jaxpr.eqns:
        given = [var.val if isinstance(var, core.Literal) else known[var] for var in eqn.invars]
        if not _is_relu(eqn) and any(map(_has_relu, inner := _inside(eqn))):
            called = next(value for value in eqn.params.values() if hasattr(value, "eqns"))
            outs = _run(inner[0], getattr(called, "consts", ()), given, found)
        else:
            outs = computed(eqn, given)
        if _is_relu(eqn):
            found.extend(outs)
        known.update(zip(eqn.outvars, outs, strict=True))
    return [var.val if isinstance(var, core.Literal) else known[var] for var in jaxpr.outvars]

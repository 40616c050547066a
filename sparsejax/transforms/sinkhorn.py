"""Soft top-k masks: entropic transport between values and a budget, and its gradient at the fixed point."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Parts = list[jax.Array]


class Transport(NamedTuple):
    """What a soft mask is computed of; entries of several arrays may share one budget.

    Attributes:
      costs: what a kept entry of each array costs.
      axes: of one array, those over which entries share a budget; None: all entries of all arrays share one.
      max_iterations, tolerance: Sinkhorn ends where sum m v changes by no more than this share of itself.
    """

    costs: tuple[float, ...]
    axes: tuple[int, ...] | None
    max_iterations: int = 100
    tolerance: float = 0.01


def soft_top(how: Transport, values: Parts, budget: jax.Array, beta: jax.Array, threshold: jax.Array) -> Parts:
    """m = sigmoid(beta v / c + mu), with mu such that sum c m = budget, as far as Sinkhorn's iteration has come.

    Args:
      how: costs and axes.
      values: v, float32.
      budget: above 0, at most the sum of c; of the sums' shape.
      beta: inverse temperature.
      threshold: v / c of the last entry that a hard mask would keep; where mu starts.

    Example:
      >>> how = Transport((1.0,), (0,), tolerance=0.0)
      >>> (mask,) = soft_top(how, [jnp.array([0.0, 1.0, 2.0])], jnp.float32(1.5), jnp.float32(4.0), jnp.float32(1.0))
      >>> [round(float(m), 3) for m in mask]
      [0.018, 0.5, 0.982]

    Source: Tai et al. 2022, arXiv:2205.14107, and its official code.
    """
    z = [beta * (value / cost - threshold) for value, cost in zip(values, how.costs, strict=True)]
    masks = lambda mu: [jax.nn.sigmoid(each + mu) for each in z]
    worth = lambda mu: _total(how, [m * value for m, value in zip(masks(mu), values, strict=True)])

    def step(carry):
        i, mu, last, done = carry
        sources = [each + jnp.log(cost) - jax.nn.softplus(each + mu) for each, cost in zip(z, how.costs, strict=True)]
        new = jnp.log(budget) - _logsumexp(how, sources)
        now = worth(new)
        settled = jnp.abs(now - last) <= how.tolerance * jnp.abs(last)
        # A budget that has settled is left alone while others go on.
        return i + 1, jnp.where(done, mu, new), jnp.where(done, last, now), done | settled

    begin = jnp.zeros_like(_total(how, values))
    first = worth(begin)
    unsettled = lambda carry: (carry[0] < how.max_iterations) & ~jnp.all(carry[3])
    _, mu, _, _ = lax.while_loop(unsettled, step, (jnp.int32(0), begin, first, jnp.zeros(begin.shape, bool)))
    return masks(mu)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def at_fixed_point(how: Transport, values: Parts, masks: Parts, beta: jax.Array) -> Parts:
    """The masks, as a function of the values whose `soft_top` they are.

    From sum c m = budget follows dmu = -beta sum(m (1 - m) dv) / sum(c m (1 - m)), hence
    dL/dv = beta m (1 - m) (g / c - sum(g m (1 - m)) / sum(c m (1 - m))), with g = dL/dm.
    """
    del how, values, beta
    return masks


def _forward(how, values, masks, beta):
    return at_fixed_point(how, values, masks, beta), (masks, beta)


def _backward(how, saved, grads):
    masks, beta = saved
    spread = [m * (1 - m) for m in masks]
    priced = _total(how, [cost * each for cost, each in zip(how.costs, spread, strict=True)])
    # What is not finite stays with its own entry, rather than reach all that share its budget.
    pulled = _total(how, [jnp.where(jnp.isfinite(g), g, 0.0) * each for g, each in zip(grads, spread, strict=True)])
    common = pulled / jnp.where(priced > 0, priced, 1.0)
    slopes = [beta * s * (g / cost - common) for s, g, cost in zip(spread, grads, how.costs, strict=True)]
    return slopes, [jnp.zeros_like(m) for m in masks], jnp.zeros_like(beta)


at_fixed_point.defvjp(_forward, _backward)


def _total(how: Transport, parts: Parts) -> jax.Array:
    if how.axes is None:
        total: Any = sum(jnp.sum(part) for part in parts)
        return total
    (part,) = parts
    return jnp.sum(part, how.axes, keepdims=True)


def _logsumexp(how: Transport, parts: Parts) -> jax.Array:
    if how.axes is not None:
        return jax.nn.logsumexp(parts[0], how.axes, keepdims=True)
    top = jnp.max(jnp.stack([jnp.max(part) for part in parts]))
    return top + jnp.log(_total(how, [jnp.exp(part - top) for part in parts]))

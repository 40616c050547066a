"""The best entries that fit into a budget, where entries of different arrays cost differently."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.selection import order_key
from sparsejax.selection.counts import as_float, count_true


def affordable(ratios: list[jax.Array], costs: Sequence[float], budget: jax.Array) -> list[jax.Array]:
    """The masks of all entries above the lowest threshold at which what is kept costs no more than the budget.

    Args:
      ratios: float32 values per cost; larger = keep. Equal ones stay or go together.
      costs: of one entry of each array.
      budget: float32 scalar.

    Example:
      >>> affordable([jnp.array([3.0, 1.0]), jnp.array([2.0, 4.0])], (1.0, 3.0), jnp.float32(5.0))[0].tolist()
      [True, False]
    """
    keys = [order_key(ratio) for ratio in ratios]

    def spent(least):
        masks = [key >= least for key in keys]
        counts = [as_float(count_true([m], tuple(range(m.ndim)))[0]).reshape(()) for m in masks]
        return sum(cost * count for cost, count in zip(costs, counts, strict=True))

    def halve(_, bounds):
        low, high = bounds  # at `high` it fits, below `low` it does not
        middle = low + (high - low) // 2
        fits = spent(middle) <= budget * (1 + 1e-6)
        return jnp.where(fits, low, middle + 1), jnp.where(fits, middle, high)

    _, least = lax.fori_loop(0, 33, halve, (jnp.uint32(0), jnp.uint32(2**32 - 1)))
    return [key >= least for key in keys]

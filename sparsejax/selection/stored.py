"""A result that is computed once and stored, where XLA for CPUs would compute it anew at every place that reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.selection import devices


def stored(found: Callable[[], Any], like: Callable[[], Any]) -> Any:
    """`found()`, out of reach for the loops that read it; `like` gives arrays of the same types, which nobody sees.

    XLA for CPUs makes one loop of an element-wise result and of its reader, whatever that costs, and barriers are gone
    by then. A branch is not: its predicate is unknown until the program runs, and then it always holds.

    Example:
      >>> x = jnp.arange(3)
      >>> stored(lambda: x + 1, lambda: jnp.zeros_like(x)).tolist()
      [1, 2, 3]
    """
    if not devices.on_processor():
        return lax.optimization_barrier(found())
    return lax.cond(lax.optimization_barrier(jnp.ones((), bool)), found, like)


def opaque(numbers: Sequence[int]) -> list[jax.Array]:
    """The numbers as uint32 scalars that XLA cannot see into, so that it compiles once what differs by them alone.

    Example:
      >>> [int(n) for n in opaque([3, 5])]
      [3, 5]
    """
    return stored(lambda: [jnp.uint32(n) for n in numbers], lambda: [jnp.uint32(0)] * len(numbers))

"""The search for cuts: between which two neighbouring keys the k largest end.

A problem is a set of keys and a number k. Its bracket holds the cut. In a pass all keys are compared with a few
candidates at once: guesses around where the cut is if the keys in the bracket are spread evenly. Where that has not
found it soon, one candidate halves the bracket, so that no spread of keys needs many more passes than a key has bits.
Typically four or five passes find the cut among millions. Many problems can be searched together, as arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.selection import devices
from sparsejax.selection.counts import Count, as_float, at_least, choose, equal, minus
from sparsejax.selection.keys import highest

# Guesses, in standard deviations of a rank under evenly spread keys. Processors pay for each comparison; accelerators
# wait for memory, and for one another, so that a pass costs them the same whatever is compared.
FEW, MANY = (-0.9, 0.0, 0.9), (-2.0, -1.2, -0.6, 0.0, 0.6, 1.2, 2.0)
SOON = 5  # passes after which brackets are halved too


def spread() -> tuple[float, ...]:
    """Where the candidates of a pass lie."""
    return FEW if devices.on_processor() else MANY


class Bracket(NamedTuple):
    """Where the cut lies: count(keys >= lo) = at_lo >= k > above = count(keys > top).

    The search ends where at_lo = k (keep all from lo on), or lo = top (of those equal to lo, k - above).
    """

    lo: jax.Array
    top: jax.Array
    at_lo: Count
    above: Count


# (operands, candidates) -> how many keys are at least each; candidates have a leading axis, and so have the counts.
Counting = Callable[[Any, jax.Array], Count]


def widest(size: Count, like: jax.Array) -> Bracket:
    """The bracket of which nothing is known, shaped and sharded as `like`."""
    zero = jnp.zeros_like(like)
    none = Count(jnp.zeros_like(size.hi), jnp.zeros_like(size.lo))
    return Bracket(zero, jnp.full_like(like, highest(like.dtype)), size, none)


def narrowed(bracket: Bracket, k: Count, candidates: jax.Array, counts: Count) -> Bracket:
    """The bracket after candidates, in any order, have been counted."""
    lo, top, at_lo, above = bracket
    for candidate, *words in zip(candidates, *counts, strict=True):
        count = Count(*words)
        enough = at_least(count, k)
        up = enough & (candidate > lo)
        down = ~enough & (candidate <= top)
        lo, at_lo = jnp.where(up, candidate, lo), choose(up, count, at_lo)
        top, above = jnp.where(down, candidate - 1, top), choose(down, count, above)
    return Bracket(lo, top, at_lo, above)


def is_found(bracket: Bracket, k: Count) -> jax.Array:
    """Whether the bracket decides which keys are kept; of k = 0, and of more than there are, at once."""
    nothing = (k.hi | k.lo) == 0
    return nothing | at_least(k, bracket.at_lo) | (bracket.lo >= bracket.top)


def candidates_in(bracket: Bracket, k: Count, passed: jax.Array) -> jax.Array:
    """Keys above lo, up to top, for the pass after so many; `spread` says how many."""
    lo, top, at_lo, above = bracket
    width, steps = top - lo, spread()
    span = width.astype(jnp.float32)
    inside = as_float(minus(at_lo, above)) + 1  # gaps between the keys in the bracket and its ends
    rank = as_float(minus(k, above)) + 0.5
    nearer = jnp.minimum(rank, inside - rank)
    octave = 2.0 ** {1: 3, 2: 7, 4: 23, 8: 52}[lo.dtype.itemsize]  # keys of floats: over one, density changes by half
    deviation = jnp.sqrt(jnp.maximum(rank * (inside - rank), 0) / inside) + 0.3 * nearer * jnp.minimum(span / octave, 1)
    found = []
    for i, step in enumerate(steps):
        share = jnp.clip(1 - (rank + step * deviation) / inside, 0.0, 1 - 2.0**-22)
        guess = jnp.minimum((share * span).astype(lo.dtype), width - 1)
        if step == 0.0:
            guess = jnp.where(passed < SOON, guess, (width - 1) >> 1)
        found.append(lo + 1 + jnp.where(width <= len(steps), jnp.array(i, lo.dtype), guess))
    return jnp.stack([jnp.minimum(candidate, top) for candidate in found])


def search(counting: Counting, operands: Any, k: Count, bracket: Bracket) -> Bracket:
    """Narrows the brackets until each is found; `k` is shaped as they are."""

    def body(state):
        passed, bracket = state
        # The barrier keeps XLA from computing the keys once, before the loop, and storing them.
        read, lo = lax.optimization_barrier((operands, bracket.lo))
        bracket = bracket._replace(lo=lo)
        candidates = candidates_in(bracket, k, passed)
        return passed + 1, narrowed(bracket, k, candidates, counting(read, candidates))

    return lax.while_loop(lambda state: jnp.any(~is_found(state[1], k)), body, (jnp.int32(0), bracket))[1]


def remaining(bracket: Bracket, k: Count) -> tuple[jax.Array, Count]:
    """Whether keys equal to lo must be told apart, and how many of them are kept (else all)."""
    tied = ~at_least(k, bracket.at_lo) & (bracket.lo >= bracket.top) & ~equal(k, bracket.above)
    return tied, choose(tied, minus(k, bracket.above), minus(bracket.at_lo, bracket.above))

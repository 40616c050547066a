"""The search for cuts: between which two neighbouring keys the k largest end.

A problem is a set of keys and a number k. Its bracket holds the cut. In a pass all keys are compared with a few
candidates at once. Two are guesses around where the cut is if the keys in the bracket are spread evenly; two lie near
its ends, for keys that cluster there; and one halves it, so that no spread of keys needs more passes than a key has
bits. Typically four or five passes find the cut among millions. Many problems are searched together, as arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.selection.counts import Count, as_float, at_least, choose, equal, minus
from sparsejax.selection.keys import highest

SPREAD = (-0.8, 0.8)  # guesses, in standard deviations of a rank under evenly spread keys
END = 4  # candidates near the ends lie 2^-END of the bracket inside


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


def candidates_in(bracket: Bracket, k: Count) -> jax.Array:
    """Keys above lo, up to top."""
    lo, top, at_lo, above = bracket
    width = top - lo
    span = width.astype(jnp.float32)
    inside = as_float(minus(at_lo, above)) + 1  # gaps between the keys in the bracket and its ends
    rank = as_float(minus(k, above)) + 0.5
    nearer = jnp.minimum(rank, inside - rank)
    octave = 2.0 ** {1: 3, 2: 7, 4: 23, 8: 52}[lo.dtype.itemsize]  # keys of floats: over one, density changes by half
    deviation = jnp.sqrt(jnp.maximum(rank * (inside - rank), 0) / inside) + 0.3 * nearer * jnp.minimum(span / octave, 1)
    found = [lo + (width >> 1) + (width & 1), lo + (width >> END) + 1, top - (width >> END)]
    for step in SPREAD:
        share = jnp.clip(1 - (rank + step * deviation) / inside, 0.0, 1 - 2.0**-22)
        found.append(lo + jnp.minimum((share * span).astype(lo.dtype), width - 1) + 1)
    return jnp.stack([jnp.minimum(candidate, top) for candidate in found])


def search(counting: Counting, operands: Any, k: Count, bracket: Bracket) -> Bracket:
    """Narrows the brackets until each is found; `k` is shaped as they are."""

    def body(bracket):
        # The barrier keeps XLA from computing the keys once, before the loop, and storing them.
        read, lo = lax.optimization_barrier((operands, bracket.lo))
        bracket = bracket._replace(lo=lo)
        candidates = candidates_in(bracket, k)
        return narrowed(bracket, k, candidates, counting(read, candidates))

    return lax.while_loop(lambda bracket: jnp.any(~is_found(bracket, k)), body, bracket)


def remaining(bracket: Bracket, k: Count) -> tuple[jax.Array, Count]:
    """Whether keys equal to lo must be told apart, and how many of them are kept (else all)."""
    tied = ~at_least(k, bracket.at_lo) & (bracket.lo >= bracket.top) & ~equal(k, bracket.above)
    return tied, choose(tied, minus(k, bracket.above), minus(bracket.at_lo, bracket.above))

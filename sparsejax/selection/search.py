"""The search for cuts: between which two neighbouring keys the k largest end.

A problem is a set of keys and a number k. Its bracket holds the cut. In a pass all keys are compared with a few
candidates at once: guesses around where the cut is if the keys in the bracket are spread evenly. Keys that cluster (the
weights that Adam has just begun to move are all as large as its step) would defeat such guesses one after another: a
pass that has told few keys apart is followed by one whose candidates lie near the ends of the bracket, which finds a
cluster in few more, and one that halves it. Typically four or five passes find the cut among millions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsejax.selection import devices
from sparsejax.selection.counts import Count, as_float, at_least, choose, equal, minus
from sparsejax.selection.keys import highest

# Guesses, in standard deviations of a rank under evenly spread keys. Processors pay for each comparison; accelerators
# wait for memory, and for one another, so that a pass costs them the same whatever is compared.
FEW, MANY = (-0.9, 0.0, 0.9), (-2.0, -1.2, -0.6, 0.0, 0.6, 1.2, 2.0)
FEWER, SMALL = 2, 64  # a pass is slow that leaves more than 1 / FEWER of the keys in a bracket, and more than SMALL
NARROWER = 16  # but it is no use to go on near the ends where that has not made the bracket so many times narrower


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


def inside(bracket: Bracket) -> jax.Array:
    """How many keys there are in a bracket, to float32's precision."""
    return as_float(minus(bracket.at_lo, bracket.above))


def is_slow(before: Bracket, after: Bracket, was: jax.Array, small: int = SMALL) -> jax.Array:
    """Whether a pass has told few keys apart, and more than `small` are left.

    `was`: whether its own candidates lay near the ends.
    """
    slow = (inside(after) * FEWER > inside(before)) & (inside(after) > small)
    useless = was & ((after.top - after.lo) > (before.top - before.lo) // NARROWER)
    return slow & ~useless


def candidates_in(bracket: Bracket, k: Count, slow: jax.Array, steps: Sequence[float] = ()) -> jax.Array:
    """Keys above lo, up to top, by default as `spread` says; near the ends and in the middle after a slow pass."""
    lo, top, _, above = bracket
    width, steps = top - lo, steps or spread()
    span = width.astype(jnp.float32)
    gaps = inside(bracket) + 1  # between the keys in the bracket and its ends
    rank = as_float(minus(k, above)) + 0.5
    nearer = jnp.minimum(rank, gaps - rank)
    uneven = jnp.minimum(span / octave(lo.dtype), 1)  # over an octave, the density of keys changes by half
    deviation = jnp.sqrt(jnp.maximum(rank * (gaps - rank), 0) / gaps) + 0.3 * nearer * uneven
    last = jnp.maximum(width, 1) - 1
    found = []
    for i, step in enumerate(steps):
        share = jnp.clip(1 - (rank + step * deviation) / gaps, 0.0, 1 - 2.0**-22)
        guess = jnp.minimum((share * span).astype(lo.dtype), last)
        # After a slow pass: 2^(1/2), or another root, of the width from an end; or, of the middle one, in the middle.
        away = jnp.minimum((span ** (1 - abs(step) / (2 * max(steps)))).astype(lo.dtype), last)
        apart = last >> 1 if step == 0.0 else away if step > 0 else last - away
        guess = jnp.where(slow, apart, guess)
        found.append(lo + 1 + jnp.where(width <= len(steps), jnp.array(i, lo.dtype), guess))
    return jnp.stack([jnp.minimum(candidate, top) for candidate in found])


def octave(dtype: Any) -> int:
    """How many keys floats have from one power of two to the next."""
    return 2 ** {1: 3, 2: 7, 4: 23, 8: 52}[np.dtype(dtype).itemsize]


def search(counting: Counting, operands: Any, k: Count, bracket: Bracket) -> Bracket:
    """Narrows the brackets until each is found; `k` is shaped as they are."""

    def body(state):
        slow, bracket = state
        # The barrier keeps XLA from computing the keys once, before the loop, and storing them.
        read, lo = lax.optimization_barrier((operands, bracket.lo))
        bracket = bracket._replace(lo=lo)
        candidates = candidates_in(bracket, k, slow)
        narrower = narrowed(bracket, k, candidates, counting(read, candidates))
        return is_slow(bracket, narrower, slow), narrower

    begin = jnp.zeros_like(is_found(bracket, k))
    return lax.while_loop(lambda state: jnp.any(~is_found(state[1], k)), body, (begin, bracket))[1]


def remaining(bracket: Bracket, k: Count) -> tuple[jax.Array, Count]:
    """Whether keys equal to lo must be told apart, and how many of them are kept (else all)."""
    tied = ~at_least(k, bracket.at_lo) & (bracket.lo >= bracket.top) & ~equal(k, bracket.above)
    return tied, choose(tied, minus(k, bracket.above), minus(bracket.at_lo, bracket.above))

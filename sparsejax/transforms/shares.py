"""Weights dealt out over layers: a total of integers, in proportion to scores, the same on any number of devices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.selection.counts import (
    Count,
    as_count,
    as_float,
    choose,
    count_true,
    minus,
    plus,
    scaled,
    smaller,
    total,
)

STEPS = 65_535  # of which a value is so many at most, where values are added up as integers


def dealt(amount: Count, scores: jax.Array, room: Count, most: Count | None = None) -> Count:
    """A total of integers dealt out in proportion to scores, at most `room` each; exactly the total, if it fits.

    The first i layers together get floor(total * (their share of the scores)). What does not fit is dealt out again in
    the same way among the layers that have room left; with no room anywhere, up to `most`.

    Args:
      amount: the total, a scalar Count.
      scores: (layers,) float32, not negative; where those of all that have room are 0, all count alike.
      room, most: (layers,).

    Example:
      >>> ones = jnp.ones(3)
      >>> (dealt(as_count(8), ones, as_count(jnp.array([1, 9, 9]))).lo).tolist()
      [1, 3, 4]
    """
    layers = len(scores)
    last = jnp.arange(layers) == layers - 1

    def body(state):
        given, left = state
        space = _space(given, room, most)
        open_ = _some(space)
        weight = jnp.where(open_, scores, 0.0)
        weight = jnp.where(jnp.any(weight > 0), weight, open_.astype(jnp.float32))
        running = _running_sum(weight)
        spread = Count(*(jnp.broadcast_to(word, (layers,)) for word in left))
        upto = choose(last, spread, scaled(spread, running / running[-1]))
        more = smaller(minus(upto, _shifted(upto)), space)
        return plus([given, more]), minus(left, added(more))

    def goes_on(state):
        given, left = state
        return _some(left) & jnp.any(_some(_space(given, room, most)))

    nothing = jnp.zeros(layers, jnp.uint32)
    return lax.while_loop(goes_on, body, (Count(nothing, nothing), amount))[0]


def _space(given: Count, room: Count, most: Count | None) -> Count:
    """What may still be given: within the room while there is any, then up to the most."""
    within = minus(room, given)
    return within if most is None else choose(jnp.any(_some(within)), within, minus(most, given))


def _some(count: Count) -> jax.Array:
    return (count.hi | count.lo) != 0


def _shifted(counts: Count) -> Count:
    """Each entry's predecessor, 0 before the first."""
    return Count(*(jnp.concatenate([jnp.zeros(1, word.dtype), word[:-1]]) for word in counts))


def _running_sum(values: jax.Array) -> jax.Array:
    """The sums of the first 1, 2, ... values: added up one by one, since another order would round otherwise."""
    return lax.scan(lambda total, value: (total + value,) * 2, jnp.zeros((), values.dtype), values)[1]


def added(counts: Count) -> Count:
    """The sum of a vector of counts, a scalar."""
    return Count(*(word.reshape(()) for word in total(counts, (0,))))


def listed(counts: Sequence[Count]) -> Count:
    """The counts of the slices of several leaves, one after the other: (layers,)."""
    return Count(*(jnp.concatenate([jnp.ravel(word) for word in words]) for words in zip(*counts, strict=True)))


def split(counts: Count, like: Sequence[Count]) -> list[Count]:
    """`listed` undone: (layers,) as the counts of each leaf's slices."""
    found, begin = [], 0
    for each in like:
        end = begin + each.lo.size
        found.append(Count(*(word[begin:end].reshape(each.lo.shape) for word in counts)))
        begin = end
    return found


def mean_of(values: jax.Array, mask: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The mean of the values >= 0 that the mask keeps, over `axes` (kept with size 1); 0 where it keeps none.

    Values are rounded to 65,535ths of the largest and added up as integers, so that the mean, and with it the masks,
    does not depend on the order of the sum: on devices, lanes or the compiler.
    """
    kept = jnp.where(mask & jnp.isfinite(values), values.astype(jnp.float32), 0.0)
    top = jnp.max(kept, axes, keepdims=True)
    steps = jnp.round(kept / jnp.where(top > 0, top, 1.0) * STEPS).astype(jnp.uint32)
    sums = Count(jnp.zeros_like(steps), steps)
    for part in _parts(values.shape, axes):
        sums = total(sums, part)
    number = as_float(count_true([mask], axes)[0])
    return top * (as_float(sums) / STEPS) / jnp.maximum(number, 1.0)


def _parts(shape: tuple[int, ...], axes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The axes, hindmost first, in parts of fewer than 2^24 entries each (a longer axis is a part of its own)."""
    parts: list[tuple[int, ...]] = []
    for axis in reversed(axes):
        if parts and math.prod(shape[a] for a in (*parts[-1], axis)) < 2**24:
            parts[-1] = (axis, *parts[-1])
        else:
            parts.append((axis,))
    return parts


def sizes(shape: tuple[int, ...], axes: tuple[int, ...], like: Count) -> Count:
    """How many entries each slice has, in the shape of its counts."""
    size = as_count(math.prod(shape[axis] for axis in axes))
    return Count(*(jnp.full(like.lo.shape, word) for word in size))

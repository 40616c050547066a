"""Integers of up to 48 bits: how many weights there are, and are kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

WORD = 2**32  # counts and indices of one reduction stay below it; a larger array takes two words


class Count(NamedTuple):
    """A non-negative integer below 2^48 as `hi * 2^16 + lo`, since without x64 the widest integer has 32 bits."""

    hi: jax.Array
    lo: jax.Array


def as_count(k: int | jax.Array) -> Count:
    """A Python integer, or an array of 32-bit integers, as a Count."""
    if isinstance(k, Integral):
        k = int(k)
        return Count(jnp.uint32(k >> 16), jnp.uint32(k & 0xFFFF))
    k = jnp.asarray(k).astype(jnp.uint32)
    return Count(k >> 16, k & 0xFFFF)


def as_float(n: Count) -> jax.Array:
    """The count to float32's precision."""
    return n.hi.astype(jnp.float32) * 65536 + n.lo.astype(jnp.float32)


def at_least(a: Count, b: Count) -> jax.Array:
    """a >= b."""
    return (a.hi > b.hi) | ((a.hi == b.hi) & (a.lo >= b.lo))


def equal(a: Count, b: Count) -> jax.Array:
    """a == b."""
    return (a.hi == b.hi) & (a.lo == b.lo)


def choose(condition: jax.Array, a: Count, b: Count) -> Count:
    """a where the condition holds, else b."""
    return Count(jnp.where(condition, a.hi, b.hi), jnp.where(condition, a.lo, b.lo))


def stacked(counts: Sequence[Count]) -> Count:
    """Counts along a new leading axis."""
    return Count(jnp.stack([c.hi for c in counts]), jnp.stack([c.lo for c in counts]))


def plus(counts: Sequence[Count]) -> Count:
    """The sum of at most 2^16 counts."""
    hi = sum((c.hi for c in counts[1:]), counts[0].hi)
    lo = sum((c.lo for c in counts[1:]), counts[0].lo)
    return Count(hi + (lo >> 16), lo & 0xFFFF)


def minus(a: Count, b: Count) -> Count:
    """a - b, or 0 where b is larger."""
    borrow = (a.lo < b.lo).astype(jnp.uint32)
    fits = at_least(a, b)
    return Count(jnp.where(fits, a.hi - b.hi - borrow, 0), jnp.where(fits, a.lo + (borrow << 16) - b.lo, 0))


def smaller(a: Count, b: Count) -> Count:
    """The smaller of a and b."""
    return choose(at_least(b, a), a, b)


def scaled(n: Count, fraction: float | jax.Array, rounding: str = "floor") -> Count:
    """floor (or ceil) of fraction * n in float32, at most n; a product within rounding of an integer counts as it."""
    return smaller(n, rounded(as_float(n) * fraction, rounding))


def rounded(product: jax.Array, rounding: str = "floor") -> Count:
    """floor (or ceil) of float32 numbers >= 0; one within rounding of an integer counts as it."""
    near = 2e-7 * product
    whole = jnp.ceil(product - near) if rounding == "ceil" else jnp.floor(product + near)
    hi = jnp.floor(whole / 65536)
    return Count(hi.astype(jnp.uint32), (whole - hi * 65536).astype(jnp.uint32))


def count_true(masks: Sequence[jax.Array], axes: tuple[int, ...]) -> list[Count]:
    """How many are True in each of several equally shaped masks, over `axes` (kept with size 1), in one pass."""
    shape = masks[0].shape
    first = axes
    while math.prod(shape[axis] for axis in first) >= WORD:  # leading axes are added up afterwards, in two words
        first = first[1:]
    words = [as_count(lax.expand_dims(total, first)) for total in sums(masks, first)]
    leading = axes[: len(axes) - len(first)]
    return [total(word, leading) for word in words] if leading else words


def sums(masks: Sequence[jax.Array], axes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """How many are True in each mask over axes with fewer than 2^32 entries together, which go."""
    add = lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True))
    zeros = tuple(jnp.uint32(0) for _ in masks)
    # One variadic reduction: a lone sum of a predicate is given a temporary of the array's size.
    return tuple(lax.reduce(tuple(m.astype(jnp.uint32) for m in masks), zeros, add, axes))


def total(counts: Count, axes: tuple[int, ...]) -> Count:
    """The sum over axes (kept with size 1) with fewer than 2^24 entries together."""
    parts = (counts.lo & 0xFF, counts.lo >> 8, counts.hi)  # bytes, so that none overflows
    low, middle, high = (jnp.sum(part, axis=axes, keepdims=True) for part in parts)
    return plus([as_count(low), Count(middle >> 8, (middle & 0xFF) << 8), Count(high, jnp.zeros_like(high))])

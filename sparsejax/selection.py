"""Exact selection of the k largest scores without a sort: counting passes over order-preserving bit patterns.

A score becomes an unsigned key with the same order. The key of the k-th largest is found from its leading bits on: a
pass counts, for each value of the next `BITS_PER_PASS` bits, the keys at or above it. Nothing is stored: keys are made
anew from the operands in every pass (an optimization barrier keeps XLA from hoisting them). No array is reshaped,
sorted or gathered, so a sharded leaf costs a few scalars of communication a pass, and gives the same mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

BITS_PER_PASS = 2
WORD = 2**32  # counts and indices of one reduction stay below it; a larger array takes two words


class Count(NamedTuple):
    """A non-negative integer below 2^48 as `hi * 2^16 + lo`, since without x64 the widest integer has 32 bits."""

    hi: jax.Array
    lo: jax.Array


class Scores(NamedTuple):
    """Keys of one leaf, computed, not stored: `keys(*operands)` is an array of unsigned integers, larger = keep.

    Attributes:
      keys: element-wise function of the operands.
      operands: arrays that the passes read.
    """

    keys: Callable[..., jax.Array]
    operands: tuple[Any, ...]


def order_key(x: jax.Array) -> jax.Array:
    """Unsigned integers in the order of `x`: NaN lowest, -0 equal to +0, subnormals ordered.

    Floating keys leave 0 and the largest value unused, so that a caller can rule entries out, or in.
    """
    width = x.dtype.itemsize * 8
    if x.dtype == jnp.bool_ or jnp.issubdtype(x.dtype, jnp.unsignedinteger):
        return x.astype(f"uint{width}")
    unsigned = jnp.dtype(f"uint{width}")
    sign = jnp.array(1 << (width - 1), unsigned)
    bits = lax.bitcast_convert_type(x, unsigned)
    if jnp.issubdtype(x.dtype, jnp.signedinteger):
        return bits ^ sign
    bits = jnp.where(bits == sign, jnp.zeros_like(bits), bits)
    infinity = lax.bitcast_convert_type(jnp.array(jnp.inf, x.dtype), unsigned)
    ordered = jnp.where(bits >= sign, ~bits, bits | sign)
    return jnp.where((bits & ~sign) > infinity, jnp.ones_like(bits), ordered)


def _value(key: jax.Array, dtype: Any) -> jax.Array:
    """The score whose `order_key` is `key`."""
    unsigned, width = key.dtype, key.dtype.itemsize * 8
    sign = jnp.array(1 << (width - 1), unsigned)
    if dtype == jnp.bool_ or jnp.issubdtype(dtype, jnp.unsignedinteger):
        return key.astype(dtype)
    if jnp.issubdtype(dtype, jnp.signedinteger):
        return lax.bitcast_convert_type(key ^ sign, dtype)
    value = lax.bitcast_convert_type(jnp.where(key >= sign, key ^ sign, ~key), dtype)
    return jnp.where(key == 1, jnp.array(jnp.nan, dtype), value)


def as_count(k: int | jax.Array) -> Count:
    """A Python integer, or an array of 32-bit integers, as a Count."""
    if isinstance(k, Integral):
        k = int(k)
        return Count(jnp.uint32(k >> 16), jnp.uint32(k & 0xFFFF))
    k = jnp.asarray(k).astype(jnp.uint32)
    return Count(k >> 16, k & 0xFFFF)


def _at_least(a: Count, b: Count) -> jax.Array:
    return (a.hi > b.hi) | ((a.hi == b.hi) & (a.lo >= b.lo))


def minus(a: Count, b: Count) -> Count:
    """a - b, or 0 where b is larger."""
    borrow = (a.lo < b.lo).astype(jnp.uint32)
    fits = _at_least(a, b)
    return Count(jnp.where(fits, a.hi - b.hi - borrow, 0), jnp.where(fits, a.lo + (borrow << 16) - b.lo, 0))


def scaled(n: Count, fraction: float | jax.Array, rounding: str = "floor") -> Count:
    """floor (or ceil) of fraction * n in float32, at most n; a product within rounding of an integer counts as it."""
    product = (n.hi.astype(jnp.float32) * 65536 + n.lo.astype(jnp.float32)) * fraction
    near = 2e-7 * product
    whole = jnp.ceil(product - near) if rounding == "ceil" else jnp.floor(product + near)
    hi = jnp.floor(whole / 65536)
    return _min(n, Count(hi.astype(jnp.uint32), (whole - hi * 65536).astype(jnp.uint32)))


def _plus(counts: Sequence[Count]) -> Count:
    hi = sum((c.hi for c in counts[1:]), counts[0].hi)
    lo = sum((c.lo for c in counts[1:]), counts[0].lo)
    return Count(hi + (lo >> 16), lo & 0xFFFF)


def _min(a: Count, b: Count) -> Count:
    smaller = _at_least(b, a)
    return Count(jnp.where(smaller, a.hi, b.hi), jnp.where(smaller, a.lo, b.lo))


def count_true(masks: Sequence[jax.Array], axes: tuple[int, ...]) -> list[Count]:
    """How many are True in each of several equally shaped masks, over `axes` (kept with size 1), in one pass."""
    shape = masks[0].shape
    first = axes
    while math.prod(shape[axis] for axis in first) >= WORD:  # leading axes are added up afterwards, in two words
        first = first[1:]
    add = lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True))
    zeros = tuple(jnp.uint32(0) for _ in masks)
    # One variadic reduction: a lone sum of a predicate is given a temporary of the array's size.
    totals = lax.reduce(tuple(m.astype(jnp.uint32) for m in masks), zeros, add, first)
    words = [as_count(lax.expand_dims(total, first)) for total in totals]
    leading = axes[: len(axes) - len(first)]
    return [_summed(word, leading) for word in words] if leading else words


def _summed(counts: Count, axes: tuple[int, ...]) -> Count:
    """The sum over axes with fewer than 2^24 entries together; the low word in two bytes, so that none overflows."""
    parts = (counts.lo & 0xFF, counts.lo >> 8, counts.hi)
    low, middle, high = (jnp.sum(part, axis=axes, keepdims=True) for part in parts)
    return _plus([as_count(low), Count(middle >> 8, (middle & 0xFF) << 8), Count(high, jnp.zeros_like(high))])


def _search(
    holds: Callable[..., list[jax.Array]], operands: Any, shape: tuple[int, ...], dtype: Any, bits: int, run: Any = None
) -> jax.Array:
    """The largest p below 2^bits, one for each entry of `shape`, for which a monotone test holds; it holds at 0.

    `holds(operands, zero, candidates)` tests several candidates in one pass; what it adds `zero` to is computed in the
    pass. `run` False skips the search (the answer is 0).
    """
    passes = -(-bits // BITS_PER_PASS)
    top = passes * BITS_PER_PASS
    zero = jnp.uint32(0)

    def body(i, p):
        read, base, p = lax.optimization_barrier((operands, zero, p))
        shift = jnp.asarray(top - BITS_PER_PASS * (i + 1)).astype(dtype)
        candidates = [p | (jnp.array(step, dtype) << shift) for step in range(1, 2**BITS_PER_PASS)]
        reached = sum(hold.astype(dtype) for hold in holds(read, base, candidates))
        return p | (reached << shift)

    last = passes if run is None else jnp.where(run, passes, 0)
    answer = holds(operands, zero, [jnp.zeros(shape, dtype)])[0]  # never computed: only its sharding is read
    return lax.fori_loop(0, last, body, jnp.zeros_like(answer, dtype))


def _kept_shape(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(1 if axis in axes else size for axis, size in enumerate(shape))


def _threshold(leaves: Sequence[Scores], k: Count, axes: Sequence[tuple[int, ...]]) -> jax.Array:
    """The k-th largest key over all leaves (for one leaf: over its axes, slice by slice)."""
    example = jax.eval_shape(leaves[0].keys, *leaves[0].operands)
    single = len(leaves) == 1
    shape = _kept_shape(example.shape, axes[0]) if single else ()

    def holds(operands, zero, candidates):
        counts = []
        for leaf, read, over in zip(leaves, operands, axes, strict=True):
            keys = leaf.keys(*read)
            found = count_true(
                [keys >= (c if single else lax.expand_dims(c, range(keys.ndim))) for c in candidates], over
            )
            counts.append(found if single else [Count(*(word.reshape(()) for word in c)) for c in found])
        return [_at_least(_plus(per_leaf), k) for per_leaf in zip(*counts, strict=True)]

    operands = [leaf.operands for leaf in leaves]
    return _search(holds, operands, shape, example.dtype, example.dtype.itemsize * 8)


def _index_words(shape: tuple[int, ...], axes: tuple[int, ...]) -> list[tuple[Callable[[jax.Array], jax.Array], int]]:
    """The flat index inside a slice in words below WORD, the leading one first: how to compute each, and its size."""
    groups: list[list[int]] = [[]]
    for axis in reversed(axes):
        if math.prod(shape[a] for a in groups[0]) * shape[axis] >= WORD and groups[0]:
            groups.insert(0, [])
        groups[0].insert(0, axis)

    def word(group):
        def index(zero):
            total, stride = zero, 1
            for axis in reversed(group):
                along = _kept_shape(shape, tuple(a for a in range(len(shape)) if a != axis))
                total = total + lax.broadcasted_iota(jnp.uint32, along, axis) * jnp.uint32(stride)
                stride *= shape[axis]
            return total

        return index, math.prod(shape[axis] for axis in group)

    return [word(group) for group in groups]


def _first_ties(tied: Scores, r: Count, total: Count, axes: tuple[int, ...]) -> jax.Array:
    """The r lowest-indexed entries where `tied.keys` is True; searched only where r is not all of them."""
    shape = jax.eval_shape(tied.keys, *tied.operands).shape
    run = jnp.any(~_at_least(r, total))
    taken, open_ = jnp.zeros(shape, bool), tied  # already decided; still level with the bound in all words so far
    for index, size in _index_words(shape, axes):
        rest = r

        def holds(operands, zero, candidates, index=index, open_=open_, rest=rest):
            level = open_.keys(*operands)
            return [_at_least(rest, c) for c in count_true([level & (index(zero) < p) for p in candidates], axes)]

        p = _search(holds, open_.operands, _kept_shape(shape, axes), jnp.uint32, size.bit_length(), run)
        level = open_.keys(*open_.operands)
        below = level & (index(jnp.uint32(0)) < p)
        taken |= below
        r = minus(r, count_true([below], axes)[0])
        keys, operands = open_.keys, open_.operands
        open_ = Scores(
            lambda *read, keys=keys, index=index: keys(*read[:-1]) & (index(jnp.uint32(0)) == read[-1]), (*operands, p)
        )
    return jnp.where(run, taken, tied.keys(*tied.operands))


def _split_at(
    leaf: Scores,
    threshold: jax.Array,
    r: Count,
    counts: Sequence[Count],
    axes: tuple[int, ...],
    ties: jax.Array | None,
) -> jax.Array:
    """Keys above the threshold, and r of those equal to it: the lowest-indexed, or drawn with the key `ties`."""
    tied = Scores(lambda *read: leaf.keys(*read[:-1]) == read[-1], (*leaf.operands, threshold))
    above = leaf.keys(*leaf.operands) > threshold
    if ties is None:
        return above | _first_ties(tied, r, counts[1], axes)
    draw = jax.random.bits(ties, above.shape, jnp.uint32) >> 1  # one bit shorter: 0 is for entries that are not tied
    lots = Scores(lambda *read: jnp.where(tied.keys(*read[1:]), read[0] + 1, 0), (draw, *tied.operands))
    return above | (select(lots, r, axes) & tied.keys(*tied.operands))


def select(leaf: Scores, k: int | jax.Array | Count, axes: tuple[int, ...], ties: jax.Array | None = None) -> jax.Array:
    """The mask of the k entries with the largest keys, over `axes`, in each slice along the other axes.

    Args:
      leaf: keys and operands.
      k: how many, at most the slice's size; an array broadcasts against the slices.
      axes: the axes that are ranked together.
      ties: None: lowest flat index first. A PRNG key: at random.
    """
    k = k if isinstance(k, Count) else as_count(k)
    threshold = _threshold([leaf], k, [axes])
    keys = leaf.keys(*leaf.operands)
    above, tied = count_true([keys > threshold, keys == threshold], axes)
    return _split_at(leaf, threshold, minus(k, above), (above, tied), axes, ties)


def select_across(
    leaves: Sequence[Scores], k: int | jax.Array | Count, ties: Sequence[jax.Array] | None = None
) -> list[jax.Array]:
    """The masks of the k entries with the largest keys over all leaves together; ties: first leaf, lowest index first.

    Only counts cross from leaf to leaf: nothing is concatenated.
    """
    k = k if isinstance(k, Count) else as_count(k)
    shapes = [jax.eval_shape(leaf.keys, *leaf.operands) for leaf in leaves]
    if len({shape.dtype for shape in shapes}) > 1:
        found = [str(shape.dtype) for shape in shapes]
        raise ValueError(f"the scores of several leaves need one dtype to be ranked together; their keys are {found}")
    axes = [tuple(range(shape.ndim)) for shape in shapes]
    threshold = _threshold(leaves, k, axes)
    counts = []
    for leaf, over in zip(leaves, axes, strict=True):
        keys = leaf.keys(*leaf.operands)
        counts.append(count_true([keys > threshold, keys == threshold], over))
    scalar = lambda count: Count(*(word.reshape(()) for word in count))
    rest = minus(k, _plus([scalar(above) for above, _ in counts]))
    masks = []
    for i, (leaf, over) in enumerate(zip(leaves, axes, strict=True)):
        share = _min(rest, scalar(counts[i][1]))
        rest = minus(rest, share)
        masks.append(_split_at(leaf, threshold, share, counts[i], over, None if ties is None else ties[i]))
    return masks


def top_mask(
    scores: jax.Array, k: int | jax.Array, *, axes: tuple[int, ...] | None = None, ties: jax.Array | None = None
) -> jax.Array:
    """True at exactly the k largest scores; NaN is last, ties go to the lowest index or, given a PRNG key, at random.

    Args:
      scores: any shape; floating, integer or bool.
      k: 0 <= k <= number of entries ranked together; may be traced, or an array that broadcasts against the slices.
      axes: the axes ranked together, the others are slices; None is all.

    Example:
      >>> top_mask(jnp.array([0.1, -2.0, 3.0, 0.1]), 2).tolist()
      [True, False, True, False]
    """
    ranked = range(scores.ndim) if axes is None else sorted(axis % scores.ndim for axis in axes)
    return select(Scores(order_key, (scores,)), k, tuple(ranked), ties)


def kth_largest(scores: jax.Array, k: int | jax.Array) -> jax.Array:
    """The k-th largest score, 1 <= k <= scores.size, exact to the bit.

    Example:
      >>> float(kth_largest(jnp.array([0.5, -2.0, 3.0]), 2))
      0.5
    """
    axes = tuple(range(scores.ndim))
    return _value(_threshold([Scores(order_key, (scores,))], as_count(k), [axes]).reshape(()), scores.dtype)

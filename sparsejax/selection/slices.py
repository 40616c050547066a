"""Selection over axes of arrays as they are: not reshaped, sorted, gathered or stored, wherever their shards lie.

A sharded leaf costs a few scalars of communication a pass, and gets the mask that one device finds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.selection import counts
from sparsejax.selection.counts import Count, as_count, choose, count_true, minus, plus, smaller, stacked, total
from sparsejax.selection.keys import Scores, highest
from sparsejax.selection.request import AllBut, Chosen, Request, kept, marked
from sparsejax.selection.search import Bracket, Counting, narrowed, remaining, search, widest

Axes = tuple[int, ...]


class Tie(NamedTuple):
    """Entries that a search could not tell apart: where they are, how many there are and how many of them are kept."""

    where: Scores  # of bool keys
    number: Count
    keep: Count


def select_one(request: Request) -> Chosen:
    """The answer to one request."""
    scores, axes = marked(request), request.axes
    counting = _counting([scores], [axes])
    bracket, k, candidates, largest = _begun(counting, [scores], request.keep, kept_shape(scores.example.shape, axes))
    bracket = search(counting, [scores.operands], k, bracket)
    mask, tie = _above(scores, bracket, k)
    mask |= _told_apart(tie, axes, request.ties)
    return Chosen(mask, candidates, _scalar(total(largest, tuple(range(mask.ndim)))))


def select_together(requests: Sequence[Request], k: Count) -> list[Chosen]:
    """The k best entries over all leaves under one cut; among equal keys those of an earlier leaf come first."""
    leaves, axes = [marked(request) for request in requests], [request.axes for request in requests]
    counting = _counting(leaves, axes)
    bracket, k, _, _ = _begun(counting, leaves, k, ())
    bracket = search(counting, [leaf.operands for leaf in leaves], k, bracket)
    any_tied, rest = remaining(bracket, k)
    chosen = []
    for request, scores in zip(requests, leaves, strict=True):
        read, lo = lax.optimization_barrier((scores.operands, bracket.lo))
        keys = scores.keys(*read)
        lo = _at(lo, keys.ndim)
        numbers = count_true([keys >= 1, keys >= highest(keys.dtype), keys >= lo, keys > lo], request.axes)
        candidates, largest, at_lo, above = (_scalar(count) for count in numbers)
        tied = minus(at_lo, above)
        share = choose(any_tied, smaller(rest, tied), tied)
        rest = minus(rest, share)
        # What is read once more must not be stored until then.
        again, share = lax.optimization_barrier((scores.operands, share))
        mask, tie = _above(scores.of(again), bracket, k)
        mask |= _told_apart(tie._replace(number=tied, keep=share), request.axes, request.ties)
        chosen.append(Chosen(mask, candidates, largest))
    return chosen


def kept_shape(shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
    """The shape of a reduction over axes that keeps them, with size 1."""
    return tuple(1 if axis in axes else size for axis, size in enumerate(shape))


def _scalar(n: Count) -> Count:
    return Count(n.hi.reshape(()), n.lo.reshape(()))


def _at(x: jax.Array, ndim: int) -> jax.Array:
    """A scalar, or an array of `ndim` axes, as an array of `ndim` axes."""
    return lax.expand_dims(x, range(ndim)) if x.ndim == 0 else x


def _counting(leaves: Sequence[Scores], axes: Sequence[Axes]) -> Counting:
    """How many keys are at least each candidate: of one leaf slice by slice, of several together."""

    def counting(operands, candidates):
        per_leaf = []
        for leaf, read, over in zip(leaves, operands, axes, strict=True):
            keys = leaf.keys(*read)
            found = count_true([keys >= _at(candidate, keys.ndim) for candidate in candidates], over)
            per_leaf.append(found if len(leaves) == 1 else [_scalar(count) for count in found])
        return stacked([plus(each) for each in zip(*per_leaf, strict=True)])

    return counting


def _begun(counting: Counting, leaves: Sequence[Scores], keep: int | Count | AllBut, shape: tuple[int, ...]):
    """The bracket after a first pass, k, and how many keys are above 0, and how many are the highest."""
    dtype = leaves[0].example.dtype
    ends = jnp.stack([jnp.full(shape, end, dtype) for end in (1, highest(dtype))])
    counted = counting([leaf.operands for leaf in leaves], ends)
    candidates, largest = (Count(*words) for words in zip(*counted, strict=True))
    k = kept(keep, candidates)
    number = as_count(sum(leaf.example.size for leaf in leaves) // max(math.prod(shape), 1))
    full = Count(jnp.full_like(largest.hi, number.hi), jnp.full_like(largest.lo, number.lo))
    ends = jnp.stack([jnp.full_like(largest.lo, end, dtype) for end in (1, highest(dtype))])  # sharded as the counts
    bracket = narrowed(widest(full, jnp.zeros_like(largest.lo, dtype)), k, ends, counted)
    return bracket, k, candidates, largest


def _above(scores: Scores, bracket: Bracket, k: Count) -> tuple[jax.Array, Tie]:
    """The entries that a found bracket keeps for certain, and those that it ties."""
    # The barrier keeps XLA from storing the keys of the first pass for this one.
    read, found = lax.optimization_barrier((scores.operands, bracket.lo))
    tied, rest = remaining(bracket, k)
    keys = scores.keys(*read)
    lo, tied_here, some = (_at(x, keys.ndim) for x in (found, tied, (k.hi | k.lo) > 0))
    mask = ((keys > lo) | ((keys == lo) & ~tied_here)) & some
    where = Scores(lambda *read: (scores.keys(*read[:-2]) == read[-2]) & read[-1], (*read, lo, tied_here))
    return mask, Tie(where, minus(bracket.at_lo, bracket.above), rest)


def _told_apart(tie: Tie, axes: Axes, key: jax.Array | None) -> jax.Array:
    """`keep` of the tied entries: those with the lowest index, or, given a PRNG key, those with the highest draw."""
    shape = tie.where.example.shape
    mask = jnp.zeros(shape, bool)
    zero = jnp.uint32(0)
    levels: list[Any] = [(partial(_falling, word, size), zero, size) for word, size in index_words(shape, axes)]
    if key is not None:
        draw = jax.random.bits(key, shape, jnp.uint32) >> 1
        levels.insert(0, (lambda read: read + 1, draw, 2**31))
    for level, operand, size in levels:
        mask_here, tie = _level(tie, level, operand, size, axes)
        mask |= mask_here
    return mask


def _level(tie: Tie, level: Callable[[jax.Array], jax.Array], operand: jax.Array, size: int, axes: Axes):
    """Tells tied entries apart by one key in 1 ... size: those kept for certain, and those still tied."""
    keys = lambda *read: jnp.where(tie.where.keys(*read[:-1]), level(read[-1]), 0)
    scores = Scores(keys, (*tie.where.operands, operand))
    start = jnp.ones_like(tie.number.lo)
    none = Count(jnp.zeros_like(tie.number.hi), jnp.zeros_like(tie.number.lo))
    ends = Bracket(start, jnp.full_like(start, size), tie.number, none)
    if tie.number.lo.ndim == 0:  # of one leaf among several
        ends, keep = jax.tree.map(lambda x: _at(x, scores.example.ndim), (ends, tie.keep))
    else:
        keep = tie.keep
    return _above(scores, search(_counting([scores], [axes]), [scores.operands], keep, ends), keep)


def _falling(word: Callable[[jax.Array], jax.Array], size: int, zero: jax.Array) -> jax.Array:
    return jnp.uint32(size) - word(zero)


def index_words(shape: tuple[int, ...], axes: Axes) -> list[tuple[Callable[[jax.Array], jax.Array], int]]:
    """The flat index inside a slice in words below counts.WORD, the leading one first: how to compute each, its size.

    Each is added to a zero: computed where that is, so that a zero from inside a loop keeps it from being stored.
    """
    groups: list[list[int]] = [[]]
    for axis in reversed(axes):
        if math.prod(shape[a] for a in groups[0]) * shape[axis] >= counts.WORD and groups[0]:
            groups.insert(0, [])
        groups[0].insert(0, axis)
    return [(partial(flat_index, shape, group), math.prod(shape[axis] for axis in group)) for group in groups]


def flat_index(shape: tuple[int, ...], axes: Sequence[int], zero: jax.Array) -> jax.Array:
    """The row-major index of each entry along some axes, added to `zero`."""
    index, stride = zero, 1
    for axis in reversed(axes):
        along = kept_shape(shape, tuple(a for a in range(len(shape)) if a != axis))
        index = index + lax.broadcasted_iota(jnp.uint32, along, axis) * jnp.uint32(stride)
        stride *= shape[axis]
    return index

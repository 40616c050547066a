"""Selection in slices that lie side by side in memory, as the inputs of each neuron do: all are counted at once.

A count that walks down one column takes one key from each piece of memory that it touches. Here eight rows at a time
are compared, in every column with candidates of its own, and the counts of seven candidates share a word. The slices of
all leaves are searched by one loop, which skips the leaves whose cuts are found.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.selection import devices
from sparsejax.selection.counts import WORD, Count, as_count, as_float, choose, count_true, minus, sums, total
from sparsejax.selection.keys import Scores, highest
from sparsejax.selection.problems import Problems, each_alone, kept_of
from sparsejax.selection.request import AllBut, Chosen, Request, by_dtype, marked
from sparsejax.selection.search import (
    MANY,
    Bracket,
    candidates_in,
    is_found,
    is_slow,
    narrowed,
    octave,
    remaining,
    widest,
)
from sparsejax.selection.slices import flat_index, kept_shape
from sparsejax.selection.stored import stored

AT_ONCE, BITS = 8, 4  # rows whose counts of one candidate, at most 8, take four bits of a word
IN_BYTES = 16  # words whose counts are added up in bytes, before each has a word of its own
SAMPLE = 1024  # entries of a leaf that the first candidates are made of
OCTAVES = (-1.0, -0.3, 0.0, 0.25, 0.8)  # and how far they lie from the sample's cut


FEW_LEFT = 2  # keys in a bracket that need not be told apart in haste: one slice in a thousand delays all others


class Leaf(NamedTuple):
    """A leaf as (before, rows, after): its slices are the columns of `before` matrices.

    Attributes:
      request: what is asked for; entries that are not finite have the highest key.
      begin, end: where its slices are among those of all leaves.
    """

    request: Request
    begin: int
    end: int

    @property
    def shape(self) -> tuple[int, int, int]:
        axes, shape = self.request.axes, self.request.shape
        return math.prod(shape[: axes[0]]), self.request.size, math.prod(shape[axes[-1] + 1 :])

    def own(self, table: jax.Array) -> jax.Array:
        """The part (..., before, 1, after) of a table (..., slices of all leaves)."""
        before, _, after = self.shape
        return table[..., self.begin : self.end].reshape(*table.shape[:-1], before, 1, after)


# How many keys of a leaf's slices are at least each of some candidates, both (candidates, slices).
Counting = Callable[[Leaf, jax.Array], jax.Array]


def fits(request: Request) -> bool:
    """Whether a request can be answered here: slices side by side, ties by index, on one processor."""
    axes, shape = request.axes, request.shape
    here = bool(axes) and request.ties is None and devices.on_one_device() and devices.on_processor()
    if not here:
        return False
    together = axes == tuple(range(axes[0], axes[0] + len(axes)))
    beside = math.prod(shape[axes[-1] + 1 :])
    return together and beside > 1 and request.size < 1 << 16 and 0 < math.prod(shape) < WORD // 2


def select_each(requests: Sequence[Request]) -> list[Chosen]:
    """The answers to requests, each slice of each leaf on its own."""
    return by_dtype(requests, _selected)


def count_kept(mask: jax.Array, axes: tuple[int, ...]) -> Count:
    """How many are True over `axes` (kept with size 1) of a mask of fewer than counts.WORD entries."""
    scores = Scores(lambda mask: mask.astype(jnp.uint8), (mask,))
    request = Request(scores, 0, axes)
    if not 0 < mask.size < WORD // 2 or not fits(request):
        return count_true([mask], axes)[0]
    counts = _reaching(Leaf(request, 0, request.slices), jnp.ones((1, request.slices), jnp.uint8))
    return as_count(counts.reshape(kept_shape(mask.shape, axes)))


def _selected(requests: Sequence[Request]) -> list[Chosen]:
    problems, dtype = each_alone(requests), requests[0].dtype
    begin = list(itertools.accumulate([0, *(request.slices for request in requests)]))
    ready = [request._replace(scores=marked(request)) for request in requests]
    leaves = [Leaf(*each) for each in zip(ready, begin[:-1], begin[1:], strict=True)]
    guesses = jnp.concatenate([_guesses(leaf.request) for leaf in leaves], axis=1)
    number = begin[-1]
    ends = [jnp.full((1, number), key, dtype) for key in (1, highest(dtype))]
    firsts = jnp.concatenate([*ends, guesses])
    bracket = widest(as_count(jnp.asarray(problems.size)), jnp.zeros(number, dtype))
    none = as_count(jnp.zeros(number, jnp.uint32))
    candidates = largest = none
    k = kept_of(problems, slice(None), none)
    if problems.share is not None or any(request.finite is not None for request in requests):
        counts = _of_leaves(leaves, _reaching, firsts, jnp.ones(number, bool))
        candidates, largest, *_ = (Count(*words) for words in zip(*counts, strict=True))
        k = kept_of(problems, slice(None), candidates)
        bracket = narrowed(bracket, k, firsts, counts)
        firsts = candidates_in(bracket, k, jnp.zeros(number, bool), MANY)
    bracket = _searched(leaves, _reaching, k, bracket, firsts)
    bounds = _bounds(leaves, k, bracket, problems)
    return [_chosen(leaf, k, bracket.lo, bounds, candidates, largest) for leaf in leaves]


def _guesses(request: Request) -> jax.Array:
    """Keys around the cut of the whole leaf, by a sample: those of its slices lie within some octaves of it."""
    scores, keep = request.scores, request.keep
    stride = -(-math.prod(request.shape) // SAMPLE) | 1
    keys = scores.keys(*lax.optimization_barrier(scores.operands)).reshape(-1)
    taken = jnp.sort(lax.slice(keys, (stride // 2,), keys.shape, (stride,)))
    if isinstance(keep, AllBut):
        share = (1 - jnp.mean(jnp.asarray(keep.fraction, jnp.float32))) * jnp.mean(taken > 0, dtype=jnp.float32)
    else:
        share = jnp.mean(as_float(keep if isinstance(keep, Count) else as_count(keep))) / request.size
    last = len(taken) - 1
    middle = taken[jnp.clip((1 - share) * len(taken), 0, last).astype(jnp.int32)]
    away = [jnp.array(abs(octaves) * octave(request.dtype), request.dtype) for octaves in OCTAVES]
    moved = [
        middle - jnp.minimum(step, middle) if octaves < 0 else middle + jnp.minimum(step, highest(step.dtype) - middle)
        for octaves, step in zip(OCTAVES, away, strict=True)
    ]
    return jnp.broadcast_to(jnp.stack(moved)[:, None], (len(moved), request.slices))


def _of_leaves(leaves: Sequence[Leaf], counting: Counting, candidates: jax.Array, wanted: jax.Array) -> Count:
    """The counts of all leaves that have a slice where they are wanted; of others, zeros."""
    counts = []
    for leaf in leaves:
        own = candidates[:, leaf.begin : leaf.end]
        here = wanted[leaf.begin : leaf.end]
        found, left = sums([~here, here], (0,))
        some = (found < leaf.end - leaf.begin) & (left > 0)  # both read: a lone sum would become two small programs
        count, none = lambda own, leaf=leaf: counting(leaf, own), lambda own: jnp.zeros(own.shape, jnp.uint32)
        counts.append(lax.cond(some, count, none, own))
    return as_count(jnp.concatenate(counts, axis=1))


def _searched(leaves: Sequence[Leaf], counting: Counting, k: Count, bracket: Bracket, firsts: jax.Array) -> Bracket:
    """The brackets, narrowed until each is found; `firsts` are the candidates of the first pass."""

    def body(state):
        slow, bracket, candidates = state
        wanted = ~is_found(bracket, k)
        narrower = narrowed(bracket, k, candidates, _of_leaves(leaves, counting, candidates, wanted))
        narrower = jax.tree.map(lambda new, old: jnp.where(wanted, new, old), narrower, bracket)
        slow = is_slow(bracket, narrower, slow, FEW_LEFT)
        return slow, narrower, candidates_in(narrower, k, slow, MANY)

    begin = (jnp.zeros(bracket.lo.shape, bool), bracket, firsts)
    return lax.while_loop(lambda state: jnp.any(~is_found(state[1], k)), body, begin)[1]


def _bounds(leaves: Sequence[Leaf], k: Count, found: Bracket, problems: Problems) -> jax.Array:
    """The index of each slice below which entries are kept whose key is the cut, uint32 (slices,)."""
    tied, rest = remaining(found, k)
    size, nothing = jnp.asarray(problems.size), as_count(jnp.zeros_like(found.at_lo.lo))

    def counting(leaf, candidates):
        """Of entries with the cut's key, by their index: the first has the largest key."""
        scores, axes = leaf.request.scores, leaf.request.axes

        def falling(*read):
            keys = scores.keys(*read)
            lo, some = (leaf.own(table).reshape(kept_shape(keys.shape, axes)) for table in (found.lo, tied))
            index = flat_index(keys.shape, axes, jnp.uint32(0))
            return jnp.where((keys == lo) & some, jnp.uint32(leaf.request.size) - index, 0)

        request = leaf.request._replace(scores=Scores(falling, scores.operands))
        return _reaching(leaf._replace(request=request), candidates)

    ends = Bracket(jnp.ones_like(size), size, minus(found.at_lo, found.above), nothing)
    keep = choose(tied, rest, nothing)
    firsts = candidates_in(ends, keep, jnp.zeros_like(tied), MANY)
    falling = _searched(leaves, counting, keep, ends, firsts).lo
    return jnp.where(tied, size + 1 - falling, jnp.uint32(WORD - 1))


def _chosen(leaf: Leaf, k: Count, key: jax.Array, bound: jax.Array, candidates: Count, largest: Count) -> Chosen:
    """The answer for one leaf, from the tables of all."""
    request = leaf.request
    spread = lambda table: leaf.own(table).reshape(kept_shape(request.shape, request.axes))
    # The barrier keeps XLA from storing the keys that were counted for the mask.
    read, key = lax.optimization_barrier((request.scores.operands, spread(key)))
    keys, index = request.scores.keys(*read), flat_index(request.shape, request.axes, jnp.uint32(0))
    mask = ((keys > key) | ((keys == key) & (index < spread(bound)))) & spread((k.hi | k.lo) > 0)
    refused = total(jax.tree.map(lambda word: word[leaf.begin : leaf.end], largest), (0,))
    counted = isinstance(request.keep, AllBut)
    return Chosen(
        mask,
        jax.tree.map(spread, candidates) if counted else None,
        jax.tree.map(lambda word: word.reshape(()), refused),
    )


def _reaching(leaf: Leaf, candidates: jax.Array) -> jax.Array:
    """How many keys of the leaf's slices are at least each of up to seven candidates, both (candidates, slices)."""
    before, rows, after = leaf.shape
    number = len(candidates)
    bounds = candidates.reshape(number, before, 1, after)
    scores = leaf.request.scores
    # The barrier keeps XLA from computing the keys once, before the loop around this, and storing them.
    read, bounds = lax.optimization_barrier((scores.operands, bounds))
    words = _words(lambda: scores.keys(*read).reshape(before, rows, after), bounds)
    groups = words.shape[1] // math.gcd(words.shape[1], IN_BYTES)
    split = words.reshape(before, groups, -1, after)
    low = jnp.uint32(0x0F0F0F0F)
    halves = stored(
        lambda: [_sum([(split[:, :, j] >> shift) & low for j in range(split.shape[2])]) for shift in (0, BITS)],
        lambda: [jnp.zeros((before, groups, after), jnp.uint32)] * 2,
    )
    # One sum of words that hold two counts each: a reduction with several results would become as many programs.
    pairs = jnp.stack([(half >> shift) & jnp.uint32(0x00FF00FF) for shift in (0, 8) for half in halves])
    found = jnp.sum(pairs, axis=2, dtype=jnp.uint32)
    counts = jnp.stack([found & 0xFFFF, found >> 16])
    return counts.reshape(8, *found.shape[1:])[:number].reshape(candidates.shape)


def _words(keys: Callable[[], jax.Array], bounds: jax.Array) -> jax.Array:
    """Of every eight rows of keys (before, rows, after), how many are at least each bound, in four bits of a word.

    Words of zeros fill up their number to one that `IN_BYTES` divides.
    """
    before, rows, after = jax.eval_shape(keys).shape
    whole, rest = divmod(rows, AT_ONCE)

    def of(start, groups, size):
        members = lax.slice_in_dim(keys(), start, start + groups * size, axis=1).reshape(before, groups, size, after)
        shifted = lambda j, i: (members[:, :, j] >= bounds[i]).astype(jnp.uint32) << (BITS * i)
        return _sum([shifted(j, i) for j in range(size) for i in range(len(bounds))])

    zeros = lambda number: jnp.zeros((before, number, after), jnp.uint32)
    found = [stored(lambda: of(0, whole, AT_ONCE), lambda: zeros(whole))] if whole else []
    if rest:
        found.append(of(AT_ONCE * whole, 1, rest))
    number = whole + (rest > 0)
    number += -number % IN_BYTES if number > IN_BYTES else 0
    if found[0].shape[1] == number:
        return found[0]
    filled, at = zeros(number), 0
    for part in found:
        filled = lax.dynamic_update_slice_in_dim(filled, part, at, axis=1)
        at += part.shape[1]
    return filled


def _sum(arrays: Sequence[jax.Array]) -> jax.Array:
    return sum(arrays[1:], arrays[0])

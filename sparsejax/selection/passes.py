"""Selection in many leaves at once, on one device, by passes over them as they lie: nothing of a leaf is stored.

A pass counts how many entries of every leaf reach each of a few candidates; leaves whose cut is found sit out the
later passes. The first candidates come from a sample. Where the cut falls among equal keys, the search goes on among
their indices, in passes of the same kind: what is compared is an entry's *word*, its key, or, once the keys equal to
the cut's are told apart, its place among those.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsejax.selection import devices
from sparsejax.selection.counts import WORD, Count, as_count, as_float, choose, minus, scaled, sums
from sparsejax.selection.keys import highest
from sparsejax.selection.request import AllBut, Chosen, Request
from sparsejax.selection.search import Bracket, candidates_in, is_found, narrowed, remaining, search
from sparsejax.selection.slices import flat_index

SAMPLE = 512  # entries of a slice that the first candidates are made of
SAMPLE_TOGETHER = 8192  # of all leaves, where they are ranked together
ROW = 256  # entries that the inner reduction of a count adds up, at least
LARGE = 2**20  # entries of a leaf whose counts are added up in two steps, for several threads
MOST = 64  # slices of a leaf; more are searched in the leaf's own shape


class Part(NamedTuple):
    """One leaf of a search.

    Attributes:
      request: what is asked of it.
      problems: which problems its slices are; all leaves that are ranked together share one.
      shape: of its part of an array of problems: the leaf's, with size 1 along axes ranked together.
      offset: index of the leaf's first entry in its problem.
    """

    request: Request
    problems: slice
    shape: tuple[int, ...]
    offset: int = 0


class Problems(NamedTuple):
    """What is searched, (problems,) each.

    Attributes:
      size: entries.
      top: the highest key.
      keep: Count; of the problems whose share is negative, or of all where share is None.
      share: the fraction of AllBut.
      up: whether that is rounded up.
    """

    size: np.ndarray
    top: np.ndarray
    keep: Count
    share: jax.Array | None
    up: np.ndarray


class Search(NamedTuple):
    """The state of all problems between two passes.

    Attributes:
      passed: passes so far.
      bracket: of the words that are compared now.
      k, candidates: entries to keep, and those with a key above 0.
      tied, key: whether entries with this key are told apart by index now.
      words: candidates of the next pass, (5, problems).
      own: of each leaf, as an array of its own, so that leaves of one shape share a program: tied, key, the last word
        kept, and the candidates.
    """

    passed: jax.Array
    bracket: Bracket
    k: Count
    candidates: Count
    tied: jax.Array
    key: jax.Array
    words: jax.Array
    own: list[jax.Array]


def fits(request: Request) -> bool:
    """Whether a request can be answered here: ties by index, and indices of one word."""
    return request.ties is None and devices.on_one_device() and 0 < request.size < WORD // 2 and request.slices <= MOST


def select_each(requests: Sequence[Request]) -> list[Chosen]:
    """The answers to requests, each leaf on its own."""
    dtype = _wide(requests)
    begin = np.cumsum([0, *(request.slices for request in requests)])
    parts = [Part(r, slice(begin[i], begin[i + 1]), _kept_shape(r)) for i, r in enumerate(requests)]
    samples = [_sample(request, dtype, max(1, request.size // SAMPLE), SAMPLE) for request in requests]
    return _selected(parts, _problems(requests), _padded(samples), dtype)


def select_together(requests: Sequence[Request], keep: Count) -> list[Chosen]:
    """The `keep` best entries over all leaves; among equal keys those of an earlier leaf come first."""
    sizes = [math.prod(request.shape) for request in requests]
    begin, total = np.cumsum([0, *sizes]), sum(sizes)
    parts = [Part(r, slice(0, 1), (1,) * len(r.shape), int(begin[i])) for i, r in enumerate(requests)]
    all_axes = [r._replace(axes=tuple(range(len(r.shape)))) for r in requests]
    rows = [_sample(r, _wide(requests), max(1, total // SAMPLE_TOGETHER), None) for r in all_axes]
    dtype, size = _wide(requests), np.array([total], np.uint32)
    problems = Problems(size, _top(all_axes[0]), Count(*(word.reshape(1) for word in keep)), None, np.array(False))
    return _selected(parts, problems, (jnp.concatenate(rows, axis=1), sum(row.shape[1] for row in rows)), dtype)


def _wide(requests: Sequence[Request]) -> Any:
    """A dtype that holds the keys of all leaves, and their indices."""
    return max([jnp.dtype(jnp.uint32), *(request.dtype for request in requests)], key=lambda dtype: dtype.itemsize)


def _top(request: Request) -> np.ndarray:
    return np.full(request.slices, np.iinfo(request.dtype).max, np.uint64)


def _kept_shape(request: Request) -> tuple[int, ...]:
    return tuple(1 if axis in request.axes else size for axis, size in enumerate(request.shape))


def _problems(requests: Sequence[Request]) -> Problems:
    def table(values, dtype):
        spread = [
            jnp.broadcast_to(jnp.asarray(v, dtype), _kept_shape(r)) if jnp.ndim(v) else jnp.full(r.slices, v, dtype)
            for v, r in zip(values, requests, strict=True)
        ]
        return jnp.concatenate([each.ravel() for each in spread])

    any_share = any(isinstance(r.keep, AllBut) for r in requests)
    keeps = [_count(r.keep) for r in requests]
    keep = Count(*(table(words, jnp.uint32) for words in zip(*keeps, strict=True)))
    size = np.concatenate([np.full(r.slices, r.size, np.uint32) for r in requests])
    fractions = [r.keep.fraction if isinstance(r.keep, AllBut) else -1.0 for r in requests]
    up = [np.full(r.slices, isinstance(r.keep, AllBut) and r.keep.rounding == "ceil") for r in requests]
    top = np.concatenate([_top(request) for request in requests])
    return Problems(size, top, keep, table(fractions, jnp.float32) if any_share else None, np.concatenate(up))


def _count(keep: int | Count | AllBut) -> Count:
    """The integer or Count; 0 for a share, which is not read."""
    return keep if isinstance(keep, Count) else as_count(keep if isinstance(keep, int) else 0)


def _kept(problems: Problems, candidates: Count) -> Count:
    """How many each problem keeps, given its candidates."""
    if problems.share is None:
        return problems.keep
    share = jnp.maximum(problems.share, 0)
    lost = scaled(candidates, share)
    if problems.up.any():
        lost = choose(jnp.asarray(problems.up), scaled(candidates, share, "ceil"), lost)
    return choose(problems.share >= 0, minus(candidates, lost), problems.keep)


def _keys(request: Request, read: Any, dtype: Any) -> jax.Array:
    """The leaf's keys in a dtype that holds those of all leaves."""
    return request.scores.keys(*read).astype(dtype)


def _sample(request: Request, dtype: Any, stride: int, most: int | None) -> jax.Array:
    """Keys of every `stride`-th entry of each slice, (slices, <= most); an odd stride, since layers like even ones."""
    keys = _keys(request, request.scores.operands, dtype)
    outer = [axis for axis in range(keys.ndim) if axis not in request.axes]
    keys = keys.transpose(*outer, *request.axes).reshape(request.slices, request.size)
    return keys[:, :: stride | 1][:, :most]


def _padded(samples: Sequence[jax.Array]) -> tuple[jax.Array, np.ndarray]:
    """Samples as one array (problems, entries), padded in front with keys 0, and how many entries each has."""
    width = max(sample.shape[1] for sample in samples)
    padded = [jnp.pad(sample, ((0, 0), (width - sample.shape[1], 0))) for sample in samples]
    return jnp.concatenate(padded), np.concatenate([np.full(len(s), s.shape[1], np.float32) for s in samples])


def _guessed(sample: jax.Array, number: np.ndarray, problems: Problems) -> jax.Array:
    """First candidates, (5, problems): key 1, and four keys around where the cut lies in the sample."""
    rank = as_float(problems.keep) * (number / problems.size.astype(np.float32))
    if problems.share is not None:
        seen = jnp.sum(sample > 0, axis=1, dtype=jnp.uint32).astype(jnp.float32)
        rank = jnp.where(problems.share >= 0, seen * (1 - problems.share), rank)
    deviation = 1.5 * jnp.sqrt(jnp.maximum(rank * (1 - rank / number), 0)) + 1
    ranks = jnp.stack([jnp.clip(rank + away, 1, number) for away in (-deviation, deviation)])
    upper, lower = _ranked(sample, as_count(ranks.astype(jnp.uint32)), problems)
    third = (upper - lower) // 3
    return jnp.stack([jnp.ones_like(lower), upper, lower, lower + third, lower + third * 2])


def _ranked(sample: jax.Array, ranks: Count, problems: Problems) -> jax.Array:
    """The keys of these ranks, (2, problems), in each problem's sample: searched as cuts are, so nothing is sorted."""

    def counting(sample, candidates):
        return as_count(jnp.sum(sample[None, None] >= candidates[..., None], axis=-1, dtype=jnp.uint32))

    top = jnp.stack([jnp.asarray(problems.top.astype(sample.dtype))] * 2)
    size = as_count(jnp.full(top.shape, sample.shape[1], jnp.uint32))
    start = Bracket(jnp.zeros_like(top), top, size, jax.tree.map(jnp.zeros_like, size))
    return search(counting, sample, ranks, start).lo


def _words(keys: jax.Array, part: Part, tied: jax.Array, key: jax.Array, zero: jax.Array) -> jax.Array:
    """What is compared: keys, or, where tied, the places of those equal to `key` below the largest word."""
    top, none = highest(keys.dtype), jnp.zeros((), keys.dtype)
    index = flat_index(part.request.shape, part.request.axes, zero).astype(keys.dtype)
    place = (top - 1 - jnp.array(part.offset, keys.dtype)) - index
    return jnp.where(tied > 0, jnp.where(keys > key, top, jnp.where(keys == key, place, none)), keys)


def _counted(part: Part, own: jax.Array, read: Any, zero: jax.Array) -> jax.Array:
    """How many entries of each slice reach each candidate, (5, slices); `zero` keeps indices from being stored."""
    tied, key, _, *candidates = own
    shape, axes = part.request.shape, part.request.axes
    words = _words(_keys(part.request, read, key.dtype), part, tied, key, zero)
    inner = axes
    if math.prod(shape) > LARGE:
        number = next((n for n in range(1, len(axes)) if math.prod(shape[a] for a in axes[-n:]) >= ROW), len(axes))
        inner = axes[-number:]
    found = sums([words >= candidate for candidate in candidates], inner)
    left = [axis for axis in range(len(shape)) if axis not in inner]
    outer = tuple(i for i, axis in enumerate(left) if axis in axes)
    return jnp.stack([jnp.sum(each, axis=outer, dtype=jnp.uint32).ravel() for each in found])


def _selected(parts: Sequence[Part], problems: Problems, sample: tuple[jax.Array, Any], dtype: Any) -> list[Chosen]:
    operands = [part.request.scores.operands for part in parts]
    share_one = all(part.problems == slice(0, 1) for part in parts)

    def owned(*rows):
        table = jnp.concatenate([jnp.atleast_2d(row).astype(dtype) for row in rows])
        return [table[:, part.problems].reshape(-1, *part.shape) for part in parts]

    def counted(state: Search, active: jax.Array) -> Count:
        # The barrier keeps XLA from computing the keys once, before the loop, and storing them.
        read, own, zero = lax.optimization_barrier((operands, state.own, state.passed >> 31))
        found = []
        for part, mine, its in zip(parts, own, read, strict=True):
            count = lambda mine, its, zero, part=part: _counted(part, mine, its, zero)
            idle = lambda mine, its, zero: jnp.zeros((5, mine[0].size), jnp.uint32)
            found.append(lax.cond(jnp.any(active[part.problems]), count, idle, mine, its, zero))
        return as_count(sum(found) if share_one else jnp.concatenate(found, axis=1))

    def body(state: Search) -> Search:
        first = state.passed == 0
        active = first | ~is_found(state.bracket, state.k)
        found = counted(state, active)
        candidates = choose(first, Count(found.hi[0], found.lo[0]), state.candidates)
        k = choose(first, _kept(problems, candidates), state.k)
        bracket = narrowed(state.bracket, k, state.words, found)
        bracket = jax.tree.map(lambda new, old: jnp.where(active, new, old), bracket, state.bracket)
        tied, key, bracket = _told_apart(state, bracket, k, problems)
        words = candidates_in(bracket, k)
        none, top = (k.hi | k.lo) == 0, highest(dtype)
        own = owned(tied | none, jnp.where(none, top, key), jnp.where(none, top, bracket.lo), words)
        return Search(state.passed + 1, bracket, k, candidates, tied, key, words, own)

    end = lax.while_loop(
        lambda state: (state.passed == 0) | jnp.any(~is_found(state.bracket, state.k)),
        body,
        _begun(problems, _guessed(*sample, problems), owned),
    )
    return _chosen(parts, end, dtype)


def _begun(problems: Problems, words: jax.Array, owned: Any) -> Search:
    size, zero = as_count(jnp.asarray(problems.size)), jnp.zeros_like(words[0])
    nothing, untold = jax.tree.map(jnp.zeros_like, size), jnp.zeros(zero.shape, bool)
    bracket = Bracket(zero, jnp.asarray(problems.top.astype(zero.dtype)), size, nothing)
    return Search(jnp.uint32(0), bracket, nothing, nothing, untold, zero, words, owned(untold, zero, zero, words))


def _told_apart(state: Search, bracket: Bracket, k: Count, problems: Problems):
    """Where the cut has just been found to fall among equal keys, the bracket of all their places."""
    tied, _ = remaining(bracket, k)
    begun = tied & ~state.tied
    top = highest(bracket.lo.dtype)
    key = jnp.where(begun, bracket.lo, state.key)
    lowest = top - jnp.asarray(problems.size).astype(top.dtype)
    lo, highest_place = jnp.where(begun, lowest, bracket.lo), jnp.where(begun, top - 1, bracket.top)
    return begun | state.tied, key, bracket._replace(lo=lo, top=highest_place)


def _chosen(parts: Sequence[Part], end: Search, dtype: Any) -> list[Chosen]:
    """The answers: entries whose word is at least the last word kept."""
    operands = lax.optimization_barrier([part.request.scores.operands for part in parts])
    chosen = []
    for part, read, (tied, key, word, *_) in zip(parts, operands, end.own, strict=True):
        mask = _words(_keys(part.request, read, dtype), part, tied, key, jnp.uint32(0)) >= word
        candidates = Count(*(each[part.problems].reshape(part.shape) for each in end.candidates))
        chosen.append(Chosen(mask, candidates, _refused(part.request)))
    return chosen


def _refused(request: Request) -> Count:
    """How many entries are not finite."""
    if request.finite is None:
        return as_count(0)
    fine = request.finite.keys(*request.finite.operands)
    # Two sums, both read: a lone one of a predicate would be given a temporary of the leaf's size.
    bad, good = sums([~fine, fine], tuple(range(fine.ndim)))
    return as_count(jnp.maximum(bad, jnp.uint32(fine.size) - good))

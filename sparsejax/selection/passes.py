"""Selection in many leaves on one device: one cut after another, reading the leaves as they lie; nothing is stored.

A program of many leaves would take long to compile if it searched each with code of its own. This one holds the search
once: its loops run over the cuts to be found, and over the passes for each (see `pieces` for what differs by leaf).

A pass counts how many keys reach each of a few candidates. The first candidates come from a sample. Where the cut falls
among equal keys, they are counted row by row, and then in the one row where the last of them lies.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsejax.batching import any_lane
from sparsejax.selection import devices
from sparsejax.selection.counts import WORD, Count, as_count, as_float, choose
from sparsejax.selection.pieces import (
    ALL,
    Pieces,
    beside,
    entries,
    equal_in_rows,
    in_pieces,
    longest_row,
    mask_of,
    reaching,
    refused,
)
from sparsejax.selection.problems import Problems, all_together, each_alone, kept_of
from sparsejax.selection.request import AllBut, Chosen, Request
from sparsejax.selection.search import (
    Bracket,
    candidates_in,
    is_found,
    is_slow,
    narrowed,
    octave,
    remaining,
    spread,
    widest,
)
from sparsejax.selection.slices import kept_shape
from sparsejax.selection.stored import opaque

SAMPLE = 1024  # entries of a slice that the first candidates are made of
SAMPLE_TOGETHER = 8192  # of all leaves, where they are ranked together
MOST = 64  # slices of a leaf; more are searched in the leaf's own shape


class Cuts(NamedTuple):
    """What is kept: of a problem, keys above `key`; of a piece, equal ones too with an index below `bound`.

    Attributes:
      key, candidates: (problems,).
      bound, refused: (pieces,); the latter says how many entries are not finite.
    """

    key: jax.Array
    candidates: Count
    bound: jax.Array
    refused: jax.Array


def fits(request: Request) -> bool:
    """Whether a request can be answered here: on one processor, ties by index of one word, slices that are few and lie
    one after another."""
    here = request.ties is None and devices.on_one_device() and devices.on_processor()
    here = here and (request.slices == 1 or (request.axes[0] > 0 and request.axes[-1] == len(request.shape) - 1))
    return here and 0 < request.slices <= MOST and 0 < math.prod(request.shape) < WORD // 2


def select_each(requests: Sequence[Request]) -> list[Chosen]:
    """The answers to requests, each slice of each leaf on its own."""
    number = [request.slices for request in requests]
    strides = np.array([-(-request.size // SAMPLE) | 1 for request in requests])
    cuts = _found(each_alone(requests), in_pieces(requests), strides)
    begin = opaque(list(itertools.accumulate([0, *number[:-1]])))
    return [_chosen(request, cuts, at, at) for request, at in zip(requests, begin, strict=True)]


def select_together(requests: Sequence[Request], keep: Count) -> list[Chosen]:
    """The `keep` best entries over all leaves; among equal keys those of an earlier leaf come first."""
    flat = [request._replace(keep=keep, axes=tuple(range(len(request.shape)))) for request in requests]
    problems = all_together(flat, keep)
    strides = np.full(len(flat), problems.size[0] // SAMPLE_TOGETHER | 1)
    cuts = _found(problems, in_pieces(flat), strides)
    begin = opaque(range(len(flat)))
    return [_chosen(request, cuts, jnp.uint32(0), at) for request, at in zip(flat, begin, strict=True)]


def _found(problems: Problems, pieces: Pieces, strides: np.ndarray) -> Cuts:
    """The cuts of all problems; `strides`: of each leaf's sample, odd, since layers like even ones."""
    length = max(_taken(pieces, strides).max(), longest_row(pieces))  # read at once, for a sample and for a row
    sizes, tops = jnp.asarray(problems.size), jnp.asarray(problems.top.astype(pieces.dtype))

    def counting(p, candidates):
        add = lambda i, found: found + reaching(pieces, i, candidates)
        return as_count(_over(problems, p, add, jnp.zeros(len(candidates), jnp.uint32)))

    def body(p, cuts):
        # Read first, so that what follows finds the weights near.
        refused_here = lambda i, table: table.at[i].set(refused(pieces, i))
        refusals = _over(problems, p, refused_here, cuts.refused)
        top, sample = tops[p], _sampled(problems, pieces, strides, length, p)
        bracket = widest(as_count(sizes[p]), top)._replace(top=top)
        first, second = _guesses(problems, p, sample)
        k, candidates, bracket, near = _searched(
            partial(counting, p), partial(kept_of, problems, p), bracket, first, second
        )
        tied, rest = remaining(bracket, k)
        none = (k.hi | k.lo) == 0
        everywhere = jnp.where(none, 0, jnp.uint32(ALL))
        all_of = _over(problems, p, lambda i, bound: bound.at[i].set(everywhere), cuts.bound)
        told = lambda: _told_apart(problems, p, pieces, length, near, (rest.hi << 16) | rest.lo, cuts.bound)
        bound = jnp.where(tied, lax.cond(any_lane(tied), told, lambda: all_of), all_of)
        put = lambda table, word: table.at[p].set(word)
        key = put(cuts.key, jnp.where(none, top, bracket.lo))
        return Cuts(key, jax.tree.map(put, cuts.candidates, candidates), bound, refusals)

    zeros, nothing = (jnp.zeros(len(table), jnp.uint32) for table in (problems.begin, pieces.leaf))
    start = Cuts(zeros.astype(pieces.dtype), Count(zeros, zeros), nothing, nothing)
    return lax.fori_loop(0, len(problems.begin), body, start)


def _searched(
    counting: Callable[[jax.Array], Count],
    kept: Callable[[Count], Count],
    bracket: Bracket,
    first: jax.Array,
    second: Callable[[Count, Count], jax.Array],
) -> tuple[Count, Count, Bracket, jax.Array]:
    """How many are kept, how many reach the last of the `first` candidates, the bracket, and the keys `beside` its lo.

    The state is two arrays and the first pass is one of the loop's, for smaller programs.
    """
    structure: Any
    unknown = as_count(jnp.zeros((), jnp.uint32))
    numbers, structure = jax.tree.flatten((jnp.zeros((), bool), jnp.zeros((), bool), unknown, unknown, bracket))
    stack = lambda state: jnp.stack([number.astype(first.dtype) for number in jax.tree.leaves(state)])

    def unstacked(row):
        return structure.unflatten([x.astype(number.dtype) for x, number in zip(row, numbers, strict=True)])

    def body(state):
        row, candidates = state
        begun, slow, k, reached, bracket = unstacked(row)
        counts = counting(candidates)
        reached = choose(begun, reached, Count(counts.hi[-1], counts.lo[-1]))
        k = choose(begun, k, kept(reached))
        narrower = narrowed(bracket, k, candidates, counts)
        slow = is_slow(bracket, narrower, slow)
        following = candidates_in(narrower, k, slow)
        following = jnp.where(begun | (narrower.lo != 1), following, jnp.minimum(second(k, reached), narrower.top))
        candidates = jnp.where(is_found(narrower, k), beside(narrower.lo), following)
        return stack((jnp.ones((), bool), slow, k, reached, narrower)), candidates

    def goes_on(state):
        begun, _, k, _, bracket = unstacked(state[0])
        return ~begun | ~is_found(bracket, k)

    row, candidates = lax.while_loop(goes_on, body, (stack(structure.unflatten(numbers)), first))
    return *unstacked(row)[2:], candidates


def _over(problems: Problems, p: jax.Array, body: Callable[[jax.Array, Any], Any], start: Any) -> Any:
    """A loop over the pieces of problem p."""
    if problems.alone:
        return body(p, start)
    return lax.fori_loop(jnp.asarray(problems.begin)[p], jnp.asarray(problems.end)[p], body, start)


def _taken(pieces: Pieces, strides: np.ndarray) -> np.ndarray:
    """How many entries of each leaf's slices are at strides // 2, 3 strides // 2, ..."""
    return -(-(np.array([leaf.rows * leaf.columns for leaf in pieces.leaves]) - strides // 2) // strides)


class Sample(NamedTuple):
    """Some of a problem's keys.

    Attributes:
      ordered: in rising order, keys 0 in front of those that are there.
      number: how many they are; positive: how many of them are above 0.
      top: the highest key that there can be.
      octave: how many keys there are from one power of two to the next.
    """

    ordered: jax.Array
    number: jax.Array
    positive: jax.Array
    top: jax.Array
    octave: jax.Array

    def around(self, rank: jax.Array, steps: np.ndarray) -> jax.Array:
        """Keys around the one of a rank: the first one falls short of it, the last one reaches beyond, most likely.

        Beyond the last key above 0 it gives a lower one, by half an octave.
        """
        deviation = 1.1 * jnp.sqrt(jnp.maximum(rank * (1 - rank / self.number), 0))
        ranks = jnp.clip(rank + deviation * np.float32(steps) + np.sign(steps).astype(np.float32), 1, self.number)
        at = lambda rank: self.ordered[len(self.ordered) - rank.astype(jnp.int32)]
        last = at(jnp.maximum(self.positive, 1))
        found = jnp.where(ranks <= self.positive, at(ranks), last - jnp.minimum(last >> 1, self.octave >> 1))
        # The first one is put above the key that it is, so that a key which many entries have is found at once.
        return found.at[0].add((found[0] < self.top).astype(found.dtype))


def _sampled(problems: Problems, pieces: Pieces, strides: np.ndarray, length: int, p: jax.Array) -> Sample:
    begin, stride = jnp.asarray(problems.begin)[p], jnp.asarray(strides.astype(np.uint32))[jnp.asarray(pieces.leaf)]
    most = int((problems.end - problems.begin).max())

    def put(i, found):
        return found.at[i - begin].set(entries(pieces, i, stride[i] >> 1, stride[i], length))

    ordered = jnp.sort(_over(problems, p, put, jnp.zeros((most, length), pieces.dtype)).ravel())
    taken = np.add.reduceat(_taken(pieces, strides)[pieces.leaf], problems.begin).astype(np.float32)
    octaves = np.array([octave(np.min_scalar_type(top)) for top in problems.top.tolist()])
    top, wide = (jnp.asarray(table.astype(pieces.dtype))[p] for table in (problems.top, octaves))
    positive = jnp.sum(ordered > 0, dtype=jnp.uint32).astype(jnp.float32)
    return Sample(ordered, jnp.asarray(taken)[p], positive, top, wide)


def _guesses(problems: Problems, p: jax.Array, sample: Sample) -> tuple[jax.Array, Callable[[Count, Count], jax.Array]]:
    """Candidates of problem p's first pass and, given k and how many keys are above 0, of the second one.

    Where some keys are 0, as those of pruned weights are, how many others there are tells more than the sample can say
    about where among them the cut lies: so key 1 is one of the first candidates.
    """
    steps = np.array(spread())
    one = jnp.ones((), sample.ordered.dtype)
    rank = as_float(Count(problems.keep.hi[p], problems.keep.lo[p]))
    rank = rank * (sample.number / jnp.asarray(problems.size)[p])
    plain = sample.around(rank, steps)
    some = jnp.where(sample.positive < sample.number, plain.at[-1].set(one), plain)
    first = jnp.where(rank > sample.positive, one, some)
    if problems.share is not None:
        share = problems.share[p]
        shared = sample.around(sample.positive * (1 - share), np.delete(steps, len(steps) // 2))
        first = jnp.where(share >= 0, jnp.concatenate([shared, one[None]]), first.at[-1].set(one))

    def second(k, positive):
        share_of = as_float(k) / jnp.maximum(as_float(positive), 1)
        return sample.around(share_of * sample.positive, steps)

    return first, second


def _told_apart(
    problems: Problems, p: jax.Array, pieces: Pieces, length: int, near: jax.Array, rest: jax.Array, bounds: jax.Array
) -> jax.Array:
    """The bounds of the problem's pieces below which the first `rest` of its keys that equal near[0] lie."""
    columns = jnp.asarray([leaf.columns for leaf in pieces.leaves], jnp.uint32)[jnp.asarray(pieces.leaf)]
    one = (near[1] - near[0]).astype(jnp.uint32)  # which XLA does not see, and so reads rows as it reads samples

    def body(i, state):
        rest, bounds = state
        rows = equal_in_rows(pieces, i, near)
        here = jnp.sum(rows, dtype=jnp.uint32)
        row, before = _reached(rows, rest)
        found = entries(pieces, i, row * columns[i], one, length) == near[0]  # what follows the row comes after it
        column, _ = _reached(found.astype(jnp.uint32), rest - before)
        inside = row * columns[i] + column + 1
        bound = jnp.where(rest == 0, 0, jnp.where(rest >= here, jnp.uint32(ALL), inside))
        return rest - jnp.minimum(rest, here), bounds.at[i].set(bound)

    return _over(problems, p, body, (rest, bounds))[1]


def _reached(numbers: jax.Array, rest: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first index up to which numbers add up to `rest`, and the sum of those before it."""
    place, bits = jnp.arange(len(numbers), dtype=jnp.uint32), len(numbers).bit_length()

    def body(step, state):
        index, before = state
        trial = index + (jnp.uint32(1 << (bits - 1)) >> step.astype(jnp.uint32))
        found = jnp.sum(jnp.where(place < trial, numbers, 0), dtype=jnp.uint32)
        on = (trial < len(numbers)) & (found < rest)
        return jnp.where(on, trial, index), jnp.where(on, found, before)

    return lax.fori_loop(0, bits, body, (jnp.uint32(0), jnp.uint32(0)))


def _chosen(request: Request, cuts: Cuts, problem: jax.Array, piece: jax.Array) -> Chosen:
    """The answer: of a leaf whose first slice is that problem and that piece."""
    shape = kept_shape(request.shape, request.axes)
    own = lambda table, at: lax.dynamic_slice_in_dim(table, at, request.slices).reshape(shape)
    mask = mask_of(request, own(cuts.key, problem), own(cuts.bound, piece))
    counted = isinstance(request.keep, AllBut)
    candidates = jax.tree.map(lambda word: own(word, problem), cuts.candidates) if counted else None
    return Chosen(mask, candidates, as_count(jnp.sum(own(cuts.refused, piece), dtype=jnp.uint32)))

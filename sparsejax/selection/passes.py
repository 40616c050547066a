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
from sparsejax.selection.pieces import ALL, Pieces, beside, entries, equal_in_rows, in_pieces, longest_row, mask_of, reaching, refused
from sparsejax.selection.problems import Problems, all_together, each_alone, kept_of
from sparsejax.selection.request import AllBut, Chosen, Request
from sparsejax.selection.search import Bracket, candidates_in, is_found, narrowed, remaining, spread, widest
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
    """Whether a request can be answered here: ties by index, few slices, and indices of one word, on one processor."""
    here = request.ties is None and devices.on_one_device() and devices.on_processor()
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
        top, first = tops[p], _guessed(problems, pieces, strides, length, p)
        bracket = widest(as_count(sizes[p]), top)._replace(top=top)
        k, candidates, bracket, near = _searched(partial(counting, p), partial(kept_of, problems, p), bracket, first)
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
    counting: Callable[[jax.Array], Count], kept: Callable[[Count], Count], bracket: Bracket, first: jax.Array
) -> tuple[Count, Count, Bracket, jax.Array]:
    """How many are kept, how many reach the first of the `first` candidates, the bracket, and the keys `beside` its lo.

    The state is two arrays and the first pass is one of the loop's, for smaller programs.
    """
    structure: Any
    unknown = as_count(jnp.zeros((), jnp.uint32))
    numbers, structure = jax.tree.flatten((jnp.int32(0), unknown, unknown, bracket))
    stack = lambda state: jnp.stack([number.astype(first.dtype) for number in jax.tree.leaves(state)])

    def unstacked(row):
        return structure.unflatten([x.astype(number.dtype) for x, number in zip(row, numbers, strict=True)])

    def body(state):
        row, candidates = state
        passed, k, reached, bracket = unstacked(row)
        counts = counting(candidates)
        reached = choose(passed == 0, Count(counts.hi[0], counts.lo[0]), reached)
        k = choose(passed == 0, kept(reached), k)
        bracket = narrowed(bracket, k, candidates, counts)
        candidates = jnp.where(is_found(bracket, k), beside(bracket.lo), candidates_in(bracket, k, passed))
        return stack((passed + 1, k, reached, bracket)), candidates

    def goes_on(state):
        passed, k, _, bracket = unstacked(state[0])
        return (passed == 0) | ~is_found(bracket, k)

    row, candidates = lax.while_loop(goes_on, body, (stack(structure.unflatten(numbers)), first))
    return *unstacked(row)[1:], candidates


def _over(problems: Problems, p: jax.Array, body: Callable[[jax.Array, Any], Any], start: Any) -> Any:
    """A loop over the pieces of problem p."""
    if problems.alone:
        return body(p, start)
    return lax.fori_loop(jnp.asarray(problems.begin)[p], jnp.asarray(problems.end)[p], body, start)


def _taken(pieces: Pieces, strides: np.ndarray) -> np.ndarray:
    """How many entries of each leaf's slices are at strides // 2, 3 strides // 2, ..."""
    return -(-(np.array([leaf.rows * leaf.columns for leaf in pieces.leaves]) - strides // 2) // strides)


def _guessed(problems: Problems, pieces: Pieces, strides: np.ndarray, length: int, p: jax.Array) -> jax.Array:
    """First candidates of problem p: keys around where its cut lies in a sample; where shares are asked for, key 1."""
    begin, stride = jnp.asarray(problems.begin)[p], jnp.asarray(strides.astype(np.uint32))[jnp.asarray(pieces.leaf)]
    taken = _taken(pieces, strides)
    most = int((problems.end - problems.begin).max())

    def put(i, found):
        return found.at[i - begin].set(entries(pieces, i, stride[i] >> 1, stride[i], length))

    ordered = jnp.sort(_over(problems, p, put, jnp.zeros((most, length), pieces.dtype)).ravel())
    number = jnp.asarray(np.add.reduceat(taken[pieces.leaf], problems.begin).astype(np.float32))[p]
    rank = as_float(Count(problems.keep.hi[p], problems.keep.lo[p])) * (number / jnp.asarray(problems.size)[p])
    if problems.share is not None:
        seen = jnp.sum(ordered > 0, dtype=jnp.uint32).astype(jnp.float32)
        rank = jnp.where(problems.share[p] >= 0, seen * (1 - problems.share[p]), rank)
    steps = np.delete(spread(), len(spread()) // 2) if problems.share is not None else np.array(spread())
    deviation = 1.1 * jnp.sqrt(jnp.maximum(rank * (1 - rank / number), 0))
    ranks = jnp.clip(rank + deviation * np.float32(steps) + np.sign(steps).astype(np.float32), 1, number)
    guesses = ordered[len(ordered) - ranks.astype(jnp.int32)]
    # The first one is put above the key that it is, so that a key which many entries have is found at once.
    above = jnp.minimum(guesses[0], jnp.asarray(problems.top.astype(pieces.dtype))[p] - 1) + 1
    ones = [jnp.ones_like(above)] if problems.share is not None else []
    return jnp.concatenate([jnp.stack([*ones, above]), guesses[1:]])


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

"""Selection in many leaves by one program, on one device: leaves are laid out as keys in blocks of one small buffer.

A leaf's keys are computed once and then counted where they lie, near the processor; the buffer holds as many leaves as
fit into the size of the largest and is filled again and again. So the memory is one leaf's, and whatever is compiled
for counting is compiled once, not once a leaf. On a device whose memory is not cached the buffer holds all leaves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsejax.selection.counts import WORD, Count, as_count, as_float, at_least, minus, smaller, sums, total
from sparsejax.selection.keys import highest
from sparsejax.selection.lots import drawn
from sparsejax.selection.request import AllBut, Chosen, Request, kept, marked
from sparsejax.selection.search import Bracket, Counting, narrowed, remaining, search
from sparsejax.selection.slices import flat_index

LARGEST_BLOCK, SMALLEST_BLOCK = 2**16, 2**8
WASTE = 1.125  # entries of blocks, over entries of leaves
BUFFER = {"cpu": 2**20}  # entries of the buffer, at least; smaller leaves share it
SAMPLED = 128  # entries of a block that the first guess is made of


class Plan(NamedTuple):
    """Where each leaf lies: static facts.

    Attributes:
      block: entries of a block; a slice of a leaf fills whole blocks, the last one up with zeros.
      blocks: blocks of the buffer.
      batches: of each filling of the buffer, the leaves in it.
      row, at, problem: of each leaf, its batch, its first block, and its first slice's place among the batch's slices.
      segment: (batches, blocks) the slice of each block; first: its first entry's index in the slice.
      size: (batches, slices) entries of each slice, 0 where there is none.
    """

    block: int
    blocks: int
    batches: list[list[int]]
    row: list[int]
    at: list[int]
    problem: list[int]
    segment: np.ndarray
    first: np.ndarray
    size: np.ndarray


def fits(request: Request) -> bool:
    """Whether the arena can answer a request: ties by index, and a leaf that it holds."""
    return request.ties is None and holds(*_slices(request))


def holds(number: int, size: int) -> bool:
    """Whether a leaf of so many slices, of so many entries, has a place: one device, slices that are worth blocks."""
    worth = number == 1 or size >= 16 * SMALLEST_BLOCK
    return on_one_device() and worth and 0 < number * size < WORD // 2


def on_one_device() -> bool:
    """Whether no leaf can be sharded."""
    return jax.device_count() == 1


def _slices(request: Request) -> tuple[int, int]:
    """How many slices a leaf has, and the entries of one."""
    shape = request.scores.example.shape
    size = math.prod(shape[axis] for axis in request.axes)
    return math.prod(shape) // max(size, 1), size


def planned(slices: Sequence[tuple[int, int]]) -> Plan:
    """The largest blocks that waste little; leaves, (slices, entries of one), in as few batches as first-fit finds."""
    total = sum(number * size for number, size in slices)
    padded = lambda block: sum(number * -(-size // block) * block for number, size in slices)
    block = LARGEST_BLOCK
    while block > SMALLEST_BLOCK and padded(block) > WASTE * total:
        block //= 2
    lengths = [number * -(-size // block) for number, size in slices]
    blocks = min(sum(lengths), max(*lengths, BUFFER.get(jax.default_backend(), 2**28) // block))
    batches: list[list[int]] = []
    room: list[int] = []
    for leaf in sorted(range(len(lengths)), key=lambda leaf: -lengths[leaf]):
        into = next((i for i, free in enumerate(room) if free >= lengths[leaf]), len(room))
        if into == len(room):
            batches.append([])
            room.append(blocks)
        batches[into].append(leaf)
        room[into] -= lengths[leaf]
    return _laid_out(block, blocks, batches, slices)


def _laid_out(block: int, blocks: int, batches: list[list[int]], slices: Sequence[tuple[int, int]]) -> Plan:
    most = max(sum(slices[leaf][0] for leaf in batch) for batch in batches)
    segment = np.zeros((len(batches), blocks), np.int32)
    first = np.full((len(batches), blocks), WORD // 2, np.uint32)  # of a block without a leaf: after all others
    size = np.zeros((len(batches), most), np.uint32)
    row, begin, problem = ([0] * len(slices) for _ in range(3))
    for j, batch in enumerate(batches):
        at = found = 0
        for leaf in batch:
            row[leaf], begin[leaf], problem[leaf] = j, at, found
            number, entries = slices[leaf]
            for _ in range(number):
                length = -(-entries // block)
                segment[j, at : at + length] = found
                first[j, at : at + length] = block * np.arange(length)
                size[j, found] = entries
                at, found = at + length, found + 1
    return Plan(block, blocks, batches, row, begin, problem, segment, first, size)


class Batch(NamedTuple):
    """One filling of the buffer: keys (blocks, block), and its row of the plan's tables."""

    keys: jax.Array
    segment: jax.Array
    first: jax.Array
    size: jax.Array


def _filler(plan: Plan, requests: Sequence[Request]) -> Callable[[jax.Array], Batch]:
    """Computes the keys of a batch, given its number."""
    dtype = max((request.scores.example.dtype for request in requests), key=lambda dtype: dtype.itemsize)

    def rows(request: Request) -> jax.Array:
        scores = marked(request)
        found = scores.keys(*scores.operands)
        keys = jnp.where(found == highest(found.dtype), highest(dtype), found.astype(dtype))
        number, size = _slices(request)
        outer = [axis for axis in range(keys.ndim) if axis not in request.axes]
        keys = keys.transpose(*outer, *request.axes).reshape(number, size)
        return jnp.pad(keys, ((0, 0), (0, -size % plan.block))).reshape(-1, plan.block)

    def filled(batch: list[int]) -> jax.Array:
        parts = [rows(requests[leaf]) for leaf in batch]
        empty = plan.blocks - sum(len(part) for part in parts)
        return jnp.concatenate([*parts, jnp.zeros((empty, plan.block), dtype)]) if len(parts) > 1 or empty else parts[0]

    branches = [lambda batch=batch: filled(batch) for batch in plan.batches]

    def fill(j: jax.Array) -> Batch:
        keys = branches[0]() if len(branches) == 1 else lax.switch(j, branches)
        tables = [jnp.asarray(table)[j] for table in (plan.segment, plan.first, plan.size)]
        return Batch(lax.optimization_barrier(keys), *tables)

    return fill


def _of_blocks(x: jax.Array, segment: jax.Array) -> jax.Array:
    """The values of each block's problem; the barrier keeps XLA from looking them up anew for every entry."""
    return lax.optimization_barrier(x[..., segment])[..., None]


def _counted(tests: list[jax.Array], segment: jax.Array, problems: int) -> Count:
    """How many entries of each problem pass each test, an array (blocks, block); the result is (tests, problems)."""
    per_block = jnp.stack(sums(tests, (1,)))
    if problems == 1:
        return as_count(jnp.sum(per_block, axis=1, keepdims=True))
    own = segment[None, None, :] == jnp.arange(problems)[None, :, None]
    return as_count(jnp.sum(jnp.where(own, per_block[:, None, :], 0), axis=2, dtype=jnp.uint32))


def _counting_keys(batch: Batch, problems: int) -> tuple[Counting, Any]:
    """The counting of a batch's keys, and its operands; candidates have shape (..., problems)."""

    def counting(read, candidates):
        keys, segment = read
        bounds = _of_blocks(candidates.reshape(-1, problems), segment)
        counts = _counted([keys >= bound for bound in bounds], segment, problems)
        return Count(*(word.reshape(candidates.shape) for word in counts))

    return counting, (batch.keys, batch.segment)


class Ends(NamedTuple):
    """Of each problem: keys above 0 and their least, keys that are the highest, and the most among the others."""

    candidates: Count
    least: jax.Array
    largest: Count
    most: jax.Array


def _ends(batch: Batch, problems: int) -> Ends:
    keys, top, zero = batch.keys, highest(batch.keys.dtype), jnp.zeros((), batch.keys.dtype)
    inputs = (
        (keys > zero).astype(jnp.uint32), jnp.where(keys > zero, keys, top),
        (keys == top).astype(jnp.uint32), jnp.where(keys < top, keys, zero),
    )  # fmt: skip
    starts = (jnp.uint32(0), top, jnp.uint32(0), zero)

    def merged(a, b):
        return a[0] + b[0], jnp.minimum(a[1], b[1]), a[2] + b[2], jnp.maximum(a[3], b[3])

    per_block = lax.reduce(inputs, starts, merged, (1,))
    own = batch.segment[None, :] == jnp.arange(problems)[:, None]
    spread = tuple(jnp.where(own, each[None, :], start) for each, start in zip(per_block, starts, strict=True))
    candidates, least, largest, most = lax.reduce(spread, starts, merged, (1,))
    return Ends(as_count(candidates), least, as_count(largest), most)


def _between(ends: Ends, size: Count, k: Count) -> Bracket:
    """The bracket that the ends leave: among the highest keys, the candidates, or the rest."""
    top, zero = jnp.full_like(ends.most, highest(ends.most.dtype)), jnp.zeros_like(ends.most)
    in_top, inside = at_least(ends.largest, k), at_least(ends.candidates, k)
    pick = lambda a, b, c: jnp.where(in_top, a, jnp.where(inside, b, c))
    return Bracket(
        pick(top, ends.least, zero),
        pick(top, ends.most, zero),
        Count(*(pick(*words) for words in zip(ends.largest, ends.candidates, size, strict=True))),
        Count(*(pick(0, *words) for words in zip(ends.largest, ends.candidates, strict=True))),
    )


def _sampled(batch: Batch) -> Batch:
    """Every so many-th entry of each block; an odd stride, since layers like even ones."""
    stride = max(1, batch.keys.shape[1] // SAMPLED - 1)
    return batch._replace(keys=batch.keys[:, ::stride])


def _guessed(sample: Batch, k: Count, ends: Ends, problems: int) -> jax.Array:
    """Four keys around the cut, from where it lies in a sample."""
    counting, read = _counting_keys(sample, problems)
    seen = _ends(sample, problems)
    share = (as_float(k) - as_float(ends.largest)) / jnp.maximum(as_float(ends.candidates) - as_float(ends.largest), 1)
    number = as_float(seen.candidates) - as_float(seen.largest)
    rank, most = share * number + as_float(seen.largest), jnp.maximum(as_float(seen.candidates), 1)
    deviation = 1.5 * jnp.sqrt(jnp.maximum(share * number * (1 - share), 0)) + 1
    ranks = jnp.stack([jnp.clip(around, 1, most) for around in (rank - deviation, rank + deviation)])
    both = as_count(ranks.astype(jnp.uint32))
    twice = jax.tree.map(lambda x: jnp.stack([x, x]), seen)
    upper, lower = search(counting, read, both, _between(twice, twice.candidates, both)).lo
    third = (jnp.maximum(upper, lower) - lower) // 3
    return jnp.stack([upper, lower, lower + third, lower + third * 2])


def _index_bound(batch: Batch, lo: jax.Array, tied: Count, keep: Count, problems: int) -> jax.Array:
    """Below which index `keep` of the `tied` keys equal to lo lie: the size where all are kept."""

    def counting(read, candidates):
        keys, segment, first = read
        index = first[:, None] + jnp.arange(keys.shape[1], dtype=jnp.uint32)[None, :]
        equal = keys == _of_blocks(lo, segment)
        return _counted([equal & (~index >= bound) for bound in _of_blocks(candidates, segment)], segment, problems)

    start = Bracket(-batch.size, jnp.full_like(batch.size, WORD - 1), tied, jax.tree.map(jnp.zeros_like, tied))
    return -search(counting, (batch.keys, batch.segment, batch.first), keep, start).lo


class Cuts(NamedTuple):
    """Of each problem, (batches, slices): what is kept, keys above `key` and equal ones with an index below `bound`."""

    key: jax.Array
    bound: jax.Array
    candidates: Count
    refused: Count


def select_each(requests: Sequence[Request]) -> list[Chosen]:
    """The answers to requests, each leaf on its own."""
    plan = planned([_slices(request) for request in requests])
    fill, (wanted, count) = _filler(plan, requests), _tabled(plan, requests)
    cuts = lax.map(lambda each: _cut(fill(each[0]), each[1], count), (jnp.arange(len(plan.batches)), wanted))
    # The barrier keeps XLA from storing the keys that the buffer was filled with for the masks.
    operands, cuts = lax.optimization_barrier(([request.scores.operands for request in requests], cuts))
    requests = [r._replace(scores=r.scores._replace(operands=read)) for r, read in zip(requests, operands, strict=True)]
    return [_chosen(plan, leaf, request, cuts) for leaf, request in enumerate(requests)]


def select_drawn(words: jax.Array, keeps: jax.Array, slices: Sequence[tuple[int, int]]) -> jax.Array:
    """Random masks, (batches, blocks, block), of the plan for the slices.

    Args:
      words: (leaves, 2) of each leaf's `lots`.
      keeps: (leaves, 2) uint32 words of the Count that each slice keeps.
      slices: of each leaf, how many slices and the entries of one.
    """
    plan = planned(slices)
    leaf = np.zeros(plan.size.shape, np.int32)
    start = np.zeros(plan.size.shape, np.uint32)
    for i, (number, size) in enumerate(slices):
        own = slice(plan.problem[i], plan.problem[i] + number)
        leaf[plan.row[i], own], start[plan.row[i], own] = i, size * np.arange(number)

    def masks(each):
        j, leaf, start = each
        segment, first, size = (jnp.asarray(table)[j] for table in (plan.segment, plan.first, plan.size))
        index = (first + start[segment])[:, None] + jnp.arange(plan.block, dtype=jnp.uint32)[None, :]
        inside = first[:, None] + jnp.arange(plan.block, dtype=jnp.uint32)[None, :] < size[segment][:, None]
        keys = jnp.where(inside, drawn([index], _of_blocks(words[leaf].T, segment)), 0)
        batch = Batch(lax.optimization_barrier(keys), segment, first, size)
        cuts = _cut(batch, Count(*keeps[leaf].T), kept)
        key, bound = _of_blocks(jnp.stack([cuts.key, cuts.bound]), segment)
        return (batch.keys > key) | ((batch.keys == key) & (index - start[segment][:, None] < bound))

    return lax.map(masks, (jnp.arange(len(plan.batches)), jnp.asarray(leaf), jnp.asarray(start)))


def _cut(batch: Batch, keep: Any, count: Callable[[Any, Count], Count]) -> Cuts:
    """The cuts of one filling of the buffer."""
    problems = batch.size.shape[0]
    counting, read = _counting_keys(batch, problems)
    ends, size = _ends(batch, problems), as_count(batch.size)
    k = smaller(count(keep, ends.candidates), size)
    guesses = _guessed(_sampled(batch), k, ends, problems)
    bracket = narrowed(_between(ends, size, k), k, guesses, counting(read, guesses))
    bracket = search(counting, read, k, bracket)
    _, rest = remaining(bracket, k)
    bound = _index_bound(batch, bracket.lo, minus(bracket.at_lo, bracket.above), rest, problems)
    none = (k.hi | k.lo) == 0
    key = jnp.where(none, highest(batch.keys.dtype), bracket.lo)
    return Cuts(key, jnp.where(none, 0, bound), ends.candidates, ends.largest)


def _tabled(plan: Plan, requests: Sequence[Request]) -> tuple[Any, Callable[[Any, Count], Count]]:
    """What each problem is to keep as arrays (batches, slices), and how that and the candidates give a count."""
    number = [_slices(request)[0] for request in requests]
    begin = np.concatenate([[0], np.cumsum(number)])
    place = np.full(plan.size.shape, begin[-1])
    for leaf, slices in enumerate(number):
        at = plan.problem[leaf]
        place[plan.row[leaf], at : at + slices] = begin[leaf] + np.arange(slices)

    def table(values, dtype):
        flat = [jnp.broadcast_to(jnp.ravel(v).astype(dtype), (n,)) for v, n in zip(values, number, strict=True)]
        return jnp.concatenate([*flat, jnp.zeros((1,), dtype)])[place]

    keeps: list[Any] = [request.keep for request in requests]
    if isinstance(keeps[0], AllBut):
        fractions = table([keep.fraction for keep in keeps], jnp.float32)
        return fractions, lambda fraction, candidates: kept(AllBut(fraction, keeps[0].rounding), candidates)
    return Count(*(table(words, jnp.uint32) for words in zip(*keeps, strict=True))), kept


def _chosen(plan: Plan, leaf: int, request: Request, cuts: Cuts) -> Chosen:
    """One leaf's answer, from its cuts."""
    shape = request.scores.example.shape
    number = _slices(request)[0]
    each = tuple(1 if axis in request.axes else size for axis, size in enumerate(shape))
    own = lambda x: x[plan.row[leaf], plan.problem[leaf] : plan.problem[leaf] + number]
    keys = request.scores.keys(*request.scores.operands)
    index = flat_index(shape, request.axes, jnp.uint32(0))
    key, bound = own(cuts.key).reshape(each).astype(keys.dtype), own(cuts.bound).reshape(each)
    mask = (keys > key) | ((keys == key) & (index < bound))
    refused = Count(*(own(word) for word in cuts.refused))
    refused = total(refused, (0,)) if number > 1 else refused
    return Chosen(
        mask, Count(*(own(word).reshape(each) for word in cuts.candidates)), Count(refused.hi[0], refused.lo[0])
    )

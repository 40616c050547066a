"""Random masks of many leaves by one small program, on one device: their lots are drawn in blocks of one small buffer.

The buffer holds as many leaves as fit into the size of the largest, and is filled again and again. So whatever is
compiled is compiled once, not once a leaf. On a device whose memory is not cached the buffer holds all leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsejax.selection import devices
from sparsejax.selection.counts import WORD, Count, as_count, minus, smaller, sums
from sparsejax.selection.keys import highest
from sparsejax.selection.lots import drawn
from sparsejax.selection.search import Bracket, Counting, remaining, search, widest

LARGEST_BLOCK, SMALLEST_BLOCK = 2**16, 2**8
WASTE = 1.125  # entries of blocks, over entries of leaves
BUFFER = {"cpu": 2**20}  # entries of the buffer, at least; smaller leaves share it


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


def holds(number: int, size: int) -> bool:
    """Whether a leaf of so many slices, of so many entries, has a place: one device, slices that are worth blocks."""
    worth = number == 1 or size >= 16 * SMALLEST_BLOCK
    return devices.on_one_device() and worth and 0 < number * size < WORD // 2


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


def _index_bound(batch: Batch, lo: jax.Array, tied: Count, keep: Count, problems: int) -> jax.Array:
    """Below which index `keep` of the `tied` keys equal to lo lie: the size where all are kept."""

    def counting(read, candidates):
        keys, segment, first = read
        index = first[:, None] + jnp.arange(keys.shape[1], dtype=jnp.uint32)[None, :]
        equal = keys == _of_blocks(lo, segment)
        return _counted([equal & (~index >= bound) for bound in _of_blocks(candidates, segment)], segment, problems)

    start = Bracket(-batch.size, jnp.full_like(batch.size, WORD - 1), tied, jax.tree.map(jnp.zeros_like, tied))
    return -search(counting, (batch.keys, batch.segment, batch.first), keep, start).lo


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
        key, bound = _of_blocks(jnp.stack(_cut(batch, Count(*keeps[leaf].T))), segment)
        return (batch.keys > key) | ((batch.keys == key) & (index - start[segment][:, None] < bound))

    return lax.map(masks, (jnp.arange(len(plan.batches)), jnp.asarray(leaf), jnp.asarray(start)))


def _cut(batch: Batch, keep: Count) -> tuple[jax.Array, jax.Array]:
    """Of each slice, the cut: kept are keys above the first, and equal ones with an index below the second."""
    problems = batch.size.shape[0]
    counting, read = _counting_keys(batch, problems)
    size = as_count(batch.size)
    k = smaller(keep, size)
    bracket = search(counting, read, k, widest(size, jnp.zeros(problems, batch.keys.dtype)))
    _, rest = remaining(bracket, k)
    bound = _index_bound(batch, bracket.lo, minus(bracket.at_lo, bracket.above), rest, problems)
    none = (k.hi | k.lo) == 0
    return jnp.where(none, highest(batch.keys.dtype), bracket.lo), jnp.where(none, 0, bound)

"""Leaves in pieces, and what a search reads of one: how many keys reach a few candidates, and some single keys.

A piece is a slice of a leaf, laid out as rows. Which one is read is decided while the program runs, by a switch with a
branch for each leaf: so the code of a search is there once, whatever the number of leaves.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsejax.selection.counts import WORD, sums
from sparsejax.selection.keys import Scores, highest
from sparsejax.selection.request import Request
from sparsejax.selection.search import spread
from sparsejax.selection.slices import flat_index

ROW = 32  # entries of a row, at least
LONGEST = 1024  # and at most, if the shape allows
GROUP = 32  # branches of a switch, at most
ALL = WORD - 1  # a bound above every index


class Leaf(NamedTuple):
    """How one leaf is read.

    Attributes:
      scores: its keys, computed anew wherever they are read.
      finite: which entries may be ranked (keys are bool), or None: all.
      rows, columns: of a slice.
      laid: `(array of the leaf's shape, index of a slice) -> (rows, columns)`.
    """

    scores: Scores
    finite: Scores | None
    rows: int
    columns: int
    laid: Callable[[jax.Array, jax.Array], jax.Array]


class Pieces(NamedTuple):
    """The slices of all leaves, one after another.

    Attributes:
      leaves: how they are read.
      leaf, place: of each piece, which leaf it is part of, and which slice of it.
      dtype: of keys that are returned.
    """

    leaves: list[Leaf]
    leaf: np.ndarray
    place: np.ndarray
    dtype: Any


def in_pieces(requests: Sequence[Request]) -> Pieces:
    """The pieces of the leaves that requests are about; keys are given in a dtype that holds those of all leaves."""
    number = [request.slices for request in requests]
    dtype = max([jnp.dtype(jnp.uint32), *(r.dtype for r in requests)], key=lambda dtype: dtype.itemsize)
    places = np.concatenate([np.arange(n) for n in number])
    return Pieces([_leaf(request) for request in requests], np.repeat(np.arange(len(number)), number), places, dtype)


def _leaf(request: Request) -> Leaf:
    rows, columns, slices = as_rows(request)

    def laid(x, index):
        return slices(x)[0] if request.slices == 1 else lax.dynamic_index_in_dim(slices(x), index, keepdims=False)

    traced_once = lambda scores: Scores(jax.jit(scores.keys), scores.operands)
    return Leaf(traced_once(request.scores), request.finite and traced_once(request.finite), rows, columns, laid)


def as_rows(request: Request) -> tuple[int, int, Callable[[jax.Array], jax.Array]]:
    """Rows and columns of a slice, and `array of the leaf's shape -> (slices, rows, columns)`, row-major."""
    outer = [axis for axis in range(len(request.shape)) if axis not in request.axes]
    columns = _columns([request.shape[axis] for axis in request.axes])
    rows = request.size // columns
    return rows, columns, lambda x: x.transpose(*outer, *request.axes).reshape(request.slices, rows, columns)


def _columns(shape: Sequence[int]) -> int:
    """How many entries of a slice make a row: the last axis, or more where it is short, or a part where it is long."""
    trailing = [math.prod(shape[axis:]) for axis in reversed(range(len(shape)))]
    columns = next((size for size in trailing if size >= ROW), math.prod(shape))
    parts = (size for size in range(LONGEST, ROW, -1) if columns % size == 0)
    return next(parts, columns) if columns > LONGEST else columns


def _of(
    pieces: Pieces, i: jax.Array, function: Callable[..., jax.Array], *operands: Any, of: str = "scores"
) -> jax.Array:
    """What a function gives for piece i's keys (or which of them are finite) and for operands."""

    def branch(leaf: Leaf) -> Callable[..., jax.Array]:
        scores: Scores | None = getattr(leaf, of)

        def of_piece(index, *operands):
            if scores is None:
                return function(None, *operands)
            # The barrier keeps XLA from computing the keys once, before the loop around this, and storing them.
            read, index, operands = lax.optimization_barrier((scores.operands, index, operands))
            return function(leaf.laid(scores.keys(*read), index), *operands)

        return of_piece

    branches = [branch(leaf) for leaf in pieces.leaves]
    return _switch(jnp.asarray(pieces.leaf)[i], branches, jnp.asarray(pieces.place)[i], *operands)


def _switch(which: jax.Array, branches: Sequence[Callable[..., jax.Array]], *operands: Any) -> jax.Array:
    """`lax.switch`; of many branches among groups first, since jax hands what one branch reads to all others."""
    if len(branches) <= GROUP:
        return lax.switch(which, branches, *operands)
    groups = [branches[first : first + GROUP] for first in range(0, len(branches), GROUP)]
    within = [lambda *operands, group=group: lax.switch(which % GROUP, group, *operands) for group in groups]
    return lax.switch(which // GROUP, within, *operands)


def refused(pieces: Pieces, i: jax.Array) -> jax.Array:
    """How many entries of piece i are not finite, uint32."""
    if all(leaf.finite is None for leaf in pieces.leaves):
        return jnp.uint32(0)

    def count(fine):
        return jnp.uint32(0) if fine is None else number_false(fine)

    return _of(pieces, i, count, of="finite")


def number_false(fine: jax.Array) -> jax.Array:
    """How many entries of a bool array (rows, columns) are False, uint32."""
    # Two sums, both read, since a lone one of a predicate is given a temporary of the array's size.
    bad, good = added(sums([~fine, fine], (1,)))
    return jnp.maximum(bad, jnp.uint32(fine.size) - good)


def reaching(pieces: Pieces, i: jax.Array, candidates: jax.Array) -> jax.Array:
    """How many keys of piece i are at least each candidate, uint32."""
    count = lambda keys, candidates: jnp.stack(added(_reaching_in_rows(keys, candidates)))
    return _of(pieces, i, count, candidates)


def beside(key: jax.Array) -> jax.Array:
    """The candidates from which `equal_in_rows` counts the keys that equal `key`: as many as there are in a pass."""
    return jnp.stack([key, key + 1, *(key >> n for n in range(1, len(spread()) - 1))])


def equal_in_rows(pieces: Pieces, i: jax.Array, candidates: jax.Array) -> jax.Array:
    """How many keys of each row of piece i equal a key, given what is `beside` it; rows that it has not have none.

    What is counted is what a pass counts, so that XLA has the machine code already.
    """
    most = max(leaf.rows for leaf in pieces.leaves)

    def count(keys, candidates):
        reach, *others = _reaching_in_rows(keys, candidates)
        above = functools.reduce(jnp.minimum, others)
        above = jnp.where(candidates[0].astype(keys.dtype) == highest(keys.dtype), 0, above)  # nothing lies beyond
        return _filled(reach - above, most, jnp.uint32)

    return _of(pieces, i, count, candidates)


def _reaching_in_rows(keys: jax.Array, candidates: jax.Array) -> tuple[jax.Array, ...]:
    """How many keys of each row are at least each candidate: one sum for each, since rows are for several threads."""
    return sums([keys >= candidate for candidate in candidates.astype(keys.dtype)], (1,))


def added(rows: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """The sum of all entries of each array, in one pass."""
    add = lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True))
    words = tuple(x.astype(jnp.uint32) for x in rows)
    return tuple(lax.reduce(words, tuple(jnp.uint32(0) for _ in rows), add, tuple(range(words[0].ndim))))


def entries(pieces: Pieces, i: jax.Array, start: jax.Array, step: jax.Array, length: int) -> jax.Array:
    """The keys of piece i at the flat indices start, start + step, ...; key 0 beyond its end."""

    def read(keys, start, step):
        indices = start + step * jnp.arange(length, dtype=jnp.uint32)
        found = keys.reshape(-1).at[indices].get(mode="clip", wrap_negative_indices=False)
        return jnp.where(indices < keys.size, found.astype(pieces.dtype), 0)

    return _of(pieces, i, read, start, step)


def longest_row(pieces: Pieces) -> int:
    """The most columns that a leaf has."""
    return max(leaf.columns for leaf in pieces.leaves)


def _filled(x: jax.Array, length: int, dtype: Any) -> jax.Array:
    return jnp.pad(x.astype(dtype), (0, length - x.shape[0]))


def mask_of(request: Request, key: jax.Array, bound: jax.Array) -> jax.Array:
    """The mask of keys above `key`, and of equal ones with an index in their slice below `bound`."""
    # The barrier keeps XLA from storing keys for both the search and the mask.
    keys = request.scores.keys(*lax.optimization_barrier(request.scores.operands))
    index = flat_index(request.shape, request.axes, jnp.uint32(0))
    return (keys > key.astype(keys.dtype)) | ((keys == key.astype(keys.dtype)) & (index < bound))

"""Selection in many leaves on one accelerator: four bits of the cuts are found in each of a fixed number of passes.

Nothing here waits for the host: how many passes there are is known when the program is compiled, and no branch is
taken. An accelerator reads an array at the speed of its memory whatever is compared, so that a pass counts fifteen
candidates; processors, which pay for comparisons, search otherwise (`passes`), and find the same masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsejax.selection import devices
from sparsejax.selection.counts import WORD, Count, as_count, sums
from sparsejax.selection.pieces import ALL, as_rows, mask_of, number_false
from sparsejax.selection.problems import Problems, all_together, each_alone, kept_of
from sparsejax.selection.request import AllBut, Chosen, Request, by_dtype
from sparsejax.selection.slices import kept_shape

BITS = 4  # found in a pass


class Ties(NamedTuple):
    """Of each slice of a leaf: how many keys lie above the cut (slices,), and how many equal it (slices, rows)."""

    above: jax.Array
    equal: jax.Array


def fits(request: Request) -> bool:
    """Whether a request can be answered here: ties by index, and indices of one word, on one accelerator."""
    here = request.ties is None and devices.on_one_device() and not devices.on_processor()
    return here and 0 < math.prod(request.shape) < WORD // 2


def select_each(requests: Sequence[Request]) -> list[Chosen]:
    """The answers to requests, each slice of each leaf on its own."""
    return by_dtype(requests, lambda alike: _selected(alike, each_alone(alike), together=False))


def select_together(requests: Sequence[Request], keep: Count) -> list[Chosen]:
    """The `keep` best entries over all leaves; among equal keys those of an earlier leaf come first."""
    flat = [request._replace(keep=keep, axes=tuple(range(len(request.shape)))) for request in requests]
    return _selected(flat, all_together(flat, keep), together=True)


def _selected(requests: Sequence[Request], problems: Problems, together: bool) -> list[Chosen]:
    begin = np.cumsum([0, *(request.slices for request in requests)])

    def own(table, i):
        return table if together else table[..., begin[i] : begin[i + 1]]

    def counts(candidates):
        # The barrier keeps XLA from computing the keys once, before the loop, and storing them.
        read, candidates = lax.optimization_barrier(([r.scores.operands for r in requests], candidates))
        found = [_reaching(r, x, own(candidates, i)) for i, (r, x) in enumerate(zip(requests, read, strict=True))]
        joined = jnp.concatenate(found, axis=1)
        return jnp.sum(joined, axis=1, keepdims=True, dtype=jnp.uint32) if together else joined

    number, dtype = len(problems.begin), requests[0].dtype
    candidates = as_count(jnp.zeros(number, jnp.uint32))
    if problems.share is not None:
        candidates = as_count(counts(jnp.ones((1, number), dtype))[0])
    k = _word(kept_of(problems, slice(None), candidates))
    keys = _cuts(counts, k, dtype)
    ties = [_ties(request, own(keys, i)) for i, request in enumerate(requests)]
    if together:
        rests = _shared(k - sum(tie.above for tie in ties), [jnp.sum(tie.equal, dtype=jnp.uint32) for tie in ties])
    else:
        rests = [own(k, i) - jnp.minimum(tie.above, own(k, i)) for i, tie in enumerate(ties)]
    chosen = []
    for i, request in enumerate(requests):
        shape = kept_shape(request.shape, request.axes)
        bound = _bounds(request, own(keys, i), rests[i], ties[i])
        mask = mask_of(request, own(keys, i).reshape(shape), jnp.where(own(k, i) == 0, 0, bound).reshape(shape))
        counted = Count(*(own(word, i).reshape(shape) for word in candidates))
        chosen.append(Chosen(mask, counted if isinstance(request.keep, AllBut) else None, _refused(request)))
    return chosen


def _word(n: Count) -> jax.Array:
    """A Count below 2^32, or the largest word for one that is not."""
    return jnp.where(n.hi < 1 << 16, (n.hi << 16) | n.lo, jnp.uint32(WORD - 1))


def _reaching(request: Request, operands: tuple, candidates: jax.Array) -> jax.Array:
    """How many keys of each slice reach each candidate, both (candidates, slices)."""
    keys = as_rows(request)[2](request.scores.keys(*operands))
    bounds = candidates[:, :, None, None]
    return jnp.stack(sums([keys >= bound for bound in bounds], (1, 2)))


def _cuts(counts: Callable[[jax.Array], jax.Array], k: jax.Array, dtype: np.dtype) -> jax.Array:
    """The k-th largest key of each problem; the largest key that there can be where k is 0."""
    width = 8 * np.dtype(dtype).itemsize
    steps = jnp.arange(1, 1 << BITS, dtype=dtype)[:, None]

    def body(i, found):
        shift = (width - BITS * (i + 1)).astype(dtype)
        reached = counts(found[None] + (steps << shift)) >= k[None]
        return found + (jnp.sum(reached, axis=0).astype(dtype) << shift)

    return lax.fori_loop(0, width // BITS, body, jnp.zeros(k.shape, dtype))


def _ties(request: Request, keys: jax.Array) -> Ties:
    found = as_rows(request)[2](request.scores.keys(*lax.optimization_barrier(request.scores.operands)))
    reach, above = sums([found >= keys[:, None, None], found > keys[:, None, None]], (2,))
    return Ties(jnp.sum(above, axis=1, dtype=jnp.uint32), reach - above)


def _shared(rest: jax.Array, ties: Sequence[jax.Array]) -> list[jax.Array]:
    """How many ties of each leaf are kept, of `rest` together: those of an earlier leaf first."""
    rests = []
    for here in ties:
        rests.append(rest)
        rest = rest - jnp.minimum(rest, here)
    return rests


def _bounds(request: Request, keys: jax.Array, rest: jax.Array, ties: Ties) -> jax.Array:
    """The index of each slice below which the first `rest` of the entries with the cut's key lie."""
    _, columns, laid = as_rows(request)
    upto = jnp.cumsum(ties.equal, axis=1, dtype=jnp.uint32)
    row = jnp.sum(upto < rest[:, None], axis=1, dtype=jnp.uint32)
    before = jnp.sum(jnp.where(upto < rest[:, None], ties.equal, 0), axis=1, dtype=jnp.uint32)
    found = laid(request.scores.keys(*lax.optimization_barrier(request.scores.operands)))
    entries = jnp.take_along_axis(found, row[:, None, None], axis=1, mode="clip")[:, 0]
    tied = jnp.cumsum(entries == keys[:, None], axis=1, dtype=jnp.uint32)
    column = jnp.sum(tied < (rest - before)[:, None], axis=1, dtype=jnp.uint32)
    every = rest >= jnp.sum(ties.equal, axis=1, dtype=jnp.uint32)
    return jnp.where(rest == 0, 0, jnp.where(every, jnp.uint32(ALL), row * jnp.uint32(columns) + column + 1))


def _refused(request: Request) -> Count:
    """How many entries are not finite."""
    if request.finite is None:
        return as_count(0)
    fine = request.finite.keys(*request.finite.operands)
    return as_count(number_false(fine.reshape(-1, fine.shape[-1]) if fine.ndim else fine.reshape(1, 1)))

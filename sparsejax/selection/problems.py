"""Which cuts are to be found in many leaves, and how many entries each keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.selection.counts import Count, as_count, choose, minus, scaled
from sparsejax.selection.request import AllBut, Request
from sparsejax.selection.slices import kept_shape


class Problems(NamedTuple):
    """The cuts to be found: arrays (problems,).

    Attributes:
      begin, end: which pieces are ranked together.
      size: entries.
      top: the highest key.
      keep: Count; of the problems whose share is negative, or of all where share is None.
      share: the fraction of AllBut.
      up: whether that is rounded up.
    """

    begin: np.ndarray
    end: np.ndarray
    size: np.ndarray
    top: np.ndarray
    keep: Count
    share: jax.Array | None
    up: np.ndarray

    @property
    def alone(self) -> bool:
        """Whether each piece is a problem of its own."""
        return bool((self.begin == np.arange(len(self.begin))).all() and (self.end == self.begin + 1).all())


def each_alone(requests: Sequence[Request]) -> Problems:
    """Each slice of each leaf is ranked on its own."""
    number = [request.slices for request in requests]
    of_slices = lambda values, dtype: np.repeat(np.array(values, dtype), number)
    shares = [r.keep if isinstance(r.keep, AllBut) else AllBut(-1.0) for r in requests]
    some = any(isinstance(r.keep, AllBut) for r in requests)
    return Problems(
        begin=np.arange(sum(number)),
        end=np.arange(sum(number)) + 1,
        size=of_slices([request.size for request in requests], np.uint32),
        top=of_slices([np.iinfo(request.dtype).max for request in requests], np.uint64),
        keep=Count(*(_spread(words, requests, jnp.uint32) for words in zip(*map(_count, requests), strict=True))),
        share=_spread([share.fraction for share in shares], requests, jnp.float32) if some else None,
        up=of_slices([share.rounding == "ceil" for share in shares], bool),
    )


def all_together(requests: Sequence[Request], keep: Count) -> Problems:
    """All leaves, of one slice each, are ranked together."""
    return Problems(
        begin=np.array([0]),
        end=np.array([len(requests)]),
        size=np.array([sum(request.size for request in requests)], np.uint32),
        top=np.array([np.iinfo(requests[0].dtype).max], np.uint64),
        keep=Count(*(word.reshape(1) for word in keep)),
        share=None,
        up=np.array([False]),
    )


def _count(request: Request) -> Count:
    """The integer or Count to keep; 0 for a share, which is not read."""
    keep = request.keep
    return keep if isinstance(keep, Count) else as_count(keep if isinstance(keep, int) else 0)


def _spread(values: Sequence[Any], requests: Sequence[Request], dtype: Any) -> jax.Array:
    """One value for each slice, from one of each leaf or an array that broadcasts against its slices."""

    def of_leaf(value, request):
        shape, value = kept_shape(request.shape, request.axes), jnp.asarray(value, dtype)
        missing = len(shape) - value.ndim  # put in front by hand: rank promotion may be forbidden
        return jnp.broadcast_to(value.reshape((1,) * missing + value.shape), shape).ravel()

    return jnp.concatenate([of_leaf(*each) for each in zip(values, requests, strict=True)])


def kept_of(problems: Problems, p: jax.Array | slice, candidates: Count) -> Count:
    """How many problem p keeps, given how many entries have a key above 0."""
    keep = Count(problems.keep.hi[p], problems.keep.lo[p])
    if problems.share is None:
        return keep
    share = jnp.maximum(problems.share[p], 0)
    lost = scaled(candidates, share)
    if problems.up.any():
        lost = choose(jnp.asarray(problems.up)[p], scaled(candidates, share, "ceil"), lost)
    return choose(problems.share[p] >= 0, minus(candidates, lost), keep)

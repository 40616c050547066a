"""What is asked of a selection, and its answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsejax.selection.counts import Count, as_count, minus, scaled
from sparsejax.selection.keys import Scores, highest


class AllBut(NamedTuple):
    """Keep all but a share of the candidates (the entries with a key above 0).

    Attributes:
      fraction: float or float32 scalar in [0, 1].
      rounding: of fraction * candidates: "floor" or "ceil".
    """

    fraction: Any
    rounding: str = "floor"


class Request(NamedTuple):
    """Keep the best entries of one leaf.

    Attributes:
      scores: keys; an entry with key 0 comes last, one with the dtype's largest key first.
      keep: how many of each slice: an integer, a Count, which broadcasts against the slices, or AllBut.
      axes: ranked together; the other axes are slices, each with its own count.
      ties: None: among equal keys the lowest flat index first. A PRNG key: at random.
      finite: which entries may be ranked (keys are bool); how many may not is counted, and then the mask means nothing.
    """

    scores: Scores
    keep: int | Count | AllBut
    axes: tuple[int, ...]
    ties: jax.Array | None = None
    finite: Scores | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the leaf."""
        return self.scores.example.shape

    @property
    def dtype(self) -> Any:
        """Of the keys."""
        return self.scores.example.dtype

    @property
    def size(self) -> int:
        """Entries of a slice."""
        return math.prod(self.shape[axis] for axis in self.axes)

    @property
    def slices(self) -> int:
        """How many slices there are."""
        return math.prod(self.shape) // max(self.size, 1)


class Chosen(NamedTuple):
    """The answer.

    Attributes:
      mask: True where kept, in the scores' shape.
      candidates: where AllBut is asked for, entries with a key above 0 in each slice, a Count; of the slices' shape,
        ranked axes have size 1. Else it may be None.
      refused: how many entries, of all slices, are not finite, a Count.
    """

    mask: jax.Array
    candidates: Any  # Count | None, which only who asks for AllBut reads
    refused: Count


def by_dtype(requests: Sequence[Request], select: Callable[[Sequence[Request]], Sequence[Chosen]]) -> list[Chosen]:
    """The answers, in the order of the requests, of a `select` for leaves whose keys have one dtype."""
    chosen: dict[int, Chosen] = {}
    for dtype in dict.fromkeys(request.dtype for request in requests):  # no set: its order is another in each process
        alike = [i for i, request in enumerate(requests) if request.dtype == dtype]
        chosen |= zip(alike, select([requests[i] for i in alike]), strict=True)
    return [chosen[i] for i in range(len(requests))]


def kept(keep: int | Count | AllBut, candidates: Count) -> Count:
    """How many are kept of so many candidates."""
    if isinstance(keep, int):
        return as_count(keep)
    if isinstance(keep, AllBut):
        return minus(candidates, scaled(candidates, keep.fraction, keep.rounding))
    return keep


def marked(request: Request) -> Scores:
    """The scores with the highest key at entries that are not finite, and nowhere else, so that it can be counted."""
    scores, finite = request.scores, request.finite
    if finite is None:
        return scores
    number = len(scores.operands)

    def keys(*read):
        found = scores.keys(*read[:number])
        top = highest(found.dtype)
        return jnp.where(finite.keys(*read[number:]), jnp.minimum(found, top - 1), top)

    return Scores(keys, (*scores.operands, *finite.operands))

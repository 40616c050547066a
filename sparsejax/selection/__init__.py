"""Exact selection of the k largest scores without a sort: counting passes over order-preserving bit patterns.

A score becomes an unsigned key with the same order (`keys`). The cut between the kept and the rest is searched by
counting: on one processor in one leaf after another by the same program (`passes`), of slices that lie side by side in
all of them at once (`columns`); on one accelerator in all leaves at once (`radix`); else leaf by leaf, wherever its
shards lie (`slices`). Where only a few entries are ranked together, they are compared with one another (`groups`). All
find the same masks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.selection import columns, groups, passes, radix, slices
from sparsejax.selection.counts import WORD, Count, as_count, count_true, minus, scaled
from sparsejax.selection.keys import Scores, highest, order_key, value_of
from sparsejax.selection.request import AllBut, Chosen, Request

__all__ = [
    "AllBut", "Chosen", "Count", "Request", "Scores", "answered", "answered_together", "as_count", "count_true",
    "kth_largest", "minus", "order_key", "scaled", "select", "select_across", "top_mask",
]  # fmt: skip


def answered(requests: Sequence[Request]) -> list[Chosen]:
    """The answers to requests, each leaf on its own; those that one program can answer together are."""
    answers: list[Any] = [None] * len(requests)
    together = (
        (groups, groups.select_ranked),
        (passes, passes.select_each),
        (columns, columns.select_each),
        (radix, radix.select_each),
    )
    for part, select_many in together:
        chosen = [i for i, request in enumerate(requests) if answers[i] is None and part.fits(request)]
        for i, answer in zip(chosen, select_many([requests[i] for i in chosen]) if chosen else [], strict=True):
            answers[i] = answer
    for i, request in enumerate(requests):
        if answers[i] is None:
            answers[i] = slices.select_one(request)
    return answers


def answered_together(requests: Sequence[Request], keep: Count) -> list[Chosen]:
    """The answers where the `keep` best entries over all leaves are asked for; ties go to the first leaf.

    Raises:
      ValueError: the leaves' keys have several dtypes, so that they have no common order.
    """
    found = [str(request.scores.example.dtype) for request in requests]
    if len(set(found)) > 1:
        raise ValueError(f"the scores of several leaves need one dtype to be ranked together; their keys are {found}")
    small = sum(math.prod(request.shape) for request in requests) < WORD // 2
    for part in (passes, radix):
        if small and all(map(part.fits, requests)):
            return part.select_together(requests, keep)
    return slices.select_together(requests, keep)


def select(leaf: Scores, k: int | jax.Array | Count, axes: tuple[int, ...], ties: jax.Array | None = None) -> jax.Array:
    """The mask of the k entries with the largest keys, over `axes`, in each slice along the other axes.

    Args:
      leaf: keys and operands.
      k: how many, at most the slice's size; an array broadcasts against the slices.
      axes: the axes that are ranked together.
      ties: None: lowest flat index first. A PRNG key: at random.
    """
    return answered([Request(leaf, k if isinstance(k, (int, Count)) else as_count(k), axes, ties)])[0].mask


def select_across(
    leaves: Sequence[Scores], k: int | jax.Array | Count, ties: Sequence[jax.Array] | None = None
) -> list[jax.Array]:
    """The masks of the k entries with the largest keys over all leaves; ties go to the first leaf.

    Raises:
      ValueError: the leaves' keys have several dtypes.
    """
    count = k if isinstance(k, Count) else as_count(k)
    axes = [tuple(range(leaf.example.ndim)) for leaf in leaves]
    draws = [None] * len(leaves) if ties is None else ties
    requests = [Request(*each) for each in zip(leaves, [count] * len(leaves), axes, draws, strict=True)]
    return [chosen.mask for chosen in answered_together(requests, count)]


def top_mask(
    scores: jax.Array, k: int | jax.Array, *, axes: tuple[int, ...] | None = None, ties: jax.Array | None = None
) -> jax.Array:
    """True at exactly the k largest scores; NaN is last, ties go to the lowest index or, given a PRNG key, at random.

    Args:
      scores: any shape; floating, integer or bool.
      k: 0 <= k <= number of entries ranked together; may be traced, or an array that broadcasts against the slices.
      axes: the axes ranked together, the others are slices; None is all.

    Example:
      >>> top_mask(jnp.array([0.1, -2.0, 3.0, 0.1]), 2).tolist()
      [True, False, True, False]
    """
    ranked = range(scores.ndim) if axes is None else sorted(axis % scores.ndim for axis in axes)
    return select(Scores(order_key, (scores,)), k, tuple(ranked), ties)


def kth_largest(scores: jax.Array, k: int | jax.Array) -> jax.Array:
    """The k-th largest score, 1 <= k <= scores.size, exact to the bit.

    Example:
      >>> float(kth_largest(jnp.array([0.5, -2.0, 3.0]), 2))
      0.5
    """
    keys = order_key(scores)
    return value_of(jnp.min(jnp.where(top_mask(scores, k), keys, highest(keys.dtype))), scores.dtype)

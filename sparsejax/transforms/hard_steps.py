"""What reparametrized methods share: hard steps with the gradient of the identity, and ranking by scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.selection import Request, Scores, order_key
from sparsejax.transforms.lockstep import Steps, Together
from sparsejax.transforms.proposals import Leaf
from sparsejax.transforms.rules import Rule, unit_keys


@jax.custom_jvp
def hard(mask: jax.Array, score: jax.Array) -> jax.Array:
    """The mask as zeros and ones, with the gradient that the score itself would have.

    Example:
      >>> float(jax.grad(lambda s: hard(s > 0, s) * 3.0)(-1.0))
      3.0
    """
    return mask.astype(jnp.result_type(score))


@hard.defjvp
def _hard_jvp(primals, tangents):
    return hard(*primals), tangents[1]


@jax.custom_jvp
def cut(value: jax.Array, mask: jax.Array) -> jax.Array:
    """The value on the mask, 0 off it, with the gradient that the value itself would have."""
    return jnp.where(mask, value, jnp.zeros_like(value))


@cut.defjvp
def _cut_jvp(primals, tangents):
    return cut(*primals), tangents[0]


def keep_top(leaf: Leaf, score: jax.Array) -> Rule:
    """The mask of the `leaf.keep` units of each group with the largest (mean) scores, kept or not."""
    group = leaf.pattern.group_axes(leaf.weight.shape, leaf.axes)
    chosen = yield Request(unit_keys(_itself, leaf._replace(weight=score)), leaf.keep, group, leaf.ties)
    return leaf.pattern.expand(chosen.mask, leaf.weight.shape, leaf.axes)


def keep_top_globally(leaves: list[Leaf], scores: list[jax.Array]) -> Steps:
    """The masks of the `keep` weights with the largest scores of all leaves together, kept or not."""
    keep = leaves[0].keep
    every = [
        Request(Scores(order_key, (score,)), keep, tuple(range(score.ndim)), leaf.ties)
        for leaf, score in zip(leaves, scores, strict=True)
    ]
    chosen = yield Together(every, keep)
    return [each.mask for each in chosen]


def by_score(score: Callable[[Leaf], jax.Array], across: bool) -> dict[str, Any]:
    """The rule that keeps the best scores, in each layer or over all of them, as `reparametrized` takes it."""
    if across:
        return {"new_masks": lambda leaves: keep_top_globally(leaves, [score(leaf) for leaf in leaves])}
    return {"new_mask": lambda leaf: keep_top(leaf, score(leaf))}


def _itself(leaf: Leaf) -> jax.Array:
    return leaf.weight

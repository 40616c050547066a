"""The two rules of which most methods are made: keep the best, and drop some to grow others."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from sparsejax import criteria
from sparsejax.criteria import Criterion
from sparsejax.selection import Scores, count_true, minus, order_key, scaled, select, select_across
from sparsejax.transforms.core import Leaf


def unit_keys(criterion: Criterion, leaf: Leaf, dtype: Any = None) -> Scores:
    """The criterion's scores of the leaf's units as keys; element-wise ones are computed in the selection's passes.

    Scores are compared in `dtype`, by default their own; leaves of several dtypes need one that holds them all.
    """
    pooled = jax.eval_shape(lambda: leaf.pattern.units(leaf.weight, leaf.axes)).size != leaf.weight.size
    if pooled or criterion is criteria.random:  # drawing bits anew in every pass would cost more than to store them
        scores = leaf.pattern.units(criterion(leaf), leaf.axes)
        return Scores(order_key, (scores if dtype is None else scores.astype(dtype),))
    weight, grad, mask = (leaf.pattern.units(x, leaf.axes) for x in (leaf.weight, leaf.grad, leaf.mask))
    rest = {name: leaf.pattern.units(x, leaf.axes) for name, x in leaf.inner.items()}

    def keys(weight, grad, mask, rest):
        scores = criterion(leaf._replace(weight=weight, grad=grad, mask=mask, inner=rest))
        return order_key(scores if dtype is None else scores.astype(dtype))

    return Scores(keys, (weight, grad, mask, rest))


def unit_mask(leaf: Leaf) -> jax.Array:
    """The leaf's mask over its units: True where a unit keeps any weight."""
    return leaf.pattern.units(leaf.mask.astype(jnp.float32), leaf.axes) > 0


def among(scores: Scores, allowed: jax.Array) -> Scores:
    """The same keys, with 0 (never chosen before any other) where not allowed."""
    return Scores(lambda *read: jnp.where(read[-1], scores.keys(*read[:-1]), 0), (*scores.operands, allowed))


def keep_best(leaf: Leaf, criterion: Criterion = criteria.magnitude) -> jax.Array:
    """The mask of the `leaf.keep` best active units of each group: what is pruned stays pruned."""
    group = leaf.pattern.group_axes(leaf.weight.shape, leaf.axes)
    chosen = select(among(unit_keys(criterion, leaf), unit_mask(leaf)), leaf.keep, group, leaf.ties)
    return leaf.pattern.expand(chosen, leaf.weight.shape, leaf.axes)


def keep_best_globally(leaves: list[Leaf], criterion: Criterion = criteria.magnitude) -> list[jax.Array]:
    """The masks of the `keep` best active weights over all leaves: one threshold, nothing concatenated."""
    dtype = jnp.result_type(*(jax.eval_shape(lambda leaf=leaf: criterion(leaf)) for leaf in leaves))
    scores = [among(unit_keys(criterion, leaf, dtype), leaf.mask) for leaf in leaves]
    ties = [leaf.ties for leaf in leaves if leaf.ties is not None] or None
    return select_across(scores, leaves[0].keep, ties)


def drop_and_grow(
    leaf: Leaf,
    grow: Criterion,
    drop: Criterion = criteria.magnitude,
    *,
    regrow_dropped: bool = True,
    rounding: str = "floor",
    signed: bool = False,
) -> jax.Array:
    """Drops the k lowest-scoring active units of each layer and grows k others, inside the groups of the pattern.

    k = floor(fraction * n) of the layer's n active units. A dropped unit may grow again (then it keeps its value and
    moments) unless `regrow_dropped` is False; it then comes back only where nothing else is free. Where the kept
    count also shrinks (a gradual phase), prune with `keep_best` first.

    Args:
      leaf: with the fraction to move.
      grow, drop: criteria; the largest grow score comes in, the smallest drop score goes out.
      rounding: "floor" or "ceil" of fraction * n.
      signed: whether weights >= 0 and weights < 0 lose their share apart (SET); of pooled units the mean weight counts.
    """
    active = unit_mask(leaf)
    group = leaf.pattern.group_axes(leaf.weight.shape, leaf.axes)
    layer = leaf.pattern.slice_axes(leaf.weight.shape, leaf.axes)
    assert leaf.fraction is not None, "a rule that drops and grows needs a plan with a rewire phase"
    survivors = jnp.zeros_like(active)
    for part in _signs(leaf, active) if signed else (active,):
        n = count_true([part], layer)[0]
        stay = minus(n, scaled(n, leaf.fraction, rounding))
        survivors |= select(among(unit_keys(drop, leaf), part), stay, layer, leaf.ties)
    free = ~survivors if regrow_dropped else ~active
    scores = unit_keys(grow, leaf)

    def keys(survivors, free, *read):
        found = scores.keys(*read)
        return jnp.where(survivors, jnp.array(jnp.iinfo(found.dtype).max, found.dtype), jnp.where(free, found, 0))

    chosen = select(Scores(keys, (survivors, free, *scores.operands)), leaf.keep, group, leaf.ties)
    return leaf.pattern.expand(chosen, leaf.weight.shape, leaf.axes)


def _signs(leaf: Leaf, active: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The active units with a weight >= 0, and those with a weight < 0."""
    negative = leaf.pattern.units(leaf.weight, leaf.axes) < 0
    return active & ~negative, active & negative

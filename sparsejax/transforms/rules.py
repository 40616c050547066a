"""The two rules of which most methods are made: keep the best, and drop some to grow others.

Rules are generators: `mask = yield Request(...)` selects, together with what the rules of all other leaves ask for, and
`mask = yield from keep_best(leaf)` runs one rule inside another.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax import criteria
from sparsejax.criteria import Criterion
from sparsejax.selection import AllBut, Chosen, Count, Request, Scores, order_key
from sparsejax.selection.columns import count_kept
from sparsejax.selection.counts import minus, plus, scaled
from sparsejax.selection.keys import highest, magnitude_key
from sparsejax.selection.lots import lots
from sparsejax.transforms.lockstep import Together
from sparsejax.transforms.proposals import Leaf

Rule = Generator[Any, Any, jax.Array]


def unit_keys(criterion: Criterion, leaf: Leaf, dtype: Any = None) -> Scores:
    """The criterion's scores of the leaf's units as keys; element-wise ones are computed where they are read.

    Scores are compared in `dtype`, by default their own; leaves of several dtypes need one that holds them all.
    """
    units = jax.eval_shape(lambda: leaf.pattern.units(leaf.weight, leaf.axes))
    if criterion is criteria.random:
        return lots(leaf.key, units.shape)
    if units.size != leaf.weight.size or criterion in criteria.WHOLE:
        pooled = leaf.pattern.units(criterion(leaf), leaf.axes)
        return Scores(order_key, (pooled if dtype is None else pooled.astype(dtype),))

    def scores(weight, grad, mask, inner):
        found = criterion(leaf._replace(weight=weight, grad=grad, mask=mask, inner=inner))
        return found if dtype is None else found.astype(dtype)

    return _of_what_is_read(scores, jax.tree.map(lambda x: leaf.pattern.units(x, leaf.axes), _arrays(leaf)))


def _arrays(leaf: Leaf) -> tuple[Any, ...]:
    return leaf.weight, leaf.grad, leaf.mask, leaf.inner


def _of_what_is_read(fn: Callable[..., jax.Array], operands: tuple[Any, ...]) -> Scores:
    """Keys of the scores `fn` gives, with those of the operands that it reads: no moments that nobody ranks by."""
    structure: Any
    leaves, structure = jax.tree.flatten(operands)
    jaxpr = jax.make_jaxpr(lambda leaves: fn(*structure.unflatten(leaves)))(leaves).jaxpr
    used = {id(var) for equation in jaxpr.eqns for var in equation.invars} | {id(var) for var in jaxpr.outvars}
    read = [i for i, var in enumerate(jaxpr.invars) if id(var) in used]
    if _is_magnitude(jaxpr) and read[0] < 2:  # of weights or gradients; a leaf where they are not finite is refused
        return Scores(magnitude_key, (leaves[read[0]],))

    def keys(*given):
        filled = [jnp.zeros(x.shape, x.dtype) for x in leaves]
        for i, x in zip(read, given, strict=True):
            filled[i] = x
        return order_key(fn(*structure.unflatten(filled)))

    return Scores(keys, tuple(leaves[i] for i in read))


def _is_magnitude(jaxpr: Any) -> bool:
    """Whether a program is `jnp.abs` of one of its arguments, of floating dtype, and nothing else."""
    if [equation.primitive for equation in jaxpr.eqns] != [lax.abs_p]:
        return False
    (equation,) = jaxpr.eqns
    (result,) = jaxpr.outvars
    return result is equation.outvars[0] and jnp.issubdtype(result.aval.dtype, jnp.floating)


def unit_mask(leaf: Leaf) -> jax.Array:
    """The leaf's mask over its units: True where a unit keeps any weight."""
    if jax.eval_shape(lambda: leaf.pattern.units(leaf.weight, leaf.axes)).size == leaf.weight.size:
        return leaf.pattern.units(leaf.mask, leaf.axes)
    return leaf.pattern.units(leaf.mask.astype(jnp.float32), leaf.axes) > 0


def among(scores: Scores, allowed: jax.Array) -> Scores:
    """The same keys, with 0 (never chosen before any other) where not allowed."""
    return Scores(lambda *read: jnp.where(read[-1], scores.keys(*read[:-1]), 0), (*scores.operands, allowed))


def keep_best(leaf: Leaf, criterion: Criterion = criteria.magnitude) -> Rule:
    """The mask of the `leaf.keep` best active units of each group: what is pruned stays pruned."""
    group = leaf.pattern.group_axes(leaf.weight.shape, leaf.axes)
    chosen = yield Request(among(unit_keys(criterion, leaf), unit_mask(leaf)), leaf.keep, group, leaf.ties)
    return leaf.pattern.expand(chosen.mask, leaf.weight.shape, leaf.axes)


def choose_best(leaf: Leaf, criterion: Criterion = criteria.magnitude) -> Rule:
    """The mask of the `leaf.keep` best units of each group, active or not: what was pruned may come back."""
    group = leaf.pattern.group_axes(leaf.weight.shape, leaf.axes)
    chosen = yield Request(unit_keys(criterion, leaf), leaf.keep, group, leaf.ties)
    return leaf.pattern.expand(chosen.mask, leaf.weight.shape, leaf.axes)


def keep_best_globally(
    leaves: list[Leaf], criterion: Criterion = criteria.magnitude
) -> Generator[Together, list[Chosen], list[jax.Array]]:
    """The masks of the `keep` best active weights over all leaves: one threshold, nothing concatenated."""
    dtype = jnp.result_type(*(jax.eval_shape(lambda leaf=leaf: criterion(leaf)) for leaf in leaves))
    keep = leaves[0].keep
    requests = [
        Request(among(unit_keys(criterion, leaf, dtype), leaf.mask), keep, tuple(range(leaf.mask.ndim)), leaf.ties)
        for leaf in leaves
    ]
    chosen = yield Together(requests, keep)
    return [each.mask for each in chosen]


def drop_and_grow(
    leaf: Leaf,
    grow: Criterion,
    drop: Criterion = criteria.magnitude,
    *,
    regrow_dropped: bool = True,
    rounding: str = "floor",
    signed: bool = False,
    prune: bool = False,
    upto: Count | None = None,
) -> Rule:
    """Drops the k lowest-scoring active units of each layer and grows k others, inside the groups of the pattern.

    k = floor(fraction * n) of the layer's n active units. A dropped unit may grow again (then it keeps its value and
    moments) unless `regrow_dropped` is False; it then comes back only where nothing else is free. Each group keeps as
    many units as it has or, with `prune`, `leaf.keep`: as if `keep_best` with the same criterion had gone before.

    Args:
      leaf: with the fraction to move.
      grow, drop: criteria; the largest grow score comes in, the smallest drop score goes out.
      rounding: "floor" or "ceil" of fraction * n.
      signed: whether weights >= 0 and weights < 0 lose their share apart (SET); of pooled units the mean weight counts.
      prune: whether the kept count shrinks too, along the plan's ramp (GraNet).
      upto: how many units each group has in the end, where that is not as many as before.
    """
    fraction = leaf.fraction
    assert fraction is not None, "a rule that drops and grows needs a plan with a rewire phase"
    group = leaf.pattern.group_axes(leaf.weight.shape, leaf.axes)
    layer = leaf.pattern.slice_axes(leaf.weight.shape, leaf.axes)
    at_once = prune and group == layer and not signed and regrow_dropped  # what is pruned and what drops: one cut
    if prune and not at_once:
        leaf = leaf._replace(mask=(yield from keep_best(leaf, drop)))
    active, scores = unit_mask(leaf), unit_keys(drop, leaf)
    stay: Count | AllBut = AllBut(fraction, rounding)
    if at_once:
        stay = minus(leaf.keep, scaled(leaf.keep, fraction, rounding))
    parts = _signs(leaf, active) if signed else [active]
    stays = yield [Request(among(scores, part), stay, layer, leaf.ties) for part in parts]
    survivors = stays[0].mask if len(stays) == 1 else stays[0].mask | stays[1].mask
    if upto is not None:
        count: Count = upto
    elif at_once:
        count = leaf.keep
    elif group == layer:
        count = plus([found for each in stays if (found := each.candidates) is not None])
    else:
        count = count_kept(active, group)
    return (yield from regrow(leaf, survivors, grow, count, None if regrow_dropped else ~active))


def mover(grow: Criterion, regrow_dropped: bool, rounding: str, signed: bool = False) -> Callable[[Leaf], Rule]:
    """`drop_and_grow` as a function of the leaf alone; ValueError where the rounding is neither floor nor ceil."""
    checked_rounding(rounding)
    return lambda leaf: drop_and_grow(leaf, grow, regrow_dropped=regrow_dropped, rounding=rounding, signed=signed)


def checked_rounding(rounding: str) -> str:
    """The argument `drop_rounding`, or a ValueError."""
    if rounding not in ("floor", "ceil"):
        raise ValueError(f"drop_rounding={rounding!r}: 'floor' or 'ceil'")
    return rounding


def regrow(leaf: Leaf, survivors: jax.Array, grow: Criterion, count: Count, free: jax.Array | None = None) -> Rule:
    """The mask of the survivors and, up to `count` units in each group, of the others that score best.

    Args:
      leaf: the leaf.
      survivors: bool, over the leaf's units; at most `count` in a group.
      grow: the criterion.
      count: of each group.
      free: where units may grow; elsewhere they do only where nothing else is left. None: everywhere.
    """
    group = leaf.pattern.group_axes(leaf.weight.shape, leaf.axes)
    wanted = unit_keys(grow, leaf)
    wanted = wanted if free is None else among(wanted, free)

    def keys(survivors, *read):
        found = wanted.keys(*read)
        return jnp.where(survivors, highest(found.dtype), found)

    chosen = yield Request(Scores(keys, (survivors, *wanted.operands)), count, group, leaf.ties)
    return leaf.pattern.expand(chosen.mask, leaf.weight.shape, leaf.axes)


def _signs(leaf: Leaf, active: jax.Array) -> list[jax.Array]:
    """The active units with a weight >= 0, and those with a weight < 0."""
    negative = leaf.pattern.units(leaf.weight, leaf.axes) < 0
    return [active & ~negative, active & negative]

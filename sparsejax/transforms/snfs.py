"""Sparse momentum (SNFS): weights move to the layers, and to the places, of large momentum."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import optax

from sparsejax import criteria
from sparsejax.distributions import uniform
from sparsejax.leaves import Layout, Where
from sparsejax.schedules import check_steps, rewire
from sparsejax.selection import AllBut, Request
from sparsejax.selection.counts import minus, plus, scaled
from sparsejax.transforms.core import sparse_wrapper
from sparsejax.transforms.lockstep import Steps, side_by_side
from sparsejax.transforms.proposals import Leaf
from sparsejax.transforms.rules import among, checked_rounding, mover, regrow, unit_keys
from sparsejax.transforms.shares import added, dealt, listed, mean_of, sizes, split
from sparsejax.transforms.start import Distribution, Patterns

ROOM = 0.99  # of a layer's free places, how many the first dealing may fill


def snfs(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    drop_fraction: float | jax.Array = 0.5,
    update_every: int = 500,
    update_end: int | None = None,
    redistribute: bool = True,
    skip_step: bool = False,
    drop_rounding: str = "ceil",
    distribution: Distribution | None = None,
    pattern: Patterns = None,
    where: Where | None = None,
    layout: Layout | None = None,
    ties: str = "index",
    seed: int | jax.Array = 0,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Sparse momentum: drops the smallest |w| of each layer, grows the largest |momentum|, more in layers with much.

    Each layer drops ceil(f n) of its n weights. Their total is dealt out to the layers in proportion to the mean
    |momentum| of the weights that were active, at most 0.99 of a layer's free places; what does not fit goes to the
    other layers in the same proportion, and the total stays exactly. Each layer then grows where |m| is largest, m the
    inner optimizer's momentum (of Adam m / (sqrt(v) + 1e-8)). New weights start at 0; f falls by cosine to 0.

    Unlike other methods: the inner optimizer sees the gradients of all weights and its moments are kept off the mask,
    so that a new weight comes in with its momentum. Gradients off the mask that are not finite count as 0.

    Args:
      inner: an optimizer with momentum: SGD's `trace`, or `mu` of Adam, Lion and others.
      sparsity: fraction of zeros over all masked leaves in [0, 1), at every step.
      drop_fraction: f at the begin, in [0, 1]; may be injected.
      update_every: steps (the paper: an epoch).
      update_end: masks change below this step (the paper: to the end of training); None: for ever, with a constant f.
      redistribute: whether weights move between layers; False keeps each layer's count, as RigL's port does.
      skip_step: whether a step that changes masks leaves the params as they are.
      drop_rounding: "ceil" (the official code) or "floor" of f n.
      distribution: at the begin; None is uniform.
      pattern: only without redistribution.
      where, layout, ties, seed, packed: see `sparse_wrapper`.

    Raises:
      ValueError: an argument is out of range; in `update`, the inner optimizer has no momentum.

    Example:
      >>> tx = snfs(optax.sgd(0.1, momentum=0.9), sparsity=0.95, update_every=469, update_end=46_900)

    Source: Dettmers & Zettlemoyer 2019, arXiv:1907.04840. The official code lets the total drift by rounding, and
    limits the drop rate of nearly dense layers; neither is done here.
    """
    check_steps(1, update_every=update_every)
    if update_end is not None:
        check_steps(0, update_end=update_end)
    checked_rounding(drop_rounding)
    if redistribute and pattern is not None:
        raise ValueError(f"pattern={pattern!r}: weights that move between layers have none; or redistribute=False")
    return sparse_wrapper(
        inner,
        None if redistribute else mover(criteria.momentum, True, drop_rounding),
        new_masks=partial(_redistributed, drop_rounding) if redistribute else None,
        plan=(rewire(update_every, drop_fraction, update_end),),
        start="random",
        dense_moments=True,
        sparsity=sparsity,
        skip_step=skip_step,
        distribution=uniform if distribution is None and pattern is None else distribution,
        pattern=pattern,
        where=where,
        layout=layout,
        ties=ties,
        seed=seed,
        packed=packed,
    )


def _redistributed(rounding: str, leaves: list[Leaf]) -> Steps:
    axes = [leaf.pattern.slice_axes(leaf.weight.shape, leaf.axes) for leaf in leaves]
    fraction = leaves[0].fraction
    assert fraction is not None
    stays = yield [
        Request(among(unit_keys(criteria.magnitude, leaf), leaf.mask), AllBut(fraction, rounding), layer, leaf.ties)
        for leaf, layer in zip(leaves, axes, strict=True)
    ]
    before = [stay.candidates for stay in stays]
    active = listed(before)
    dropped = scaled(active, fraction, rounding)
    left = minus(active, dropped)
    whole = [sizes(leaf.weight.shape, layer, each) for leaf, layer, each in zip(leaves, axes, before, strict=True)]
    free = minus(listed(whole), left)
    means = [mean_of(criteria.momentum(leaf), leaf.mask, layer) for leaf, layer in zip(leaves, axes, strict=True)]
    grown = dealt(added(dropped), jnp.concatenate([jnp.ravel(mean) for mean in means]), scaled(free, ROOM), free)
    keeps = split(plus([left, grown]), before)
    rules = [
        regrow(leaf, stay.mask, criteria.momentum, keep) for leaf, stay, keep in zip(leaves, stays, keeps, strict=True)
    ]
    return (yield from side_by_side(rules))

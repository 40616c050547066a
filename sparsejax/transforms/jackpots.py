"""Lottery Jackpots: the mask of a trained net is searched; its weights stay."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import optax

from sparsejax.leaves import Layout, Where
from sparsejax.schedules import check_steps
from sparsejax.selection import Request, Scores, count_true, order_key, scaled, select
from sparsejax.transforms.hard_steps import hard
from sparsejax.transforms.proposals import Leaf
from sparsejax.transforms.reparametrized import ALWAYS, reparametrized
from sparsejax.transforms.rules import Rule, among, unit_mask
from sparsejax.transforms.start import Distribution, Patterns


def jackpots(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    total_steps: int = 10_000,
    flip_power: float = 4.0,
    distribution: Distribution | None = None,
    pattern: Patterns = None,
    where: Where | None = None,
    layout: Layout | None = None,
    ties: str = "index",
    seed: int | jax.Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """Lottery Jackpots: finds a better mask for trained weights, which stay as they are, by scores that are trained.

    w~ = m w. The first m keeps the largest |w| of each layer; its scores start at 1.0 where kept and 0.99 where pruned,
    and get dL/ds = w dL/dw~. After step t let n weights of a layer be kept though not among its k largest scores, and
    n others the other way round: ceil(n (1 - t / T)^4) of them change places, largest and smallest scores first. So
    the mask settles. No weight of a masked leaf moves (clauses 3 and 4 of the contract); masks change at every step.

    Args:
      inner: optimizer of the scores and of the leaves without a mask (the paper: SGD 0.1, weight decay 5e-4).
      sparsity: fraction of weights left out, in [0, 1).
      total_steps: T, steps of the whole run; from there on the mask stays.
      flip_power: 4, the exponent; 0 lets all n change at each step.
      distribution: None is uniform. (The official code counts what one |w| threshold leaves in each layer.)
      pattern, where, layout, ties, seed: see `sparse_wrapper`. The params handed to `init` must be the trained ones.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> tx = jackpots(optax.sgd(0.1, momentum=0.9), sparsity=0.9, total_steps=5_000)

    Source: Zhang et al. 2021, arXiv:2104.08700. The official code rounds (1 - t / T)^4 itself up, to 1 throughout.
    """
    check_steps(1, total_steps=total_steps)
    if isinstance(flip_power, bool) or not 0 <= flip_power < float("inf"):
        raise ValueError(f"flip_power={flip_power} must be a finite number of at least 0")
    return reparametrized(
        inner,
        lambda leaf: leaf.weight * hard(leaf.mask, leaf.extra),
        _first_scores,
        new_mask=partial(_flipped, total_steps, flip_power),
        moves="none",
        plan=ALWAYS,
        sparsity=sparsity,
        distribution=distribution,
        pattern=pattern,
        where=where,
        layout=layout,
        ties=ties,
        seed=seed,
    )


def _first_scores(leaf: Leaf) -> jax.Array:
    shape = leaf.weight.shape
    units = Scores(order_key, (leaf.pattern.units(jnp.abs(leaf.weight), leaf.axes),))
    mask = select(units, leaf.keep, leaf.pattern.group_axes(shape, leaf.axes), leaf.ties)
    return jnp.where(leaf.pattern.expand(mask, shape, leaf.axes), jnp.float32(1.0), jnp.float32(0.99))


def _flipped(total_steps: int, flip_power: float, leaf: Leaf) -> Rule:
    """The mask after as many flips as this step allows; at step 0, and in init, after all of them."""
    shape = leaf.weight.shape
    group = leaf.pattern.group_axes(shape, leaf.axes)
    score = leaf.pattern.units(leaf.extra, leaf.axes)
    best, worst = Scores(order_key, (score,)), Scores(order_key, (-score,))
    wanted = (yield Request(best, leaf.keep, group, leaf.ties)).mask
    old = unit_mask(leaf)
    left = jnp.clip(1 - leaf.step.astype(jnp.float32) / total_steps, 0.0, 1.0) ** flip_power
    flips = scaled(count_true([wanted & ~old], group)[0], left, "ceil")
    comes, goes = yield [
        Request(among(best, wanted & ~old), flips, group, leaf.ties),
        Request(among(worst, old & ~wanted), flips, group, leaf.ties),
    ]
    new = jnp.where(leaf.step == 0, wanted, old & ~goes.mask | comes.mask)
    return leaf.pattern.expand(new, shape, leaf.axes)

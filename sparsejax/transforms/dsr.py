"""Dynamic sparse reparametrization (DSR): one threshold for all layers, which adapts itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from sparsejax import criteria
from sparsejax.distributions import uniform
from sparsejax.leaves import Layout, Where
from sparsejax.schedules import Phase, check_steps
from sparsejax.selection.counts import as_float, count_true, minus, plus
from sparsejax.transforms.core import sparse_wrapper
from sparsejax.transforms.lockstep import Steps, side_by_side
from sparsejax.transforms.proposals import Leaf
from sparsejax.transforms.rules import regrow
from sparsejax.transforms.shares import added, dealt, listed, sizes, split
from sparsejax.transforms.start import Distribution


def dsr(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    drop_fraction: float | jax.Array = 0.14,
    threshold: float = 1e-3,
    update_every: int = 1_000,
    update_end: int | None = None,
    skip_step: bool = False,
    distribution: Distribution | None = None,
    where: Where | None = None,
    layout: Layout | None = None,
    ties: str = "index",
    seed: int | jax.Array = 0,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """DSR: drops every |w| below one threshold H, and grows as many at random, most where most weights survived.

    With N_p = drop_fraction * (all weights kept): where more than 1.1 N_p were dropped H is halved for the next update,
    where fewer than 0.9 N_p it is doubled. The dropped total is dealt out over the layers in proportion to their
    surviving weights, to places that were free before (to those just dropped only where no others are left); what does
    not fit a layer goes to the others. The total stays exactly. New weights start at 0.

    Args:
      inner: the optimizer.
      sparsity: fraction of zeros over all masked leaves in [0, 1), at every step.
      drop_fraction: N_p as a share of the weights kept, in [0, 1]; may be injected. (The paper gives numbers: 20,000 of
        WRN-28-2, which at 90 % are about 0.14.)
      threshold: H at the begin, above 0.
      update_every: steps.
      update_end: masks change below this step (the paper: epoch 190 of 200); None: for ever.
      skip_step: whether a step that changes masks leaves the params as they are.
      distribution: at the begin; None is uniform. The paper leaves the first and the last layer dense: use `where`.
      where, layout, ties, seed, packed: see `sparse_wrapper`.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> tx = dsr(optax.sgd(0.1, momentum=0.9), sparsity=0.9, update_end=74_000)

    Source: Mostafa & Wang 2019, arXiv:1902.05967.
    """
    check_steps(1, update_every=update_every)
    if update_end is not None:
        check_steps(0, update_end=update_end)
    if isinstance(threshold, bool) or not 0 < threshold < float("inf"):
        raise ValueError(f"threshold={threshold} must be finite and above 0")
    return sparse_wrapper(
        inner,
        new_masks=_by_threshold,
        memory=jnp.float32(threshold),
        plan=(Phase(update_end, update_every, drop_fraction=drop_fraction, anneal=(0, None)),),
        start="random",
        sparsity=sparsity,
        skip_step=skip_step,
        distribution=distribution or uniform,
        where=where,
        layout=layout,
        ties=ties,
        seed=seed,
        packed=packed,
    )


def _by_threshold(leaves: list[Leaf], threshold: jax.Array) -> Steps:
    axes = [leaf.pattern.slice_axes(leaf.weight.shape, leaf.axes) for leaf in leaves]
    survivors = [leaf.mask & (jnp.abs(leaf.weight).astype(jnp.float32) >= threshold) for leaf in leaves]
    counts = [count_true([leaf.mask, left], layer) for leaf, left, layer in zip(leaves, survivors, axes, strict=True)]
    before = [active for active, _ in counts]
    active, left = listed(before), listed([after for _, after in counts])
    parts = zip(leaves, axes, before, strict=True)
    whole = listed([sizes(leaf.weight.shape, layer, each) for leaf, layer, each in parts])
    dropped = minus(added(active), added(left))
    grown = dealt(dropped, as_float(left), minus(whole, active), minus(whole, left))
    keeps = split(plus([left, grown]), before)
    rules = [
        regrow(leaf, stay, criteria.random, keep, ~leaf.mask)
        for leaf, stay, keep in zip(leaves, survivors, keeps, strict=True)
    ]
    masks = yield from side_by_side(rules)
    fraction = leaves[0].fraction
    assert fraction is not None
    return masks, _adapted(threshold, as_float(dropped), as_float(added(active)) * fraction)


def _adapted(threshold: jax.Array, dropped: jax.Array, wanted: jax.Array) -> jax.Array:
    factor = jnp.where(dropped > 1.1 * wanted, 0.5, jnp.where(dropped < 0.9 * wanted, 2.0, 1.0))
    return threshold * factor

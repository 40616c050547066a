"""Second-order pruning: optimal brain surgeon by the empirical Fisher, in blocks (oBERT, WoodFisher)."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax.fisher import compensated, diagonal, from_blocks, in_blocks, inverse_roots
from sparsejax.leaves import Layout, Where
from sparsejax.schedules import check_steps, dense, gradual
from sparsejax.selection import Count, Request, Scores, order_key
from sparsejax.selection.counts import count_true, minus, plus, scaled
from sparsejax.transforms.core import sparse_wrapper
from sparsejax.transforms.lockstep import Together
from sparsejax.transforms.proposals import Adjusted, Leaf
from sparsejax.transforms.rules import among
from sparsejax.transforms.shares import added
from sparsejax.transforms.start import Distribution


def obert(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    update_start: int = 0,
    update_end: int = 10_000,
    update_every: int = 1_000,
    initial_sparsity: float = 0.0,
    gradients: int = 1_024,
    block_size: int = 50,
    damp: float = 1e-7,
    recomputations: int = 1,
    skip_step: bool = False,
    distribution: Distribution | str | None = None,
    where: Where | None = None,
    layout: Layout | None = None,
    ties: str = "index",
    seed: int | jax.Array = 0,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """oBERT: prunes the smallest w_i² / (2 [F⁻¹]_ii), and changes the other weights by what makes up for them.

    F = damp I + (1 / m) Σ g gᵀ is the empirical Fisher of the active weights, in blocks of `block_size` of them that
    follow one another, output by output. When i is pruned the remaining weights change by -(w_i / [F⁻¹]_ii) F⁻¹ e_i,
    for all pruned ones added up. The sparsity follows the cubic rule of `gmp`. WoodFisher is the same with blocks of
    1,000 to 2,000.

    The m gradients come from an extra argument: `tx.update(grads, opt_state, params, grads_fn=grads_fn)`, where
    `grads_fn(params, i)` is the tree of gradients on the i-th batch (the paper: a batch of one), i = 0, ..., m - 1, at
    weights that the method gives; other steps than those that prune do not call it. In `sparsejax train` they are those
    of m examples drawn from the training data, or of streamed data those of the step's batch, in turn.

    An update needs `block_size` float32 numbers for each masked weight and the time of m gradients; on many devices
    each masked leaf is gathered for it.

    Args:
      inner: the optimizer.
      sparsity: fraction of zeros in [0, 1) at `update_end`.
      update_start, update_end, update_every, initial_sparsity: as `gmp`.
      gradients: m.
      block_size: weights in a block; a layer's last block may be smaller.
      damp: of the Fisher, above 0.
      recomputations: in how many equal parts an update prunes, each with a Fisher of its own.
      skip_step: whether a step that prunes leaves out the optimizer's step, whose gradient is that before pruning.
      distribution: None or "global" ranks all layers together; a function keeps each layer's own share.
      where, layout, ties, seed, packed: see `sparse_wrapper`.

    Raises:
      ValueError: an argument is out of range; in `update`, `grads_fn` is missing.

    Example:
      >>> tx = obert(optax.adamw(1e-3), sparsity=0.9, update_every=10, update_end=100, gradients=64)
      >>> params = {"kernel": jnp.ones((8, 8))}
      >>> grads_fn = lambda params, i: jax.tree.map(lambda w: jnp.cos(w * i), params)
      >>> updates, state = tx.update(params, tx.init(params), params, grads_fn=grads_fn)

    Source: Kurtic et al. 2022, arXiv:2203.07259; Singh & Alistarh 2020, arXiv:2004.14340.
    """
    check_steps(0, update_start=update_start, update_end=update_end)
    check_steps(1, update_every=update_every, gradients=gradients, block_size=block_size, recomputations=recomputations)
    if update_end < update_start:
        raise ValueError(f"update_end={update_end} must be at least update_start={update_start}")
    if isinstance(damp, bool) or not 0 < damp < float("inf"):
        raise ValueError(f"damp={damp} must be finite and above 0")
    if not 0 <= initial_sparsity <= (sparsity or 0.0):
        raise ValueError(f"initial_sparsity={initial_sparsity} must lie in [0, sparsity={sparsity}]")
    across = distribution in (None, "global")
    rule = partial(_prune, across=across, m=gradients, size=block_size, damp=damp, parts=recomputations)
    return sparse_wrapper(
        inner,
        new_masks=rule,
        plan=(dense(update_start), gradual(update_end, update_every, initial_sparsity / sparsity if sparsity else 0.0)),
        adjusts=True,
        many_gradients=True,
        sparsity=sparsity,
        skip_step=skip_step,
        distribution="global" if across else distribution,
        where=where,
        layout=layout,
        ties=ties,
        seed=seed,
        packed=packed,
    )


def _prune(
    leaves: list[Leaf],
    gradients: Callable[..., list[jax.Array]],
    *,
    across: bool,
    m: int,
    size: int,
    damp: float,
    parts: int,
) -> Generator[Any, Any, list[Adjusted]]:
    axes = [leaf.pattern.slice_axes(leaf.weight.shape, leaf.axes) for leaf in leaves]
    before = [count_true([leaf.mask], layer)[0] for leaf, layer in zip(leaves, axes, strict=True)]
    total = plus([added(Count(*(jnp.ravel(word) for word in count))) for count in before])
    for part in range(1, parts + 1):
        roots = _roots(leaves, gradients, m, size, damp)
        scores = [_saliency(leaf, root) for leaf, root in zip(leaves, roots, strict=True)]
        if across:
            keep = _towards(total, leaves[0].keep, part / parts)
            every = [
                Request(among(score, leaf.mask), keep, tuple(range(leaf.mask.ndim)), leaf.ties)
                for leaf, score in zip(leaves, scores, strict=True)
            ]
            chosen = yield Together(every, keep)
        else:
            chosen = yield [
                Request(among(score, leaf.mask), _towards(count, leaf.keep, part / parts), layer, leaf.ties)
                for leaf, score, count, layer in zip(leaves, scores, before, axes, strict=True)
            ]
        leaves = [_pruned(leaf, each.mask, root) for leaf, each, root in zip(leaves, chosen, roots, strict=True)]
    return [Adjusted(leaf.mask, leaf.weight) for leaf in leaves]


def _roots(
    leaves: list[Leaf], gradients: Callable[..., list[jax.Array]], m: int, size: int, damp: float
) -> list[jax.Array]:
    """The inverse Fisher of the active weights, at the weights as they are now."""
    weights = [jnp.where(leaf.mask, leaf.weight, 0) for leaf in leaves]

    def masked(i: jax.Array) -> list[jax.Array]:
        found = zip(leaves, gradients(weights, i), strict=True)
        return [in_blocks(jnp.where(leaf.mask, grad, 0), leaf.axes, size) for leaf, grad in found]

    return inverse_roots(masked, m, damp)


def _saliency(leaf: Leaf, root: jax.Array) -> Scores:
    inverse = from_blocks(diagonal(root), leaf.weight.shape, leaf.axes)
    return Scores(order_key, (leaf.weight.astype(jnp.float32) ** 2 / (2 * inverse),))


def _towards(before: Count, keep: Count, share: float) -> Count:
    """How many are kept after a share of the way to `keep`."""
    return minus(before, scaled(minus(before, keep), share))


def _pruned(leaf: Leaf, mask: jax.Array, root: jax.Array) -> Leaf:
    """The leaf under its new mask, its weights changed for what went."""
    size = root.shape[-1]
    weight = in_blocks(jnp.where(leaf.mask, leaf.weight, 0), leaf.axes, size)
    moved = compensated(root, weight, in_blocks(leaf.mask & ~mask, leaf.axes, size) > 0)
    value = from_blocks(moved, mask.shape, leaf.axes).astype(leaf.weight.dtype)
    return leaf._replace(mask=mask, weight=jnp.where(mask, value, 0))

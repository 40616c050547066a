"""Masks that never change."""

from __future__ import annotations

from typing import Any

import jax
import optax

from sparsejax.leaves import Layout, Where
from sparsejax.transforms.core import sparse_wrapper
from sparsejax.transforms.start import Distribution, Patterns


def static(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    masks: Any = None,
    distribution: Distribution | None = None,
    pattern: Patterns = None,
    where: Where | None = None,
    layout: Layout | None = None,
    ties: str = "index",
    seed: int | jax.Array = 0,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Trains under fixed masks: given ones, or random ones at a distribution.

    Args:
      inner: the optimizer.
      sparsity: fraction of zeros in [0, 1) over the masked leaves, for random masks.
      masks: the params' tree of bool arrays or None; used as they are, sparsity is then left out.
      distribution: of the sparsity over layers; None is ERK.
      pattern, where, layout, ties, seed, packed: see `sparse_wrapper`.

    Raises:
      ValueError: neither or both of sparsity and masks are given, or one is out of range.

    Example:
      >>> import jax.numpy as jnp, sparsejax
      >>> tx = static(optax.sgd(0.1), sparsity=0.75)
      >>> sparsejax.density(sparsejax.get_masks(tx.init({"kernel": jnp.ones((8, 8))})))
      0.25

    Source: the static baseline of RigL, Evci et al. 2020, arXiv:1911.11134.
    """
    if masks is not None and sparsity is not None:
        raise ValueError("static takes either sparsity or masks, not both")
    return sparse_wrapper(
        inner,
        start="random",
        sparsity=sparsity,
        masks=masks,
        distribution=distribution,
        pattern=pattern,
        where=where,
        layout=layout,
        ties=ties,
        seed=seed,
        packed=packed,
    )

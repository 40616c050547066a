"""Iterative soft shrinkage: the smallest weights shrink a little after each step, and are cut off at the end."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax.leaves import Layout, Where
from sparsejax.schedules import check_steps
from sparsejax.transforms.rules import choose_best
from sparsejax.transforms.start import Distribution, Patterns
from sparsejax.transforms.straight_through import every_step, straight_through


def iss_p(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    shrink: float | jax.Array = 0.99,
    update_end: int = 10_000,
    update_every: int = 1,
    dense_dtype: Any = None,
    distribution: Distribution | None = None,
    pattern: Patterns = None,
    where: Where | None = None,
    layout: Layout | None = None,
    ties: str = "index",
    seed: int | jax.Array = 0,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """ISS-P: after each step the smallest |w| of each layer are multiplied by 0.99; at `update_end` they become 0.

    The masks are the top 1 - s of |w| after each step. Until `update_end` the weights off them are there, shrunk, and
    train on, so that the params are exactly sparse only from then on (with shrink=0, iterative hard thresholding, at
    every step), and the inner optimizer sees all weights and gradients. After it: fixed masks, fine-tuning.

    Args:
      inner: the optimizer.
      sparsity: s, the fraction in [0, 1) that shrinks, then is zero; may be left out where `pattern` is N:M.
      shrink: the factor in [0, 1]; may be injected.
      update_end: the step whose update prunes.
      update_every: steps between choices of what shrinks (the paper: 1).
      dense_dtype: of the stored weights; see `straight_through`.
      distribution: None is uniform.
      pattern, where, layout, ties, seed, packed: see `sparse_wrapper`.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> tx = iss_p(optax.adam(1e-4), sparsity=0.9, update_end=200_000)

    Source: Wang et al. 2023, arXiv:2303.09650.
    """
    check_steps(0, update_end=update_end)
    check_steps(1, update_every=update_every)
    if not isinstance(shrink, jax.core.Tracer) and not 0 <= shrink <= 1:
        raise ValueError(f"shrink={shrink} must lie in [0, 1]")
    return straight_through(
        inner,
        choose_best,
        plan=every_step(update_end, every=update_every),
        moves=lambda latent: latent.mask | (latent.step <= update_end),
        share=lambda step: (step < update_end).astype(jnp.float32),
        shrink=lambda step: jnp.where(step < update_end, shrink, 0.0),
        dense_dtype=dense_dtype,
        sparsity=sparsity,
        distribution=distribution,
        pattern=pattern,
        where=where,
        layout=layout,
        ties=ties,
        seed=seed,
        packed=packed,
    )

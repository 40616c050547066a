"""Movement pruning: weights that move towards zero go, whatever their size."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax.leaves import Layout, Where
from sparsejax.patterns import NM
from sparsejax.schedules import check_steps, dense, gradual
from sparsejax.transforms.hard_steps import by_score, hard
from sparsejax.transforms.proposals import Leaf
from sparsejax.transforms.reparametrized import reparametrized
from sparsejax.transforms.start import Distribution, Patterns


def movement(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    update_start: int = 0,
    update_end: int = 10_000,
    update_every: int = 1,
    initial_sparsity: float = 0.0,
    aux_inner: optax.GradientTransformation | None = None,
    dense_dtype: Any = None,
    distribution: Distribution | str | None = None,
    pattern: Patterns = None,
    where: Where | None = None,
    layout: Layout | None = None,
    ties: str = "index",
    seed: int | jax.Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """First-order movement pruning: keeps weights that training moves away from zero, fewer over time.

    w~ = m w with m the mask of the largest scores S = - sum over steps of w dL/dw~, of weights kept or not (the
    gradient passes straight through the mask to S). The sparsity climbs by the cubic rule of `gmp`, and masks are
    chosen anew every `update_every` steps, after its end too. A weight off the mask holds its value, which
    returns with it; its moments do not. Contract: a weight that returns has its old value, not 0 (clause 4); masks are
    chosen at the new scores, after the step, and at every step (clause 8) unless `update_every` says otherwise.

    Args:
      inner: optimizer of the weights.
      sparsity: s_f, fraction of zeros in [0, 1) from `update_end` on; may be left out where `pattern` is N:M.
      update_start, update_end: steps between which the sparsity climbs.
      update_every: steps between mask updates; 1 is the paper's.
      initial_sparsity: s_i in [0, sparsity], taken on at `update_start`.
      aux_inner: optimizer of the scores; None is plain SGD of rate 1: S is the sum. (The official code has AdamW 1e-2.)
      dense_dtype: of the dense weights in the state; None: the params'.
      distribution: None is uniform; "global" ranks the scores of all layers together.
      pattern, where, layout, ties, seed: see `sparse_wrapper`.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> tx = movement(optax.adamw(3e-5), sparsity=0.85, update_start=1_000, update_end=8_000)

    Source: Sanh, Wolf, Rush 2020, arXiv:2005.07683.
    """
    check_steps(0, update_start=update_start, update_end=update_end)
    check_steps(1, update_every=update_every)
    if update_end < update_start:
        raise ValueError(f"update_end={update_end} must be at least update_start={update_start}")
    final = 1 - pattern.n / pattern.m if isinstance(pattern, NM) else sparsity
    if not 0 <= initial_sparsity <= (final or 0.0):
        raise ValueError(f"initial_sparsity={initial_sparsity} must lie in [0, sparsity={final}]")
    share = initial_sparsity / final if final else 0.0
    return reparametrized(
        inner,
        lambda leaf: leaf.weight * hard(leaf.mask, leaf.extra),
        _no_score,
        aux_inner=aux_inner or optax.sgd(1.0),
        **by_score(lambda leaf: leaf.extra, distribution == "global"),
        moves="kept",
        update_every=update_every,
        dense_dtype=dense_dtype,
        plan=(dense(update_start), gradual(update_end, update_every, share)),
        sparsity=sparsity,
        distribution=distribution,
        pattern=pattern,
        where=where,
        layout=layout,
        ties=ties,
        seed=seed,
    )


def _no_score(leaf: Leaf) -> jax.Array:
    return jnp.zeros_like(leaf.weight, jnp.float32)

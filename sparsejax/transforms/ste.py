"""Straight-through estimators: dense weights trained by the gradient at the masked ones, with and without decay."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax.leaves import Layout, Where
from sparsejax.patterns import nm
from sparsejax.schedules import check_steps
from sparsejax.transforms.rules import choose_best
from sparsejax.transforms.start import Distribution, Patterns
from sparsejax.transforms.straight_through import Latent, every_step, straight_through


def ste(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
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
    """STE: the largest |v| of the dense weights v are the params, and the params' gradient trains all of v.

    v_t+1 = v_t + inner step(dL/dw at w_t); w_t+1 = top(|v_t+1|) v_t+1. By default 2 of every 4 along the input axis.
    Unlike other methods, the inner optimizer sees the dense weights and the gradients of all of them.

    Args:
      inner: the optimizer.
      sparsity: fraction of zeros in [0, 1), at every step; may be left out where `pattern` is N:M.
      update_every: steps between choices of masks (the paper: 1).
      dense_dtype: of the dense weights; see `straight_through`.
      distribution: None is uniform.
      pattern: None is `nm(2, 4)`, or single weights where `sparsity` is given.
      where, layout, ties, seed, packed: see `sparse_wrapper`.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> tx = ste(optax.sgd(0.1, momentum=0.9), pattern=sparsejax.nm(1, 4))

    Source: Bengio et al. 2013, arXiv:1308.3432; for N:M, Zhou et al. 2021, arXiv:2102.04010.
    """
    return sr_ste(
        inner,
        sparsity=sparsity,
        lambda_w=0.0,
        update_every=update_every,
        dense_dtype=dense_dtype,
        distribution=distribution,
        pattern=pattern,
        where=where,
        layout=layout,
        ties=ties,
        seed=seed,
        packed=packed,
    )


def sr_ste(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    lambda_w: float | jax.Array = 2e-4,
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
    """SR-STE: STE whose masked weights decay, so that fewer of them come back and masks settle.

    The gradient of the dense weights v is dL/dw + lambda_w (1 - mask) v, w = mask v; mask = top(|v|), by default 2 of
    every 4 along the input axis, chosen anew after each step. Unlike other methods, the inner optimizer sees the dense
    weights and the gradients of all of them.

    Args:
      inner: the optimizer.
      sparsity: fraction of zeros in [0, 1), at every step; may be left out where `pattern` is N:M.
      lambda_w: >= 0 (0: STE); may be injected.
      update_every: steps between choices of masks (the paper: 1).
      dense_dtype: of the dense weights; see `straight_through`.
      distribution: None is uniform.
      pattern: None is `nm(2, 4)`, or single weights where `sparsity` is given.
      where, layout, ties, seed, packed: see `sparse_wrapper`.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> tx = sr_ste(optax.sgd(0.1, momentum=0.9), pattern=sparsejax.nm(2, 4), where=sparsejax.except_("head/*"))

    Source: Zhou et al. 2021, arXiv:2102.04010. The official linear layer drops the bias; here it stays.
    """
    check_steps(1, update_every=update_every)
    check_rate("lambda_w", lambda_w)

    def decay(latent: Latent) -> jax.Array:
        return jnp.where(latent.mask, jnp.zeros_like(latent.weight), lambda_w * latent.weight)

    return straight_through(
        inner,
        choose_best,
        plan=every_step(every=update_every),
        gradient_term=None if _is_zero(lambda_w) else decay,
        dense_dtype=dense_dtype,
        sparsity=sparsity,
        distribution=distribution,
        pattern=default_pattern(pattern, sparsity),
        where=where,
        layout=layout,
        ties=ties,
        seed=seed,
        packed=packed,
    )


def dnw(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
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
    """DNW: the largest |v| of each layer are the params, chosen anew after each step; the gradient goes to all of v.

    The rule of `ste`, on single weights. Unlike other methods, the inner optimizer sees the dense weights and the
    gradients of all of them.

    Args:
      inner: the optimizer.
      sparsity: fraction of zeros in [0, 1), at every step; may be left out where `pattern` is N:M.
      update_every: steps between choices of masks (the paper: 1).
      dense_dtype: of the dense weights; see `straight_through`.
      distribution: None is uniform.
      pattern, where, layout, ties, seed, packed: see `sparse_wrapper`.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> tx = dnw(optax.sgd(0.1, momentum=0.9), sparsity=0.9)

    Source: discovering neural wirings, Wortsman et al. 2019, arXiv:1906.00586.
    """
    check_steps(1, update_every=update_every)
    return straight_through(
        inner,
        choose_best,
        plan=every_step(every=update_every),
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


def default_pattern(pattern: Patterns, sparsity: float | None) -> Patterns:
    """2:4, unless a pattern or a sparsity is given."""
    return nm(2, 4) if pattern is None and sparsity is None else pattern


def check_rate(name: str, value: Any) -> None:
    """Raises ValueError where a rate is a number below 0; traced ones pass."""
    if not isinstance(value, jax.core.Tracer) and not value >= 0:
        raise ValueError(f"{name}={value} must be at least 0")


def _is_zero(value: Any) -> bool:
    return not isinstance(value, jax.core.Tracer) and value == 0

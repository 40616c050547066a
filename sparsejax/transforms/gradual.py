"""Dense to sparse by magnitude: one shot, and gradual magnitude pruning."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import optax

from sparsejax import criteria
from sparsejax.leaves import Layout, Where
from sparsejax.patterns import NM
from sparsejax.schedules import check_steps, dense, gradual
from sparsejax.transforms.core import sparse_wrapper
from sparsejax.transforms.rules import keep_best, keep_best_globally
from sparsejax.transforms.start import Distribution, Patterns


def one_shot(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    at_step: int = 0,
    distribution: Distribution | str | None = None,
    pattern: Patterns = None,
    where: Where | None = None,
    layout: Layout | None = None,
    ties: str = "index",
    seed: int | jax.Array = 0,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Keeps the largest |w| of each layer, once, at a step; trains densely before it, under fixed masks after it.

    Args:
      inner: the optimizer.
      sparsity: fraction of zeros in [0, 1) from `at_step` on; may be left out where `pattern` is N:M.
      at_step: the step (0 is the first) whose update prunes.
      distribution: None is uniform; "global" ranks all layers together; "lamp" too, by `criteria.lamp`.
      pattern, where, layout, ties, seed, packed: see `sparse_wrapper`.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> tx = one_shot(optax.adam(1e-3), sparsity=0.8, at_step=1_000)

    Source: magnitude pruning, Han et al. 2015, arXiv:1506.02626.
    """
    check_steps(0, at_step=at_step)
    ranked = _across(distribution)
    return sparse_wrapper(
        inner,
        None if ranked else keep_best,
        new_masks=ranked,
        plan=(dense(at_step), gradual(at_step, 1)),
        sparsity=sparsity,
        distribution="global" if ranked else distribution,
        pattern=pattern,
        where=where,
        layout=layout,
        ties=ties,
        seed=seed,
        packed=packed,
    )


def gmp(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    update_start: int = 0,
    update_end: int = 10_000,
    update_every: int = 100,
    initial_sparsity: float = 0.0,
    distribution: Distribution | str | None = None,
    pattern: Patterns = None,
    where: Where | None = None,
    layout: Layout | None = None,
    ties: str = "index",
    seed: int | jax.Array = 0,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Gradual magnitude pruning: the smallest |w| go, more and more of them.

    s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (t_end - t_0))^3 at t_0, t_0 + Delta T, ... and exactly s_f at t_end,
    whatever the grid. What is pruned stays pruned. With N:M, the kept of every M step down from M to N.

    Args:
      inner: the optimizer.
      sparsity: s_f, the fraction of zeros in [0, 1) at `update_end`; may be left out where `pattern` is N:M.
      update_start, update_end: t_0 and t_end, steps.
      update_every: Delta T, steps.
      initial_sparsity: s_i in [0, sparsity], taken on at t_0; of other distributions than uniform, in proportion.
      distribution: None is uniform; "global" ranks all layers together; "lamp" too, by `criteria.lamp`.
      pattern, where, layout, ties, seed, packed: see `sparse_wrapper`.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> tx = gmp(optax.adamw(1e-3), sparsity=0.9, update_end=5_000)

    Source: Zhu & Gupta 2017, arXiv:1710.01878.
    """
    check_steps(0, update_start=update_start, update_end=update_end)
    check_steps(1, update_every=update_every)
    if update_end < update_start:
        raise ValueError(f"update_end={update_end} must be at least update_start={update_start}")
    final = 1 - pattern.n / pattern.m if isinstance(pattern, NM) else sparsity
    if not 0 <= initial_sparsity <= (final or 0.0):
        raise ValueError(f"initial_sparsity={initial_sparsity} must lie in [0, sparsity={final}]")
    share = initial_sparsity / final if final else 0.0
    ranked = _across(distribution)
    return sparse_wrapper(
        inner,
        None if ranked else keep_best,
        new_masks=ranked,
        plan=(dense(update_start), gradual(update_end, update_every, share)),
        sparsity=sparsity,
        distribution="global" if ranked else distribution,
        pattern=pattern,
        where=where,
        layout=layout,
        ties=ties,
        seed=seed,
        packed=packed,
    )


def _across(distribution: Distribution | str | None) -> Any:
    """The rule for all leaves that a word asks for; None where each leaf has a count of its own."""
    if distribution == "lamp":
        return partial(keep_best_globally, criterion=criteria.lamp)
    return keep_best_globally if distribution == "global" else None

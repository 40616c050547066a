"""RigL and SET as in-time over-parameterization sets them: rarely, and many weights at a time."""

from __future__ import annotations

import jax
import optax

from sparsejax import criteria
from sparsejax.leaves import Layout, Where
from sparsejax.schedules import Phase, check_steps
from sparsejax.transforms.core import sparse_wrapper
from sparsejax.transforms.rules import mover
from sparsejax.transforms.start import Distribution, Patterns

GROWTH = {"gradient": criteria.gradient, "random": criteria.random}


def itop(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    drop_fraction: float | jax.Array = 0.5,
    final_fraction: float = 0.005,
    update_every: int = 4_000,
    update_end: int | None = None,
    grow: str = "gradient",
    skip_step: bool = False,
    regrow_dropped: bool = True,
    drop_rounding: str = "ceil",
    distribution: Distribution | None = None,
    pattern: Patterns = None,
    where: Where | None = None,
    layout: Layout | None = None,
    ties: str = "index",
    seed: int | jax.Array = 0,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """RigL-ITOP: half of the weights move, but seldom, so that in the end most places have been tried.

    At t mod Delta T = 0, 0 < t < T, the ceil(f(t) n) smallest |w| of a layer's n go and as many grow by largest
    |gradient|; f(t) = f_T + ((f_0 - f_T) / 2)(1 + cos(pi t / T)). New weights start at 0, their moments fresh.

    Args:
      inner: the optimizer.
      sparsity: fraction of zeros in [0, 1), at every step; may be left out where `pattern` is N:M.
      drop_fraction: f_0 in [0, 1]; may be injected.
      final_fraction: f_T in [0, 1].
      update_every: Delta T, steps (CIFAR, batch 128, 250 epochs: RigL 4,000, SET 1,500).
      update_end: T, steps of the whole training; None: for ever, with f_0 throughout.
      grow: "gradient" (RigL-ITOP) or "random" (SET-ITOP).
      skip_step: whether a step that changes masks leaves the params as they are; the official code takes it.
      regrow_dropped: whether a place just dropped is free (then it may keep its weight).
      drop_rounding: "ceil" (the official code) or "floor" of f n.
      distribution: None is ERK.
      pattern, where, layout, ties, seed, packed: see `sparse_wrapper`.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> tx = itop(optax.sgd(0.1, momentum=0.9), sparsity=0.95, update_every=1_500, update_end=97_656)

    Source: Liu et al. 2021, arXiv:2102.02887. Random growth keeps the count, which the official code does not.
    """
    check_steps(1, update_every=update_every)
    if update_end is not None:
        check_steps(0, update_end=update_end)
    if grow not in GROWTH:
        raise ValueError(f"grow={grow!r}: 'gradient' or 'random'")
    return sparse_wrapper(
        inner,
        mover(GROWTH[grow], regrow_dropped, drop_rounding),
        plan=(Phase(update_end, update_every, drop_fraction=drop_fraction, final_fraction=final_fraction),),
        start="random",
        sparsity=sparsity,
        skip_step=skip_step,
        distribution=distribution,
        pattern=pattern,
        where=where,
        layout=layout,
        ties=ties,
        seed=seed,
        packed=packed,
    )

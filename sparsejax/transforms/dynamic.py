"""Sparse to sparse: a fixed number of weights moves to better places. SET and RigL."""

from __future__ import annotations

import jax
import optax

from sparsejax import criteria
from sparsejax.leaves import Layout, Where
from sparsejax.schedules import Plan, check_steps, rewire
from sparsejax.transforms.core import sparse_wrapper
from sparsejax.transforms.rules import mover
from sparsejax.transforms.start import Distribution, Patterns


def set_(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    drop_fraction: float | jax.Array = 0.3,
    update_every: int = 100,
    update_end: int | None = None,
    skip_step: bool = False,
    regrow_dropped: bool = True,
    drop_rounding: str = "floor",
    signed: bool = True,
    distribution: Distribution | None = None,
    pattern: Patterns = None,
    where: Where | None = None,
    layout: Layout | None = None,
    ties: str = "index",
    seed: int | jax.Array = 0,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Sparse evolutionary training: drops the weights nearest to 0 in each layer and grows as many at random places.

    Every Delta T steps k = floor(f n) of a layer's n weights move; f = drop_fraction, annealed by cosine to 0 at
    `update_end` where that is an integer. New weights start at 0.

    Args:
      inner: the optimizer.
      sparsity: fraction of zeros in [0, 1), at every step; may be left out where `pattern` is N:M.
      drop_fraction: zeta in [0, 1]; may be injected.
      update_every: Delta T, steps (the paper: an epoch).
      update_end: masks change below this step; None: for ever.
      skip_step: whether a step that changes masks leaves the params as they are.
      regrow_dropped: whether a place just dropped is free (then it may keep its weight).
      drop_rounding: "floor" or "ceil" of f n.
      signed: whether the smallest positive and the largest negative weights are dropped apart, f of each (the paper),
        or the smallest |w| of both together (RigL's port).
      distribution: None is ERK.
      pattern, where, layout, ties, seed, packed: see `sparse_wrapper`.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> tx = set_(optax.sgd(0.1, momentum=0.9), sparsity=0.95, update_every=500)

    Source: Mocanu et al. 2018, arXiv:1707.04780. New weights start at 0 as in the mask-based codes; the paper's own
    sparse-matrix code draws them from N(0, 1) / 10.
    """
    return sparse_wrapper(
        inner,
        mover(criteria.random, regrow_dropped, drop_rounding, signed),
        plan=_moving(update_every, drop_fraction, update_end),
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


def rigl(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    drop_fraction: float | jax.Array = 0.3,
    update_every: int = 100,
    update_end: int | None = None,
    skip_step: bool = True,
    regrow_dropped: bool = True,
    drop_rounding: str = "floor",
    distribution: Distribution | None = None,
    pattern: Patterns = None,
    where: Where | None = None,
    layout: Layout | None = None,
    ties: str = "index",
    seed: int | jax.Array = 0,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """RigL: drops the smallest |w| of each layer and grows the largest |gradient|.

    At t mod Delta T = 0, 0 < t < T_end, k = floor(f(t) n) of a layer's n weights move,
    f(t) = (alpha / 2)(1 + cos(pi t / T_end)); without `update_end` f = alpha for ever. New weights start at 0, their
    moments are fresh, and the step takes no gradient.

    Args:
      inner: the optimizer.
      sparsity: fraction of zeros in [0, 1), at every step; may be left out where `pattern` is N:M.
      drop_fraction: alpha in [0, 1]; may be injected.
      update_every: Delta T, steps.
      update_end: T_end, steps (the paper: 75 % of training); None: for ever.
      skip_step: whether a step that changes masks leaves the params as they are (the paper and its TensorFlow code);
        the PyTorch codes take the step.
      regrow_dropped: whether a place just dropped is free (then it may keep its weight), as in the official code.
      drop_rounding: "floor" (RigL, SRigL) or "ceil" (ITOP, GraNet) of f n.
      distribution: None is ERK.
      pattern, where, layout, ties, seed, packed: see `sparse_wrapper`. With N:M, weights move inside their group.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> tx = rigl(optax.adamw(1e-3), sparsity=0.9, update_end=7_500)

    Source: Evci et al. 2020, arXiv:1911.11134.
    """
    return sparse_wrapper(
        inner,
        mover(criteria.gradient, regrow_dropped, drop_rounding),
        plan=_moving(update_every, drop_fraction, update_end),
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


def _moving(every: int, fraction: float | jax.Array, end: int | None) -> Plan:
    check_steps(1, update_every=every)
    if end is not None:
        check_steps(0, update_end=end)
    return (rewire(every, fraction, end),)

"""MEST: prunes a little below the budget, grows at random; with a budget that itself shrinks to the target (EM&S)."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import optax

from sparsejax import criteria
from sparsejax.criteria import Criterion
from sparsejax.distributions import uniform
from sparsejax.leaves import Layout, Where
from sparsejax.patterns import NM
from sparsejax.schedules import Phase, check_steps
from sparsejax.transforms.core import sparse_wrapper
from sparsejax.transforms.proposals import Leaf
from sparsejax.transforms.rules import Rule, checked_rounding, drop_and_grow, keep_best, regrow, unit_mask
from sparsejax.transforms.start import Distribution, Patterns


def mest(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    drop_fraction: float | jax.Array | None = None,
    extra: float = 0.0,
    gradient_weight: float = 0.0,
    update_every: int = 1_000,
    update_end: int = 10_000,
    skip_step: bool = False,
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
    """MEST: drops the smallest |w| + lambda |g| of each layer and grows at random; EM, or with `extra` EM&S.

    With n weights at the target: each update keeps n - floor(f n) and grows up to floor-rounded (1 + e) n. Both f and e
    are whole until 3/4 of `update_end`, half until `update_end`, then 0. EM (e = 0) mutates at a constant count; EM&S
    (e > 0, f = 0) begins with more weights and prunes the surplus. At 90 %: EM prunes to 92, 91, 90 % and grows to 90;
    EM&S with e = 0.2 prunes to 90 and grows to 88, 89, 90 %.

    Args:
      inner: the optimizer.
      sparsity: fraction of zeros in [0, 1), of EM at every step, of EM&S from `update_end` on; may be left out where
        `pattern` is N:M.
      drop_fraction: f in [0, 1]; may be injected. None: 0.2, or 0 where there is an `extra`.
      extra: e, how many more weights than at the target there are at the begin, as a share of those; 0: EM.
      gradient_weight: lambda (0, as in the official code, ranks by |w| alone).
      update_every: steps between updates (the paper: 5 epochs).
      update_end: steps (the paper: epoch 120 of 160, so that the first stair is at epoch 90).
      skip_step: whether a step that changes masks leaves the params as they are.
      regrow_dropped: whether a place just dropped is free (then it may keep its weight).
      drop_rounding: "floor" or "ceil" of f n.
      distribution: None is uniform.
      pattern, where, layout, ties, seed, packed: see `sparse_wrapper`.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> em = mest(optax.sgd(0.1, momentum=0.9), sparsity=0.9, update_end=60_000)
      >>> em_s = mest(optax.sgd(0.1, momentum=0.9), sparsity=0.9, extra=0.2, update_end=60_000)

    Source: Yuan et al. 2021, arXiv:2110.14032.
    """
    check_steps(1, update_every=update_every, update_end=update_end)
    checked_rounding(drop_rounding)
    if not 0 <= gradient_weight < float("inf"):
        raise ValueError(f"gradient_weight={gradient_weight} must be finite and at least 0")
    target = 1 - pattern.n / pattern.m if isinstance(pattern, NM) else sparsity or 0.0
    most = target / (1 - target) if 0 <= target < 1 else 0.0
    if not 0 <= extra <= most:
        raise ValueError(f"extra={extra} must lie in [0, {most:g}]: at sparsity={target} there are no more weights")
    moves = 0.0 if drop_fraction is None and extra else 0.2 if drop_fraction is None else drop_fraction
    begins = 1 - extra / most if extra else 1.0
    stairs = (update_end * 3 // 4, update_end)
    phase = Phase(update_end, update_every, bool(extra), begins, moves, stairs=stairs, begun=bool(extra))
    score = criteria.magnitude if gradient_weight == 0 else _with_gradient(gradient_weight)

    def new_mask(leaf: Leaf) -> Rule:
        keep = leaf.keep
        if extra:
            leaf = leaf._replace(mask=(yield from keep_best(leaf._replace(keep=leaf.target), score)))
        if isinstance(moves, float) and moves == 0:
            return (yield from regrow(leaf, unit_mask(leaf), criteria.random, keep))
        moved = partial(drop_and_grow, leaf, criteria.random, score, upto=keep)
        return (yield from moved(regrow_dropped=regrow_dropped, rounding=drop_rounding))

    return sparse_wrapper(
        inner,
        new_mask,
        plan=(phase,),
        start="random",
        sparsity=sparsity,
        skip_step=skip_step,
        distribution=distribution if distribution or isinstance(pattern, NM) else uniform,
        pattern=pattern,
        where=where,
        layout=layout,
        ties=ties,
        seed=seed,
        packed=packed,
    )


def _with_gradient(weight: float) -> Criterion:
    return lambda leaf: jnp.abs(leaf.weight) + weight * jnp.abs(leaf.grad.astype(leaf.weight.dtype))

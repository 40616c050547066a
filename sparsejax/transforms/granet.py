"""GraNet: gradual pruning, and at each pruning step weights that move, which heals what was pruned."""

from __future__ import annotations

from functools import partial

import jax
import optax

from sparsejax import criteria
from sparsejax.leaves import Layout, Where
from sparsejax.patterns import NM
from sparsejax.schedules import Phase, check_steps, dense
from sparsejax.transforms.core import sparse_wrapper
from sparsejax.transforms.lockstep import Steps, side_by_side
from sparsejax.transforms.proposals import Leaf
from sparsejax.transforms.rules import checked_rounding, drop_and_grow, keep_best_globally
from sparsejax.transforms.start import Distribution, Patterns


def granet(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    initial_sparsity: float = 0.0,
    update_start: int = 0,
    update_end: int = 10_000,
    update_every: int = 1_000,
    drop_fraction: float | jax.Array = 0.5,
    final_fraction: float = 0.005,
    rewire_end: int | None = None,
    skip_step: bool = False,
    regrow_dropped: bool = True,
    drop_rounding: str = "ceil",
    distribution: Distribution | str | None = None,
    pattern: Patterns = None,
    where: Where | None = None,
    layout: Layout | None = None,
    ties: str = "index",
    seed: int | jax.Array = 0,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """GraNet: prunes along the cubic schedule by one |w| threshold, then moves weights in each layer by gradient.

    At each update: the largest |w| of all layers together are kept, at sparsity s_t as in `gmp`, from s_i to exactly
    s_f; then each layer drops ceil(f(t) n) of its n smallest |w| and grows as many by largest |gradient|. After
    `update_end` weights go on moving; f(t) = f_T + ((r - f_T) / 2)(1 + cos(pi t / T)).

    Args:
      inner: the optimizer.
      sparsity: s_f, fraction of zeros in [0, 1) from `update_end` on; may be left out where `pattern` is N:M.
      initial_sparsity: s_i in [0, sparsity]. 0: dense to sparse, from dense masks. Above 0 (the paper: 0.5): sparse to
        sparse, from random ERK masks.
      update_start, update_end: steps between which the sparsity climbs (the paper: CIFAR epochs 0 and 80 of 160).
      update_every: Delta T, steps (CIFAR 1,000, ImageNet 4,000).
      drop_fraction: r in [0, 1]; may be injected.
      final_fraction: f_T in [0, 1].
      rewire_end: T, steps of the whole training; None: weights move for ever, f = r.
      skip_step: whether a step that changes masks leaves the params as they are; the official code takes it.
      regrow_dropped: whether a place just dropped is free (then it may keep its weight).
      drop_rounding: "ceil" (the official code) or "floor" of f n.
      distribution: None or "global" prunes all layers by one threshold; a function prunes each layer to its density.
      pattern: needs a distribution of its own. where, layout, ties, seed, packed: see `sparse_wrapper`.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> tx = granet(optax.sgd(0.1, momentum=0.9), sparsity=0.95, initial_sparsity=0.5, rewire_end=20_000)

    Source: Liu et al. 2021, arXiv:2106.10404. The official code keeps one weight fewer (a strict threshold) and stops
    pruning one update early; here s_f holds exactly, at `update_end`.
    """
    check_steps(0, update_start=update_start, update_end=update_end)
    check_steps(1, update_every=update_every)
    if update_end < update_start:
        raise ValueError(f"update_end={update_end} must be at least update_start={update_start}")
    if rewire_end is not None:
        check_steps(update_end, rewire_end=rewire_end)
    checked_rounding(drop_rounding)
    final = 1 - pattern.n / pattern.m if isinstance(pattern, NM) else sparsity
    if not 0 <= initial_sparsity <= (final or 0.0):
        raise ValueError(f"initial_sparsity={initial_sparsity} must lie in [0, sparsity={final}]")
    if distribution is None and pattern is None:
        distribution = "global"
    move = partial(drop_and_grow, grow=criteria.gradient, regrow_dropped=regrow_dropped, rounding=drop_rounding)
    across = distribution == "global"
    moving = Phase(
        rewire_end,
        update_every,
        drop_fraction=drop_fraction,
        final_fraction=final_fraction,
        anneal=(0, rewire_end),
    )
    share = initial_sparsity / final if final else 0.0
    ramp = moving._replace(until=update_end, ramp=True, initial=share, begun=True)
    return sparse_wrapper(
        inner,
        None if across else partial(move, prune=True),
        new_masks=partial(_prune_then_move, move) if across else None,
        plan=(dense(update_start), ramp, moving),
        start="random" if initial_sparsity else "dense",
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


def _prune_then_move(move, leaves: list[Leaf]) -> Steps:
    masks = yield from keep_best_globally(leaves)
    pruned = [leaf._replace(mask=mask) for leaf, mask in zip(leaves, masks, strict=True)]
    return (yield from side_by_side([move(leaf) for leaf in pruned]))

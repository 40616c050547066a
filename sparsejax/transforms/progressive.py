"""Progressive gradient flow: the way to N:M in many small steps, by decaying masks or by patterns that tighten."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sparsejax import criteria
from sparsejax.batching import any_lane
from sparsejax.leaves import Layout, Where
from sparsejax.packing import sharded_as
from sparsejax.patterns import NM, nm, pattern_mask
from sparsejax.schedules import check_steps
from sparsejax.selection import Request, as_count
from sparsejax.transforms.proposals import Leaf
from sparsejax.transforms.rules import Rule, choose_best, unit_keys
from sparsejax.transforms.start import Distribution, Patterns
from sparsejax.transforms.ste import check_rate, default_pattern
from sparsejax.transforms.straight_through import every_step, straight_through

Frames = tuple[tuple[int, int], ...]


def mdgf(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    schedule: str = "linear",
    decay: float | jax.Array = 2e-4,
    update_start: int = 0,
    update_end: int | None = None,
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
    """MdGf: masked weights are not cut off but fade out, so that gradients flow through them for a while.

    w = (mask + beta (1 - mask)) v of the dense weights v, mask = top(|v|); beta = max(0, 1 - c t), or exp(-c t), with t
    counted from the end of the dense phase. The gradient at w goes to all of v. Unlike other methods, the inner
    optimizer sees the dense weights and the gradients of all of them, and the params are exactly sparse only once beta
    is 0: from t = 1 / c on (linear), or from `update_end`. Then it is `ste`.

    Args:
      inner: the optimizer.
      sparsity: fraction of zeros in [0, 1) of the masks; may be left out where `pattern` is N:M.
      schedule: of beta: "linear" or "exponential".
      decay: c >= 0, for each step; may be injected.
      update_start: the step that ends the dense phase, t = 0.
      update_end: beta is 0 from this step on; needed for "exponential", which has no end of its own.
      update_every: steps between choices of masks (the paper: 1).
      dense_dtype: of the dense weights; see `straight_through`.
      distribution: None is uniform.
      pattern: None is `nm(2, 4)`, or single weights where `sparsity` is given.
      where, layout, ties, seed, packed: see `sparse_wrapper`.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> tx = mdgf(optax.adamw(1e-3), pattern=sparsejax.nm(1, 8), update_start=1_000, decay=1e-3)

    Source: Bambhaniya et al. 2024, arXiv:2402.04744. The official script mixes up steps and epochs in t.
    """
    check_steps(0, update_start=update_start)
    check_steps(1, update_every=update_every)
    check_rate("decay", decay)
    if schedule not in ("linear", "exponential"):
        raise ValueError(f"schedule={schedule!r}: 'linear' or 'exponential'")
    if update_end is not None:
        check_steps(update_start, update_end=update_end)
    elif schedule == "exponential":
        raise ValueError("update_end is missing: exp(-c t) never becomes 0, so that masks need a step to end on")

    def beta(step: jax.Array) -> jax.Array:
        faded = decay * (step - update_start).astype(jnp.float32)
        value = jnp.maximum(0.0, 1 - faded) if schedule == "linear" else jnp.exp(-faded)
        value = jnp.where(step < update_start, 1.0, value)
        return value if update_end is None else jnp.where(step < update_end, value, 0.0)

    return straight_through(
        inner,
        choose_best,
        plan=every_step(start=update_start, every=update_every),
        share=beta,
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


def sdgf(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    schedule: str = "stepwise",
    update_start: int = 0,
    update_end: int = 10_000,
    update_every: int = 1,
    dense_dtype: Any = None,
    pattern: NM | None = None,
    where: Where | None = None,
    layout: Layout | None = None,
    ties: str = "index",
    seed: int | jax.Array = 0,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """SdGf: N:M by way of looser patterns, in frames of equal length; masks are binary in each of them.

    - stepwise: M-1:M, M/2:M, M/4:M, ..., N:M.
    - geometric: 8N:8M, 4N:4M, 2N:2M, N:M, at one density.
    - densify: N:8M, N:4M, N:2M, N:M.

    Each is `ste` with its pattern. The last frame begins one frame's length before `update_end` and lasts from then on.

    Args:
      inner: the optimizer.
      sparsity: may be left out: the pattern's.
      schedule: "stepwise", "geometric" or "densify".
      update_start: the step that ends the dense phase; the first frame begins there.
      update_end: the step where the last frame ends, and plain training with N:M goes on.
      update_every: steps between choices of masks (the paper: 1).
      dense_dtype: of the dense weights; see `straight_through`.
      pattern: `nm(n, m)`; None is `nm(2, 4)`. With indivisible="skip" a leaf is dense in frames that do not divide it.
      where, layout, ties, seed, packed: see `sparse_wrapper`.

    Raises:
      ValueError: an argument is out of range; in `init`, a frame's M does not divide a leaf.

    Example:
      >>> tx = sdgf(optax.adamw(1e-3), pattern=sparsejax.nm(1, 8), update_end=20_000)

    Source: Bambhaniya et al. 2024, arXiv:2402.04744.
    """
    check_steps(0, update_start=update_start)
    check_steps(update_start, update_end=update_end)
    check_steps(1, update_every=update_every)
    last = nm(2, 4) if pattern is None else pattern
    if not isinstance(last, NM):
        raise ValueError(f"pattern={pattern!r}: sdgf needs one nm(n, m)")
    frames = frames_of(schedule, last.n, last.m)
    begins = [update_start - (update_start - update_end) * i // len(frames) for i in range(1, len(frames))]
    frame_at = lambda step: sum([(step >= begin).astype(jnp.int32) for begin in begins], jnp.int32(0))
    rule = _tightening if schedule == "stepwise" else _regrouping
    return straight_through(
        inner,
        lambda leaf: rule(frames, frame_at(leaf.step), leaf),
        plan=every_step(start=update_start, every=update_every),
        dense_dtype=dense_dtype,
        sparsity=sparsity,
        pattern=last,
        where=where,
        layout=layout,
        ties=ties,
        seed=seed,
        packed=packed,
    )


def frames_of(schedule: str, n: int, m: int) -> Frames:
    """The (n, m) of each frame of `sdgf`.

    Example:
      >>> frames_of("stepwise", 1, 8)
      ((7, 8), (4, 8), (2, 8), (1, 8))
    """
    if schedule == "geometric":
        return tuple((k * n, k * m) for k in (8, 4, 2, 1))
    if schedule == "densify":
        return tuple((n, k * m) for k in (8, 4, 2, 1))
    if schedule != "stepwise":
        raise ValueError(f"schedule={schedule!r}: 'stepwise', 'geometric' or 'densify'")
    halves = [m >> k for k in range(1, m.bit_length()) if m >> k > n]
    first = [m - 1] if m - 1 > max([n, *halves]) else []
    return tuple((kept, m) for kept in (*first, *halves, n))


def _tightening(frames: Frames, frame: jax.Array, leaf: Leaf) -> Rule:
    """The best of each group, as many as the frame says."""
    group = leaf.pattern.group_axes(leaf.weight.shape, leaf.axes)
    count = as_count(jnp.asarray([n for n, _ in frames], jnp.uint32)[frame])
    chosen = yield Request(unit_keys(criteria.magnitude, leaf), count, group, leaf.ties)
    return leaf.pattern.expand(chosen.mask, leaf.weight.shape, leaf.axes)


def _regrouping(frames: Frames, frame: jax.Array, leaf: Leaf) -> jax.Array:
    """The mask of the frame's groups; of the other frames nothing is selected."""
    assert isinstance(leaf.pattern, NM)
    mask, scores = leaf.mask, jnp.abs(leaf.weight)
    for i, (n, m) in enumerate(frames):
        pattern = leaf.pattern._replace(n=n, m=m)
        pattern.check(leaf.path, leaf.weight.shape, leaf.axes)

        def now(mask, i=i, n=n, pattern=pattern):
            found = sharded_as(pattern_mask(pattern, scores, n, leaf.axes, leaf.ties), leaf.mask)
            return jnp.where(frame == i, found, mask)

        mask = lax.cond(any_lane(frame == i), now, lambda mask: mask, mask)
    return mask

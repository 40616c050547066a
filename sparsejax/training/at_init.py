"""Methods that choose their masks before the first step, by the weights and the first batches, and then keep them.

Here is what each takes and the transform that trains under its masks; `first_masks` computes them.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import optax

from sparsejax.leaves import Layout, Where
from sparsejax.saliency.rounds import SCHEDULES
from sparsejax.transforms import sparse_wrapper
from sparsejax.transforms.start import Distribution, Patterns

Transform: TypeAlias = optax.GradientTransformationExtraArgs


def magnitude_at_init(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    masks: Any = None,
    shuffle: bool = False,
    distribution: Distribution | str | None = None,
    pattern: Patterns = None,
    where: Where | None = None,
    layout: Layout | None = None,
    ties: str = "index",
    seed: int | jax.Array = 0,
    packed: bool = False,
) -> Transform:
    """Keeps the largest |w| of all layers together before the first step, and trains under these masks.

    Args:
      inner, sparsity, pattern, where, layout, ties, seed, packed: see `sparse_wrapper`.
      masks: those that were chosen; without them the masks at init are full.
      shuffle: whether positions are drawn anew inside each layer, which leaves the layers' densities alone.
      distribution: None or "global" ranks all layers together.
    """
    return _fixed(inner, masks, sparsity, distribution, pattern, where, layout, ties, seed, packed, shuffle)


def snip(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    masks: Any = None,
    batches: int = 1,
    shuffle: bool = False,
    distribution: Distribution | str | None = None,
    pattern: Patterns = None,
    where: Where | None = None,
    layout: Layout | None = None,
    ties: str = "index",
    seed: int | jax.Array = 0,
    packed: bool = False,
) -> Transform:
    """SNIP: keeps the largest |w dL/dw| of all layers together before the first step, and trains under these masks.

    Args:
      batches: how many of training's first batches the gradient is averaged over; 1 is the paper's.
      others: as `magnitude_at_init`.
    """
    _whole(batches=batches)
    return _fixed(inner, masks, sparsity, distribution, pattern, where, layout, ties, seed, packed, shuffle)


def grasp(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    masks: Any = None,
    batches: int = 1,
    temperature: float = 200.0,
    shuffle: bool = False,
    distribution: Distribution | str | None = None,
    pattern: Patterns = None,
    where: Where | None = None,
    layout: Layout | None = None,
    ties: str = "index",
    seed: int | jax.Array = 0,
    packed: bool = False,
) -> Transform:
    """GraSP: keeps the largest w (H g), the weights that gradient flow needs, before the first step; then fixed masks.

    Args:
      batches: how many of training's first batches are used (the official code draws 10 to 25 images of each class).
      temperature: the logits are divided by it; 200 is the official code's.
      others: as `magnitude_at_init`.
    """
    _whole(batches=batches)
    _positive(temperature=temperature)
    return _fixed(inner, masks, sparsity, distribution, pattern, where, layout, ties, seed, packed, shuffle)


def synflow(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    masks: Any = None,
    iterations: int = 100,
    schedule: str = "exponential",
    biases: bool = True,
    scale: float = 1.0,
    shuffle: bool = False,
    distribution: Distribution | str | None = None,
    pattern: Patterns = None,
    where: Where | None = None,
    layout: Layout | None = None,
    ties: str = "index",
    seed: int | jax.Array = 0,
    packed: bool = False,
) -> Transform:
    """SynFlow: prunes without data, in 100 rounds, the weights with the least flow through them; then fixed masks.

    Args:
      iterations, schedule, biases, scale: as `sparsejax.saliency.synflow`.
      others: as `magnitude_at_init`.
    """
    _whole(iterations=iterations)
    _positive(scale=scale)
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r}: 'exponential' or 'linear'")
    if not isinstance(biases, bool):
        raise ValueError(f"biases={biases!r}: True or False")
    return _fixed(inner, masks, sparsity, distribution, pattern, where, layout, ties, seed, packed, shuffle)


def _fixed(inner, masks, sparsity, distribution, pattern, where, layout, ties, seed, packed, shuffle) -> Transform:
    """Training under `masks`, or, while they are not known, under full ones of the same shapes."""
    if not isinstance(shuffle, bool):
        raise ValueError(f"shuffle={shuffle!r}: True or False")
    if distribution == "global" and pattern is not None:
        raise ValueError("distribution='global' ranks single weights; leave pattern out")
    return sparse_wrapper(
        inner,
        sparsity=sparsity,
        masks=masks,
        distribution=None if distribution == "global" else distribution,
        pattern=pattern,
        where=where,
        layout=layout,
        ties=ties,
        seed=seed,
        packed=packed,
    )


def _whole(**number: Any) -> None:
    for name, value in number.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}={value!r} must be an integer >= 1")


def _positive(**number: Any) -> None:
    for name, value in number.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ValueError(f"{name}={value!r} must be a number > 0")


AT_INIT = {"magnitude_at_init": magnitude_at_init, "snip": snip, "grasp": grasp, "synflow": synflow}

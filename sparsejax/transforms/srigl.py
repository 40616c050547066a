"""Structured RigL: every neuron keeps the same number of inputs, and neurons with little to say are ablated."""

from __future__ import annotations

from fnmatch import fnmatchcase

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sparsejax import criteria
from sparsejax.leaves import Layout, Where
from sparsejax.patterns import fan_in, unstructured
from sparsejax.schedules import check_steps, rewire
from sparsejax.selection import AllBut, Count, Request, Scores, as_count, order_key, scaled
from sparsejax.selection.counts import count_true
from sparsejax.transforms.core import sparse_wrapper
from sparsejax.transforms.proposals import Leaf
from sparsejax.transforms.rules import Rule, among, checked_rounding, mover, regrow, unit_keys
from sparsejax.transforms.start import Distribution


def srigl(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    drop_fraction: float | jax.Array = 0.3,
    update_every: int = 100,
    update_end: int | None = None,
    ablate: bool = True,
    saliency_threshold: float = 0.3,
    never_ablate: str | None = None,
    skip_step: bool = True,
    drop_rounding: str = "floor",
    distribution: Distribution | None = None,
    where: Where | None = None,
    layout: Layout | None = None,
    ties: str = "index",
    seed: int | jax.Array = 0,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """SRigL: RigL with constant fan-in; neurons of few salient weights are ablated, for more inputs of the others.

    With f(t) as in `rigl` and n weights in a layer of fan-in k: the floor(f n) smallest |w| of the layer drop. Salient
    are those that stay and the floor(f n) largest |gradient| among the other places of the layer. A neuron with fewer
    than max(1, gamma k) salient weights is ablated; the threshold falls where the others could not hold n weights. Each
    neuron left then has floor(n / neurons left) inputs, and the first of them one more, so that the layer keeps n: its
    weights that stay, then the largest |gradient|. An ablated neuron comes back when it has enough salient weights.

    Args:
      inner: the optimizer.
      sparsity: fraction of zeros in [0, 1), at every step.
      drop_fraction: alpha in [0, 1]; may be injected.
      update_every: Delta T, steps.
      update_end: T_end, steps (the paper: 75 % of training); None: for ever.
      ablate: whether neurons are ablated; without, each keeps its fan-in for ever: `rigl` with `pattern=fan_in()`.
      saliency_threshold: gamma in [0, 1] (the paper: 0.3 for convolutional nets, 0.95 or 0.99 for ViT).
      never_ablate: glob of the leaves whose neurons stay. None: the output layer, which is told by name: a part of the
        path is `head`, `classifier`, `logits` or `fc`, else the last path.
      skip_step: whether a step that changes masks leaves the params as they are.
      drop_rounding: "floor" or "ceil" of f n.
      distribution: None is ERK.
      where, layout, ties, seed, packed: see `sparse_wrapper`. The layout's output axes are the neurons.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> tx = srigl(optax.sgd(0.1, momentum=0.9), sparsity=0.95, update_end=75_000)

    Source: Lasby et al. 2024, arXiv:2305.02299. The official code drops what n / neurons leaves over, and by a slip
    ablates the output layer's neurons too.
    """
    check_steps(1, update_every=update_every)
    if update_end is not None:
        check_steps(0, update_end=update_end)
    checked_rounding(drop_rounding)
    if isinstance(saliency_threshold, bool) or not 0 <= saliency_threshold <= 1:
        raise ValueError(f"saliency_threshold={saliency_threshold} must lie in [0, 1]")
    steady = mover(criteria.gradient, True, drop_rounding)

    def new_mask(leaf: Leaf) -> Rule:
        spared = leaf.is_output if never_ablate is None else fnmatchcase(leaf.path, never_ablate)
        return steady(leaf) if spared or not ablate else _ablating(leaf, saliency_threshold, drop_rounding)

    return sparse_wrapper(
        inner,
        new_mask,
        plan=(rewire(update_every, drop_fraction, update_end),),
        start="random",
        sparsity=sparsity,
        skip_step=skip_step,
        distribution=distribution,
        pattern=fan_in(),
        where=where,
        layout=layout,
        ties=ties,
        seed=seed,
        packed=packed,
    )


def _ablating(leaf: Leaf, gamma: float, rounding: str) -> Rule:
    shape = leaf.weight.shape
    layer, inputs = leaf.pattern.slice_axes(shape, leaf.axes), leaf.pattern.group_axes(shape, leaf.axes)
    outputs = tuple(axis for axis in layer if axis not in inputs)
    kept = among(unit_keys(criteria.magnitude, leaf), leaf.mask)
    stay = yield Request(kept, AllBut(leaf.fraction, rounding), layer, leaf.ties)
    whole = leaf._replace(pattern=unstructured())
    salient = yield from regrow(whole, stay.mask, criteria.gradient, stay.candidates)
    neurons = lambda mask: _words(count_true([mask], inputs)[0])  # of each neuron; a layer has fewer than 2^32 weights
    number, room = _words(stay.candidates), jnp.uint32(leaf.pattern.group_size(shape, leaf.axes))
    fan = number // jnp.maximum(_sum(neurons(leaf.mask) > 0, outputs), 1)
    least = jnp.maximum(_words(scaled(as_count(fan), gamma, "ceil")), 1)
    left = _salient_neurons(neurons(salient), least, (number + room - 1) // room, outputs)
    share, rest = jnp.divmod(number, jnp.maximum(_sum(left, outputs), 1))
    more = yield Request(Scores(lambda left: order_key(left.astype(jnp.float32)), (left,)), as_count(rest), outputs)
    each = jnp.where(left, share + more.mask.astype(jnp.uint32), 0)
    chosen = yield Request(
        Scores(_stay_then_grow, (stay.mask, leaf.weight, leaf.grad)), as_count(each), inputs, leaf.ties
    )
    return chosen.mask


def _salient_neurons(salient: jax.Array, least: jax.Array, needed: jax.Array, outputs: tuple[int, ...]) -> jax.Array:
    """Which neurons have at least so many salient weights; of too few, the threshold falls until `needed` have."""
    enough = lambda least: _sum(salient >= least, outputs) >= needed
    least = lax.while_loop(
        lambda least: ~jnp.all(enough(least)), lambda least: jnp.where(enough(least), least, least - 1), least
    )
    return salient >= least


def _stay_then_grow(stays: jax.Array, weight: jax.Array, grad: jax.Array) -> jax.Array:
    """Keys: those that stay by |w|, above all others by |gradient|. The key of no |x| lacks the highest bit."""
    kept, grown = order_key(jnp.abs(weight)), order_key(jnp.abs(grad.astype(weight.dtype)))
    return jnp.where(stays, kept, grown & (jnp.iinfo(grown.dtype).max >> 1))


def _sum(mask: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sum(mask, axes, jnp.uint32, keepdims=True)


def _words(count: Count) -> jax.Array:
    return (count.hi << 16) | count.lo

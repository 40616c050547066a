"""CAST: dense weights whose masked part decays inside Adam until it can be cut off, and scales that make up for it."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax import schedules
from sparsejax.leaves import Axes, Layout, Where
from sparsejax.masks import flat_masks, selected, with_masks
from sparsejax.patterns import NM, Block, nm
from sparsejax.state import SparseState
from sparsejax.transforms.core import copied, sparse_wrapper
from sparsejax.transforms.inner import reset_off
from sparsejax.transforms.known import known_masks, laid_on
from sparsejax.transforms.start import Spec, specs_of

PyTree = Any


def cast(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    update_every: int = 10,
    update_end: int = 7_500,
    scale_groups: int = 2,
    wants_masks: bool | None = None,
    pattern: NM | None = None,
    where: Where | None = None,
    layout: Layout | None = None,
    seed: int | jax.Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """CAST: nothing is cut until the end; the weights off the mask decay, by an Adam that is given the masks: `adam_s`.

    The params are w = s ⊙ v: weights v, and scales s >= 0 in practice, which start at 1, one for each output and each
    of `scale_groups` equal parts of its inputs; both are trained, by dL/dv = s ⊙ dL/dw and dL/ds = Σ v ⊙ dL/dw over the
    part. At the steps 0, 10, 20, ... the mask becomes the N largest |v| of every M, which `adam_s` decays the rest by.
    At step `update_end` a last mask is laid on, and from then on the params are exactly sparse, and the mask stays.
    Not promised before: that params are sparse; until the first update the masks are all True. Around another optimizer
    than `adam_s`, nothing decays and weights are cut at the end all the same. In the paper the loss mixes the task's
    and the KL to the dense model (a config's `distill`).

    The state holds the scales alone: v is read off the params, as w / s. 16-bit params round the decay away.

    Args:
      inner: the optimizer of {"weights": v, "scales": s}, `adam_s` with `decay_steps=update_end`.
      sparsity: implied by the pattern; given, it must agree.
      update_every: steps between masks.
      update_end: the step from which the params are sparse, the end of the paper's training.
      scale_groups: in how many parts a neuron's inputs are scaled; it divides the last input axis. 0: no scales.
      wants_masks: whether inner's update takes `masks=`; None: told by its signature, which `optax.chain` hides.
      pattern: `nm(n, m)`; None is nm(2, 4).
      where, layout: see `sparse_wrapper`.
      seed: nothing is random.

    Raises:
      ValueError: the pattern is not N:M, an argument is out of range, here or in `init`.

    Example:
      >>> tx = cast(sparsejax.adam_s(2e-5), pattern=sparsejax.nm(2, 4), where=sparsejax.except_("head/*"))

    Source: Huang et al. 2025, CAST, arXiv:2509.25996, algorithm 2, as an independent reimplementation quotes it.
    """
    pattern = nm(2, 4) if pattern is None else pattern
    if not isinstance(pattern, NM):
        raise ValueError(f"pattern={pattern!r}: cast needs nm(n, m)")
    schedules.check_steps(1, update_every=update_every, update_end=update_end)
    schedules.check_steps(0, scale_groups=scale_groups)
    if wants_masks is None:
        wants_masks = "masks" in inspect.signature(inner.update).parameters
    # The books begin as those of a wrapper that never changes its masks; the optimizer's state is made here.
    begin = sparse_wrapper(optax.identity(), sparsity=sparsity, pattern=pattern, where=where, layout=layout, seed=seed)
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: PyTree) -> SparseState:
        state = begin.init(params)
        leaves, specs = jax.tree.leaves(params), specs_of(params, flat_masks(params, state.masks), pattern, layout)
        scales = {_name(spec): _ones(leaves[spec.position], spec, scale_groups) for spec in specs if scale_groups}
        inner_state = copied(inner.init({"scales": scales, "weights": params}), params)
        return state._replace(inner_state=inner_state, extra=jax.tree.map(jnp.array, scales))

    def update_fn(updates: PyTree, state: SparseState, params: PyTree = None, **extra_args: Any):
        if params is None:
            raise ValueError("a sparse transformation needs params: tx.update(grads, opt_state, params)")
        structure: Any = jax.tree.structure(params)
        old, before, grads = flat_masks(params, state.masks), jax.tree.leaves(params), structure.flatten_up_to(updates)
        specs = specs_of(params, old, pattern, layout)
        factors = _factors(state.extra, specs, before)
        weights = [_unscaled(w, factor) for w, factor in zip(before, factors, strict=True)]

        due = (state.count < update_end) & (state.count % update_every == 0) | (state.count == update_end)
        new, refused = known_masks(due, old, weights, grads, specs, pattern)
        is_sparse = state.count >= update_end
        laid: list[Any] = [None if mask is None else mask | ~is_sparse for mask in new]
        weights, grads = _cut(weights, laid), _cut(grads, laid)

        trained = {"scales": state.extra, "weights": structure.unflatten(weights)}
        seen = {
            "scales": _scale_gradients(state.extra, specs, weights, grads),
            "weights": structure.unflatten(
                [g if f is None else (g * f).astype(g.dtype) for g, f in zip(grads, factors)]
            ),
        }
        masks = {"scales": dict.fromkeys(state.extra), "weights": structure.unflatten(new)}
        inner_state = reset_off(inner, state.inner_state, trained, [*[None] * len(state.extra), *laid])
        extra_args |= {"masks": masks} if wants_masks else {}
        step, inner_state = inner.update(seen, inner_state, trained, **extra_args)

        moved = optax.apply_updates(trained, step)
        after = zip(
            structure.flatten_up_to(step["weights"]), jax.tree.leaves(moved["weights"]), before,
            _factors(moved["scales"], specs, before), strict=True,
        )  # fmt: skip
        steps = [u if f is None else (v * f).astype(w.dtype) - w for u, v, w, f in after]
        emitted = structure.unflatten(map(laid_on, steps, before, laid))
        count, stored = optax.safe_increment(state.count), with_masks(state.masks, new)
        return emitted, SparseState(count, state.key, stored, inner_state, state.skipped + refused, moved["scales"])

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _cut(leaves: list[Any], masks: list[Any]) -> list[Any]:
    return [x if m is None else selected(m, x, jnp.zeros_like(x)) for m, x in zip(masks, leaves, strict=True)]


def _name(spec: Spec) -> str:
    """How the optimizer's tree calls the scales of a leaf; what decays kernels by their names passes these by."""
    return f"{spec.path}/scale"


def _parts(shape: tuple[int, ...], axes: Axes, groups: int) -> Block:
    """The parts of the last input axis as blocks."""
    return Block((shape[axes.inputs[-1]] // groups, 1))


def _ones(weight: jax.Array, spec: Spec, groups: int) -> jax.Array:
    """The scales at the start: one for each output, stacked layer and part of the last input axis."""
    axis = spec.axes.inputs[-1]
    if weight.shape[axis] % groups:
        raise ValueError(f"scale_groups={groups} does not divide the {weight.shape[axis]} inputs of {spec.path}")
    inputs = dict.fromkeys(spec.axes.inputs, 1) | {axis: groups}
    return jnp.ones([inputs.get(a, size) for a, size in enumerate(weight.shape)], weight.dtype)


def _factors(scales: dict[str, jax.Array], specs: list[Spec], leaves: list[Any]) -> list[Any]:
    """The scales of each leaf, one for each weight; None at leaves that have none."""
    factors: list[Any] = [None] * len(leaves)
    for spec in specs:
        if (scale := scales.get(_name(spec))) is not None:
            shape, axis = leaves[spec.position].shape, spec.axes.inputs[-1]
            groups = scale.shape[axis]
            units = [groups if a == axis else size for a, size in enumerate(shape)]
            spread = jnp.broadcast_to(scale, units)
            factors[spec.position] = _parts(shape, spec.axes, groups).expand(spread, shape, spec.axes)
    return factors


def _scale_gradients(
    scales: dict[str, jax.Array], specs: list[Spec], weights: list[Any], grads: list[Any]
) -> dict[str, jax.Array]:
    """dL/ds = the sum of v dL/dw over each scale's weights."""
    found = {}
    for spec in specs:
        if (scale := scales.get(_name(spec))) is not None:
            products = weights[spec.position] * grads[spec.position]
            parts = _parts(products.shape, spec.axes, scale.shape[spec.axes.inputs[-1]])
            sums = parts.units(products, spec.axes) * parts.shape[0]
            found[_name(spec)] = sums.sum(spec.axes.inputs[:-1], keepdims=True).astype(scale.dtype)
    return found


def _unscaled(weight: jax.Array, scale: jax.Array | None) -> jax.Array:
    """v = w / s; 0 where the scale is 0."""
    if scale is None:
        return weight
    return jnp.where(scale == 0, jnp.zeros_like(weight), weight / jnp.where(scale == 0, jnp.ones_like(scale), scale))

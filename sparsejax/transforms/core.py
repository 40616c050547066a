"""The wrapper that every method is: masks in the optimizer state, exactly sparse params after `optax.apply_updates`.

One step, in this order: (a) one branch on the step counter turns (params, gradients, masks, key) into masks, and
nothing else crosses it; (b) the new masks are laid on the gradients, the params and the incoming inner state; (c) the
inner step; (d) `-w` is emitted off the mask, so that `w + update` is exactly 0 there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sparsejax import schedules
from sparsejax.leaves import Axes, Layout, Where
from sparsejax.masks import apply_masks
from sparsejax.patterns import Pattern
from sparsejax.selection import Count, count_true
from sparsejax.state import SparseState
from sparsejax.transforms.batching import any_lane
from sparsejax.transforms.inner import params_shaped, reset_off
from sparsejax.transforms.start import (
    Distribution,
    Patterns,
    Spec,
    checked_choice,
    given_masks,
    leaf_key,
    specs_of,
    starting_masks,
)

PyTree = Any
# What `optax.inject_hyperparams(method, static_args=sparsejax.static_args)` must not turn into arrays.
static_args = (
    "sparsity", "masks", "distribution", "pattern", "where", "layout", "ties", "update_start", "update_end",
    "update_every", "initial_sparsity", "at_step", "skip_step", "drop_rounding", "regrow_dropped", "signed", "plan",
    "start", "seed",
)  # fmt: skip


class Leaf(NamedTuple):
    """What a rule sees of one parameter at a mask update.

    Attributes:
      path: `Dense_0/kernel`.
      weight, grad, mask: arrays of the parameter's shape.
      keep: units to keep in each group of the pattern, a Count.
      fraction: the share of the kept units that moves (drop fraction), or None.
      key: PRNG key of this leaf and step.
      ties: None (lowest index first), or the PRNG key that breaks ties.
      step: int32 scalar.
      inner: the inner state's leaves that belong to this parameter, by path (`0/mu`).
      pattern, axes: the leaf's pattern, and its stacked, input and output axes.
    """

    path: str
    weight: jax.Array
    grad: jax.Array
    mask: jax.Array
    keep: Count
    fraction: jax.Array | None
    key: jax.Array
    ties: jax.Array | None
    step: jax.Array
    inner: dict[str, jax.Array]
    pattern: Pattern
    axes: Axes


NEVER = (schedules.fixed(),)
NewMask = Callable[[Leaf], jax.Array]
NewMasks = Callable[[list[Leaf]], list[jax.Array]]


def _mask_list(params: PyTree, masks: PyTree) -> list[jax.Array | None]:
    structure: Any = jax.tree.structure(params)
    flat = structure.flatten_up_to(masks)
    return [None if isinstance(mask, optax.MaskedNode) else mask for mask in flat]


def _copied(state: PyTree, *given: PyTree) -> PyTree:
    """The state with its own copy of every array that it shares with the given trees, so that all can be donated."""
    shared = {id(leaf) for leaf in jax.tree.leaves(given)}
    return jax.tree.map(lambda leaf: jnp.array(leaf) if id(leaf) in shared else leaf, state)


def _finite(leaf: Leaf) -> jax.Array:
    return jnp.all(jnp.isfinite(leaf.weight)) & jnp.all(jnp.isfinite(leaf.grad))


def sparse_wrapper(
    inner: optax.GradientTransformation,
    new_mask: NewMask | None = None,
    *,
    new_masks: NewMasks | None = None,
    plan: schedules.Plan = NEVER,
    start: str = "dense",
    sparsity: float | None = None,
    masks: PyTree = None,
    distribution: Distribution | str | None = None,
    pattern: Patterns = None,
    where: Where | None = None,
    layout: Layout | None = None,
    skip_step: bool = False,
    ties: str = "index",
    seed: int | jax.Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that the params stay exactly sparse; every method, and your own, is a call of it.

    At the plan's update steps each masked leaf gets the mask `new_mask(leaf)`; at every other step nothing is selected.
    The inner optimizer sees masked params and gradients, and moments that are fresh wherever the mask changed.

    Args:
      inner: the optimizer.
      new_mask: `(leaf: Leaf) -> mask`; `new_masks`: the same for all leaves at once, for methods that rank globally.
      plan: phases of `sparsejax.schedules`: when masks change and how much.
      start: "dense" or "random": the masks at init, where `masks` is not given.
      sparsity: fraction of zeros over the masked leaves, in [0, 1); acts in `init` alone.
      masks: masks to start from; the params' tree of bool arrays or None.
      distribution: `(params, density, layout) -> tree of densities`; None is ERK for masks that
        start random, uniform for masks that start dense; "global": one budget for all leaves.
      pattern: None (single weights), `nm`, `block`, `channel`, or a dict of globs to patterns.
      where: which leaves, `(path, array) -> bool`; None is the default predicate.
      layout: which axes are inputs and outputs; None is Flax's.
      skip_step: whether a step that changes masks leaves the params (not the inner state) as they are.
      ties: "index": among equal scores the lowest index is kept; "random": at random.
      seed: of the random choices; acts in `init` alone, and may be traced.

    Returns:
      A transformation with a `SparseState`.

    Raises:
      ValueError: an argument out of range, here or in `init`.

    Example:
      >>> from sparsejax import criteria, schedules
      >>> tx = sparse_wrapper(optax.sgd(0.1), lambda leaf: keep_best(leaf, criteria.magnitude),
      ...                     plan=(schedules.gradual(until=100, every=10),), sparsity=0.5)
      >>> state = tx.init({"w": jnp.ones((4, 4))})
    """
    changes = any(phase.every for phase in plan)
    if changes and (new_mask is None) == (new_masks is None):
        raise ValueError("sparse_wrapper needs either new_mask or new_masks")
    if ties not in ("index", "random"):
        raise ValueError(f"ties={ties!r}: 'index' or 'random'")
    choice = checked_choice(
        sparsity,
        distribution,
        pattern,
        where,
        layout,
        start,
        plan,
        has_masks=masks is not None,
        ranks_globally=new_masks is not None,
    )
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: PyTree) -> SparseState:
        key = jax.random.key_data(jax.random.key(seed))
        given = masks is not None and jax.tree.leaves(params)
        flat, extra = (given_masks(params, masks), ()) if given else starting_masks(params, choice, key)
        tree = jax.tree.unflatten(jax.tree.structure(params), flat)
        inner_state = _copied(inner.init(apply_masks(params, tree)), params)
        zero = jnp.zeros([], jnp.int32)
        return SparseState(zero, key, tree, inner_state, zero, extra)

    def _keep(extra, row: int, step, spec: Spec, mask):
        if choice.has_ramp:
            return Count(*extra[row, schedules.ramp_index(plan, step)])
        units = spec.pattern.units(mask.astype(jnp.float32), spec.axes) > 0
        return count_true([units], spec.pattern.group_axes(mask.shape, spec.axes))[0]

    def _leaves_at(step, params, grads, state, specs, flat) -> list[Leaf]:
        weights = jax.tree.leaves(params)
        structure: Any = jax.tree.structure(params)
        gradients = structure.flatten_up_to(grads)
        owned = params_shaped(state.inner_state, params)
        fraction = schedules.drop_fraction(plan, step)
        leaves = []
        for row, spec in enumerate(specs):
            key = jax.random.fold_in(leaf_key(state.key, spec.path), step)
            draw = jax.random.fold_in(key, 1) if ties == "random" else None
            mask = flat[spec.position]
            keep = _keep(state.extra, 0 if choice.one_budget else row, step, spec, mask)
            weight, grad = lax.stop_gradient((weights[spec.position], gradients[spec.position]))
            leaves.append(
                Leaf(
                    spec.path,
                    weight,
                    grad,
                    mask,
                    keep,
                    fraction,
                    key,
                    draw,
                    step,
                    owned[spec.position],
                    spec.pattern,
                    spec.axes,
                )
            )
        return leaves

    def _changed(due, leaves: list[Leaf]) -> tuple[list[jax.Array], jax.Array]:
        """New masks where this lane's update is due and the leaf is finite; and how many leaves were not."""
        finite = [_finite(leaf) for leaf in leaves]
        if (
            new_masks is not None
        ):  # one ranking over all leaves: a leaf that is not finite would upset the count of the rest
            every = jnp.stack(finite).all()
            proposed, accept = new_masks(leaves), [every] * len(leaves)
        else:
            assert new_mask is not None
            proposed, accept = [new_mask(leaf) for leaf in leaves], finite
        chosen = [jnp.where(due & ok, new, leaf.mask) for new, ok, leaf in zip(proposed, accept, leaves, strict=True)]
        refused = sum((~ok).astype(jnp.int32) for ok in finite)
        return chosen, jnp.where(due, refused, 0)

    def update_fn(
        updates: PyTree, state: SparseState, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, SparseState]:
        if params is None:
            raise ValueError("a sparse transformation needs params: tx.update(grads, opt_state, params)")
        structure: Any = jax.tree.structure(params)
        old = _mask_list(params, state.masks)
        specs = specs_of(params, old, pattern, layout)
        new, skipped, due = list(old), state.skipped, None
        if changes and specs:
            due = schedules.is_update(plan, state.count)

            def change():
                return _changed(due, _leaves_at(state.count, params, updates, state, specs, old))

            def stay():
                return [old[spec.position] for spec in specs], jnp.zeros([], jnp.int32)

            chosen, refused = lax.cond(any_lane(due), change, stay)
            skipped = state.skipped + refused
            for spec, mask in zip(specs, chosen, strict=True):
                new[spec.position] = mask
        masks_tree = structure.unflatten(new)
        sparse_params, sparse_grads = apply_masks(params, masks_tree), apply_masks(updates, masks_tree)
        same = [m if m is o or m is None or o is None else m & o for m, o in zip(new, old, strict=True)]
        inner_state = reset_off(inner, state.inner_state, params, same)
        step, inner_state = inner.update(sparse_grads, inner_state, sparse_params, **extra_args)
        hold = due if skip_step else None
        emitted = [
            _emit(*each, hold) for each in zip(structure.flatten_up_to(step), jax.tree.leaves(params), new, strict=True)
        ]
        count = optax.safe_increment(state.count)
        return structure.unflatten(emitted), SparseState(
            count, state.key, masks_tree, inner_state, skipped, state.extra
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _emit(step: jax.Array, weight: jax.Array, mask: jax.Array | None, hold: jax.Array | None) -> jax.Array:
    """One leaf's update: the inner step on the mask (0 where `hold`), -w off it, in a dtype that holds -w exactly."""
    if hold is not None:
        step = jnp.where(hold, jnp.zeros_like(step), step)
    if mask is None:
        return step
    dtype = jnp.promote_types(step.dtype, weight.dtype)
    return jnp.where(mask, step.astype(dtype), -weight.astype(dtype))

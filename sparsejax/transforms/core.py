"""The wrapper that every method is: masks in the optimizer state, exactly sparse params after `optax.apply_updates`.

One step, in this order: (a) one branch on the step counter turns (params, gradients, masks, key) into masks, and
nothing else crosses it; (b) the new masks are laid on the gradients, the params and the incoming inner state; (c) the
inner step; (d) `-w` is emitted off the mask, so that `w + update` is exactly 0 there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sparsejax import schedules
from sparsejax.batching import any_lane
from sparsejax.leaves import Layout, Where
from sparsejax.masks import apply_masks, flat_masks, map_masks, mask_tree, unpacked, with_masks
from sparsejax.packing import pack
from sparsejax.state import SparseState
from sparsejax.transforms.inner import reset_off
from sparsejax.transforms.proposals import NEVER, Method, NewMask, NewMasks, Remembered, change_masks, placed
from sparsejax.transforms.start import (
    Distribution,
    Patterns,
    checked_choice,
    given_masks,
    specs_of,
    starting_masks,
)

PyTree = Any
_STATIC = (  # arguments that `optax.inject_hyperparams` must not turn into arrays
    "sparsity", "masks", "distribution", "pattern", "where", "layout", "ties", "update_start", "update_end",
    "update_every", "initial_sparsity", "at_step", "skip_step", "drop_rounding", "regrow_dropped", "signed", "plan",
    "start", "seed", "packed", "rewire_end", "final_fraction", "threshold", "extra", "gradient_weight", "grow",
    "redistribute", "ablate", "saliency_threshold", "never_ablate", "memory", "gradient_term", "backward_sparsity",
    "moves", "share", "dense_dtype", "wants_masks", "schedule", "norm", "multiples", "total_steps", "by", "soft",
    "warmup_fraction", "finetune_fraction", "max_iterations", "tolerance", "costs", "flip_power", "weights",
    "criterion", "decay_steps", "scale_groups", "mask", "sparse_starts", "dense_starts", "last_dense", "reset_moments",
    "scope", "p", "q", "gamma", "eta", "beta", "gradients", "block_size", "damp", "recomputations",
)  # fmt: skip


def static_args(method: Callable[..., Any]) -> tuple[str, ...]:
    """The arguments of a method that are no rates, for `optax.inject_hyperparams`.

    Example:
      >>> tx = optax.inject_hyperparams(sparse_wrapper, static_args=static_args(sparse_wrapper))
    """
    return tuple(name for name in inspect.signature(method).parameters if name in _STATIC)


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
    memory: PyTree = None,
    adjusts: bool = False,
    many_gradients: bool = False,
    dense_moments: bool = False,
    reset_moments: bool = False,
    skip_step: bool = False,
    ties: str = "index",
    seed: int | jax.Array = 0,
    packed: bool = False,
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
      memory: arrays that `new_masks` keeps from one update to the next: `new_masks(leaves, memory)` then gives both the
        masks and the new memory.
      adjusts: whether the rule gives `Adjusted(mask, weight)`: the kept weights take these values, and the inner
        optimizer sees them, before its step. A leaf whose new weights are not finite is refused.
      many_gradients: whether `new_masks` wants gradients of further batches, as its last argument:
        `gradients(weights, i)` is the list of the masked leaves' gradients on the i-th batch, at these weights, one
        array a leaf. They come from `tx.update(..., grads_fn=)`, which must then be given: `grads_fn(params, i)` is a
        tree like the params, i = 0, 1, ... (traced). It is called in the branch of an update alone.
      dense_moments: whether the inner optimizer sees the gradients of all weights and keeps its moments off the mask.
      reset_moments: whether a step that changes masks sets the moments of all params to what `inner.init` gives;
        counters, and with them learning rate schedules, go on.
      skip_step: whether a step that changes masks leaves the params (not the inner state) as they are.
      ties: "index": among equal scores the lowest index is kept; "random": at random.
      seed: of the random choices; acts in `init` alone, and may be traced.
      packed: whether the state holds a mask as one bit a weight, not as a byte: the same masks, faster steps, and
        `get_masks` gives bool arrays all the same. A bool mask is sharded as its parameter; a packed one too where the
        devices divide its bytes along the axis that `packing.packed_axis` names, else it is whole along that axis.

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
    if many_gradients and new_masks is None:
        raise ValueError("many_gradients: new_masks gets them, not new_mask")
    if any(phase.every for phase in plan) and (new_mask is None) == (new_masks is None):
        raise ValueError("sparse_wrapper needs either new_mask or new_masks")
    if ties not in ("index", "random"):
        raise ValueError(f"ties={ties!r}: 'index' or 'random'")
    if not isinstance(packed, bool):
        raise ValueError(f"packed={packed!r}: True or False")
    choice = checked_choice(sparsity, distribution, pattern, where, layout, start, plan, masks, new_masks)
    inner = optax.with_extra_args_support(inner)
    method = Method(
        inner=inner,
        new_mask=new_mask,
        new_masks=new_masks,
        choice=choice,
        masks=masks,
        memory=memory,
        adjusts=adjusts,
        many_gradients=many_gradients,
        dense_moments=dense_moments,
        reset_moments=reset_moments,
        skip_step=skip_step,
        ties=ties,
        seed=seed,
        packed=packed,
    )

    def init_fn(params: PyTree) -> SparseState:
        return _init(method, params)

    def update_fn(updates: PyTree, state: SparseState, params: PyTree = None, **extra_args: Any):
        return _update(method, updates, state, params, extra_args)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _init(method: Method, params: PyTree) -> SparseState:
    key = jax.random.key_data(jax.random.key(method.seed))
    extra: Any
    if method.masks is not None and jax.tree.leaves(params):
        flat, extra = given_masks(params, method.masks), ()
    else:
        flat, extra = starting_masks(params, method.choice, key)
    masks = mask_tree(params, flat)
    seen = apply_masks(params, masks) if _reads_values(method.inner.init, params) else params
    if method.packed:
        masks = mask_tree(params, [None if mask is None else pack(mask) for mask in flat])
    inner_state = copied(method.inner.init(seen), params)
    if method.memory is not None:
        extra = Remembered(extra, jax.tree.map(jnp.array, method.memory))
    return SparseState(jnp.zeros([], jnp.int32), key, masks, inner_state, jnp.zeros([], jnp.int32), extra)


def _reads_values(init: Callable[[PyTree], PyTree], params: PyTree) -> bool:
    """Whether an inner state holds more of the params than their shapes; masking them for nothing costs a second."""
    jaxpr = jax.make_jaxpr(init)(params).jaxpr
    read = {id(var) for equation in jaxpr.eqns for var in equation.invars} | {id(var) for var in jaxpr.outvars}
    return any(id(var) in read for var in jaxpr.invars)


def copied(state: PyTree, params: PyTree) -> PyTree:
    """The inner state with its own copy of every array that it shares with the params, so that both can be donated."""
    shared = {id(leaf) for leaf in jax.tree.leaves(params)}
    return jax.tree.map(lambda leaf: jnp.array(leaf) if id(leaf) in shared else leaf, state)


def _update(method: Method, grads: PyTree, state: SparseState, params: PyTree, extra_args: dict[str, Any]):
    if params is None:
        raise ValueError("a sparse transformation needs params: tx.update(grads, opt_state, params)")
    structure: Any = jax.tree.structure(params)
    due = schedules.is_update(method.choice.plan, state.count)
    given = params  # what the updates are added to, also where the method gives the weights new values
    if method.many_gradients:
        extra_args = dict(extra_args)
        grads_fn = extra_args.pop("grads_fn", None)
        if grads_fn is None:
            raise ValueError(
                "this method needs the gradients of further batches: tx.update(grads, opt_state, params, "
                "grads_fn=lambda params, i: the gradients on the i-th of them)"
            )
    else:
        grads_fn = None
    stored, refused, memory, adjusted = _next_masks(
        method, due, flat_masks(params, state.masks), grads, state, params, grads_fn
    )
    if method.adjusts:
        params = structure.unflatten(adjusted)
    # Unpacked here, after the branch, which would store what it returns.
    new = unpacked(stored, jax.tree.leaves(params))
    masks = structure.unflatten(new)
    # Off the mask, moments are fresh on the way in at every step. A weight that comes in has thus seen one step with
    # neither gradient nor weight, which leaves the moments of most optimizers fresh (not rmsprop's initial scale).
    # Reading the old masks too, to reset at the change alone, keeps them alive beside the new ones: 1.9 x the bare
    # step, not 1.2 x.
    inner_state, seen = state.inner_state, grads
    if method.dense_moments:
        seen = map_masks(finite_off, masks, grads)
    else:
        inner_state, seen = reset_off(method.inner, inner_state, params, new), apply_masks(grads, masks)
    if method.reset_moments:
        inner_state = reset_off(method.inner, inner_state, params, [~due] * structure.num_leaves)
    step, inner_state = method.inner.update(seen, inner_state, apply_masks(params, masks), **extra_args)
    hold = due if method.skip_step else None
    leaves = zip(structure.flatten_up_to(step), jax.tree.leaves(given), new, strict=True)
    emitted = [_emit(*each, hold) for each in leaves]
    if method.adjusts:
        emitted = [
            _moved(update, *each) for update, *each in zip(emitted, jax.tree.leaves(given), adjusted, new, strict=True)
        ]
    updates = structure.unflatten(emitted)
    count = optax.safe_increment(state.count)
    masks = with_masks(state.masks, stored)
    extra = state.extra if method.memory is None else state.extra._replace(memory=memory)
    return updates, SparseState(count, state.key, masks, inner_state, state.skipped + refused, extra)


def finite_off(mask: jax.Array | None, grad: jax.Array) -> jax.Array:
    """The gradient, without what is not finite off the mask: it harms no weight, but would stay in the moments."""
    return grad if mask is None else jnp.where(mask | jnp.isfinite(grad), grad, jnp.zeros_like(grad))


def _next_masks(
    method: Method, due, old, grads, state, params, grads_fn
) -> tuple[list[Any], jax.Array, PyTree, list[jax.Array]]:
    """The masks of this step, as they are stored, how many leaves were refused, the memory: the step's only branch.

    And the params, with new values where the method gives some; else nothing of them crosses the branch.
    """
    specs = specs_of(params, old, method.choice.pattern, method.choice.layout)
    none_refused = jnp.zeros([], jnp.int32)
    memory = () if method.memory is None else state.extra.memory
    weights = jax.tree.leaves(params)
    if not specs or not any(phase.every for phase in method.choice.plan):
        return old, none_refused, memory, weights

    def change():
        return change_masks(method, specs, due, old, grads, state, params, grads_fn)

    def stay():
        before = [old[spec.position] for spec in specs]
        return before, none_refused, memory, [weights[spec.position] for spec in specs] if method.adjusts else ()

    chosen, refused, memory, values = lax.cond(any_lane(due), change, stay)
    return placed(old, specs, chosen), refused, memory, placed(weights, specs, values) if method.adjusts else weights


def _emit(step: jax.Array, weight: jax.Array, mask: jax.Array | None, hold: jax.Array | None) -> jax.Array:
    """One leaf's update: the inner step on the mask (0 where `hold`), -w off it, in a dtype that holds -w exactly."""
    if hold is not None:
        step = jnp.where(hold, jnp.zeros_like(step), step)
    if mask is None:
        return step
    dtype = jnp.promote_types(step.dtype, weight.dtype)
    return jnp.where(mask, step.astype(dtype), -weight.astype(dtype))


def _moved(update: jax.Array, weight: jax.Array, adjusted: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The update with what the method changed of a kept weight; off the mask it is -w already."""
    if mask is None:
        return update
    return jnp.where(mask, update + (adjusted - weight).astype(update.dtype), update)

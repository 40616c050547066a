"""One step of a reparametrized method: gradients back to the latents, their steps, the masks, the new params."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sparsejax import schedules
from sparsejax.batching import any_lane
from sparsejax.masks import flat_masks, mask_tree
from sparsejax.packing import sharded_as
from sparsejax.selection.stored import stored
from sparsejax.state import Latents, SparseState
from sparsejax.transforms.core import copied
from sparsejax.transforms.inner import reset_off
from sparsejax.transforms.proposals import Leaf, Method, leaves_at, proposed_masks
from sparsejax.transforms.start import Spec, beside, specs_of, starting_masks

PyTree = Any
ALL, KEPT, NONE = "all", "kept", "none"


class Reparametrized(NamedTuple):
    """The arguments of `reparametrized`, checked.

    Attributes:
      method: inner optimizer, rule of the masks, leaves and counts, as of `sparse_wrapper`.
      aux: the optimizer of the extras.
      values: leaves -> their values.
      init_latent, init_memory: leaf -> array, or None.
      moves: which weights of the masked leaves are trained.
      soft: whether a value may differ from the weight on the mask.
      every: steps between mask updates.
      dense_dtype: of the latent weights; None: the parameter's.
    """

    method: Method
    aux: optax.GradientTransformationExtraArgs
    values: Callable[[list[Leaf]], list[jax.Array]]
    init_latent: Callable[[Leaf], jax.Array] | None
    init_memory: Callable[[Leaf], jax.Array] | None
    moves: str
    soft: bool
    every: int
    dense_dtype: Any


def init(how: Reparametrized, params: PyTree) -> SparseState:
    """The state at the start: the latent weights are the params, the masks those of the initial latents."""
    method = how.method
    structure: Any = jax.tree.structure(params)
    key = jax.random.key_data(jax.random.key(method.seed))
    flat, table = starting_masks(params, method.choice, key)
    specs = specs_of(params, flat, method.choice.pattern, method.choice.layout)
    given = jax.tree.leaves(params)
    weights: list[Any] = [None] * len(given)
    for spec in specs:
        weights[spec.position] = jnp.array(given[spec.position], how.dense_dtype or given[spec.position].dtype)
    zero = jnp.zeros([], jnp.int32)
    begin = SparseState(zero, key, None, (), zero, table)
    dense = _with(params, weights)
    leaves = leaves_at(method, specs, flat, jax.tree.map(jnp.zeros_like, params), begin, dense)
    made = lambda make: _once([_made(make, leaf) for leaf in leaves])
    own = zip(leaves, made(how.init_latent), made(how.init_memory), strict=True)
    leaves = [leaf._replace(extra=extra, memory=memory) for leaf, extra, memory in own]
    leaves, _ = _chosen(how, leaves)
    masks: list[Any] = [None] * len(given)
    for spec, leaf in zip(specs, leaves, strict=True):
        masks[spec.position] = beside(leaf.mask, leaf.weight)
    extras = _tree(params, specs, [leaf.extra for leaf in leaves])
    aux_state = () if how.init_latent is None else copied(how.aux.init(extras), extras)
    inner_state = copied(method.inner.init(_seen(how, dense, masks)), dense)
    memory = _tree(params, specs, [leaf.memory for leaf in leaves])
    latent = Latents(structure.unflatten(weights), extras, memory, aux_state, table)
    return SparseState(zero, key, mask_tree(params, masks), inner_state, jnp.zeros([], jnp.int32), latent)


def update(how: Reparametrized, grads: PyTree, state: SparseState, params: PyTree, extra_args: dict[str, Any]):
    """The updates that make the params F(new latents), and the new state."""
    if params is None:
        raise ValueError("a sparse transformation needs params: tx.update(grads, opt_state, params)")
    structure: Any = jax.tree.structure(params)
    masks, given, slopes = flat_masks(params, state.masks), jax.tree.leaves(params), structure.flatten_up_to(grads)
    specs = specs_of(params, masks, how.method.choice.pattern, how.method.choice.layout)
    held = Latents(*(flat_masks(params, tree) for tree in state.extra[:3]), *state.extra[3:])
    weights = [_truth(how, *each) for each in zip(given, held.weights, masks, strict=True)]
    dense = _with(params, weights)
    made = jnp.maximum(state.count - 1, 0)  # the step at which the params were made of the latents
    leaves = _leaves(how, specs, masks, grads, state._replace(count=made), dense, held)
    weight_slopes, extra_slopes = _pulled_back(how, leaves, [slopes[spec.position] for spec in specs])

    new, updates, inner_state = _moved(how, specs, masks, dense, slopes, weight_slopes, state.inner_state, extra_args)
    extras, aux_state = _trained(how, params, specs, state, leaves, extra_slopes, extra_args)

    # Selection reads its scores several times: were they computed anew each time, they could be rounded differently.
    new, extras = _once((new, extras))
    now = _leaves(how, specs, masks, grads, state, _with(params, new), held)
    now = [leaf._replace(extra=extra) for leaf, extra in zip(now, extras, strict=True)]
    now, refused = _chosen_when_due(how, state.count, now)
    values = how.values(now) if now else []
    new_masks: list[Any] = [None] * len(given)
    for spec, leaf, value in zip(specs, now, values, strict=True):
        new_masks[spec.position] = leaf.mask
        updates[spec.position] = _emit(given[spec.position], value, leaf.mask, slopes[spec.position].dtype)
    latent = Latents(
        structure.unflatten([None if mask is None else w for mask, w in zip(masks, new, strict=True)]),
        _tree(params, specs, extras),
        _tree(params, specs, [leaf.memory for leaf in now]),
        aux_state,
        state.extra.table,
    )
    count = optax.safe_increment(state.count)
    tree = mask_tree(params, new_masks)
    after = SparseState(count, state.key, tree, inner_state, state.skipped + refused, latent)
    return structure.unflatten(updates), after


def _made(make: Callable[[Leaf], jax.Array] | None, leaf: Leaf) -> Any:
    if make is None:
        return None
    array = make(leaf)
    return sharded_as(array, leaf.weight) if array.shape == leaf.weight.shape else array


def _once(tree: PyTree) -> PyTree:
    return stored(lambda: tree, lambda: jax.tree.map(jnp.zeros_like, tree))


def _with(params: PyTree, weights: list[Any]) -> PyTree:
    """The params with the latent weights in place of the masked leaves."""
    leaves = [p if w is None else w for p, w in zip(jax.tree.leaves(params), weights, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _tree(params: PyTree, specs: list[Spec], values: list[Any]) -> PyTree:
    """One value for each masked leaf, as the params' tree with None elsewhere."""
    flat: list[Any] = [None] * len(jax.tree.leaves(params))
    for spec, value in zip(specs, values, strict=True):
        flat[spec.position] = value
    return jax.tree.unflatten(jax.tree.structure(params), flat)


def _truth(how: Reparametrized, param: jax.Array, weight: Any, mask: Any) -> Any:
    """The latent weight; on the mask the parameter, if it is not the weight as the parameter's dtype rounds it."""
    if weight is None or how.soft:
        return weight
    return jnp.where(mask & (param != weight.astype(param.dtype)), param.astype(weight.dtype), weight)


def _leaves(how: Reparametrized, specs, masks, grads, state: SparseState, dense: PyTree, held: Latents) -> list[Leaf]:
    """What the functions of a method see of each masked leaf."""
    leaves = leaves_at(how.method, specs, masks, grads, state._replace(extra=state.extra.table), dense)
    own = [(held.extras[spec.position], held.memory[spec.position]) for spec in specs]
    return [leaf._replace(extra=e, memory=m) for leaf, (e, m) in zip(leaves, own, strict=True)]


def _pulled_back(how: Reparametrized, leaves: list[Leaf], slopes: list[jax.Array]) -> tuple[list[Any], list[Any]]:
    """The gradients of the latent weights and of the extras."""
    if not leaves:
        return [], []

    def values(weights, extras):
        given = zip(leaves, weights, extras, strict=True)
        return how.values([leaf._replace(weight=w, extra=e) for leaf, w, e in given])

    made, pull = jax.vjp(values, [leaf.weight for leaf in leaves], [leaf.extra for leaf in leaves])
    return pull([slope.astype(value.dtype) for slope, value in zip(slopes, made, strict=True)])


def _seen(how: Reparametrized, dense: PyTree, masks: list[Any]) -> PyTree:
    """The tree as the inner optimizer sees it."""

    def seen(leaf, mask):
        if mask is None or how.moves == ALL:
            return leaf
        return jnp.zeros_like(leaf) if how.moves == NONE else jnp.where(mask, leaf, jnp.zeros_like(leaf))

    structure: Any = jax.tree.structure(dense)
    return structure.unflatten([seen(*each) for each in zip(jax.tree.leaves(dense), masks, strict=True)])


def _moved(how: Reparametrized, specs, masks, dense, slopes, weight_slopes, inner_state, extra_args):
    """The latent weights after the inner step, the steps of all leaves, the inner state."""
    structure: Any = jax.tree.structure(dense)
    old, slopes = jax.tree.leaves(dense), list(slopes)
    for spec, slope in zip(specs, weight_slopes, strict=True):
        # Off the mask what is not finite harms no parameter now, but would stay in the weight that comes back.
        slopes[spec.position] = jnp.where(masks[spec.position] | jnp.isfinite(slope), slope, jnp.zeros_like(slope))
    if how.moves == KEPT:
        inner_state = reset_off(how.method.inner, inner_state, dense, masks)
    seen = _seen(how, structure.unflatten(slopes), masks)
    steps, inner_state = how.method.inner.update(seen, inner_state, _seen(how, dense, masks), **extra_args)
    steps = structure.flatten_up_to(steps)
    new = list(old)
    for spec in specs:
        i = spec.position
        if how.moves != NONE:
            new[i] = (old[i] + steps[i]).astype(old[i].dtype)
        if how.moves == KEPT:
            new[i] = jnp.where(masks[i], new[i], old[i])
    return new, steps, inner_state


def _trained(how: Reparametrized, params, specs, state: SparseState, leaves: list[Leaf], slopes, extra_args):
    """The extras after a step of their optimizer, and its state; a gradient that is not finite counts as 0."""
    old = [leaf.extra for leaf in leaves]
    if how.init_latent is None:
        return old, ()
    seen = [jnp.where(jnp.isfinite(slope).all(), slope, jnp.zeros_like(slope)) for slope in slopes]
    grads, extras = _tree(params, specs, seen), _tree(params, specs, old)
    steps, aux_state = how.aux.update(grads, state.extra.aux_state, extras, **extra_args)
    return jax.tree.leaves(optax.apply_updates(extras, steps)), aux_state


def _chosen_when_due(how: Reparametrized, count: jax.Array, leaves: list[Leaf]) -> tuple[list[Leaf], jax.Array]:
    """The leaves with the masks and memories of this step, and how many were refused."""
    none_refused = jnp.zeros([], jnp.int32)
    if not leaves or how.every == 1:
        return _chosen(how, leaves) if leaves else (leaves, none_refused)
    due = (count % how.every == 0) | schedules.is_update(how.method.choice.plan, count)
    old = [(leaf.mask, leaf.memory) for leaf in leaves]

    def change():
        new, refused = _chosen(how, leaves)
        kept = [(jnp.where(due, n.mask, o.mask), _where(due, n.memory, o.memory)) for n, o in zip(new, leaves)]
        return kept, jnp.where(due, refused, 0)

    found, refused = lax.cond(any_lane(due), change, lambda: (old, none_refused))
    return [leaf._replace(mask=mask, memory=memory) for leaf, (mask, memory) in zip(leaves, found)], refused


def _chosen(how: Reparametrized, leaves: list[Leaf]) -> tuple[list[Leaf], jax.Array]:
    """The leaves with new masks (and memories) where weight, extra and gradient are finite; how many were not."""
    if not leaves:
        return leaves, jnp.zeros([], jnp.int32)
    proposed, told = proposed_masks(how.method, leaves, {}, None)
    finite = [ok if leaf.extra is None else ok & jnp.isfinite(leaf.extra).all() for ok, leaf in zip(told, leaves)]
    accept = [jnp.stack(finite).all()] * len(leaves) if how.method.new_masks is not None else finite
    new = []
    for leaf, ok, given in zip(leaves, accept, proposed, strict=True):
        mask, memory = given if isinstance(given, tuple) else (given, leaf.memory)
        new.append(leaf._replace(mask=jnp.where(ok, mask, leaf.mask), memory=_where(ok, memory, leaf.memory)))
    return new, jnp.sum(~jnp.stack(finite), dtype=jnp.int32)


def _where(condition: jax.Array, new: Any, old: Any) -> Any:
    return None if new is None else jnp.where(condition, new, old)


def _emit(param: jax.Array, value: jax.Array, mask: jax.Array, dtype: Any) -> jax.Array:
    """What makes a parameter its new value on the mask and exactly 0 off it."""
    value = value.astype(param.dtype)
    step = jnp.where(mask, value - param, -param)
    return step.astype(jnp.promote_types(dtype, param.dtype))

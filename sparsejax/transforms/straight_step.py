"""One step of a straight-through method, which trains dense weights behind the params.

(a) The dense weights are the params on the mask and what the state stores off it; (b) the inner step, on them; (c) one
branch on the step counter chooses the masks of the new dense weights; (d) updates are emitted that leave the params
exactly sparse.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sparsejax import schedules
from sparsejax.batching import any_lane
from sparsejax.masks import dense_weight, flat_masks, selected, unpacked, with_masks
from sparsejax.state import SparseState, Straight
from sparsejax.transforms.core import finite_off
from sparsejax.transforms.inner import reset_off
from sparsejax.transforms.proposals import Method, Remembered, change_masks, placed
from sparsejax.transforms.start import Spec, specs_of

PyTree = Any


class Latent(NamedTuple):
    """What the hooks of a straight-through method see of one sparsified leaf, before its step.

    Attributes:
      path: `Dense_0/kernel`.
      weight: the dense weights.
      mask, backward: the mask of the params, and of the weights that may move (None where all may).
      density: float32 scalar, the kept share once the plan's ramp has ended.
      step: int32 scalar.
    """

    path: str
    weight: jax.Array
    mask: jax.Array
    backward: jax.Array | None
    density: jax.Array
    step: jax.Array


Hook = Callable[[Latent], jax.Array]


class Engine(NamedTuple):
    """The arguments of `straight_through`, checked; `behind` chooses the weights that may move."""

    method: Method
    behind: Method | None
    gradient_term: Hook | None
    moves: Hook | None
    share: Callable[[jax.Array], Any] | None
    shrink: Callable[[jax.Array], Any] | None
    dense_dtype: Any
    wants_masks: bool


def straight_step(engine: Engine, grads: PyTree, state: SparseState, params: PyTree, extra_args: dict[str, Any]):
    """One step: (updates, state)."""
    if params is None:
        raise ValueError("a sparse transformation needs params: tx.update(grads, opt_state, params)")
    method, extra = engine.method, state.extra
    structure: Any = jax.tree.structure(params)
    weights = jax.tree.leaves(params)
    due = schedules.is_update(method.choice.plan, state.count)
    stored = flat_masks(params, state.masks)
    old = unpacked(stored, weights)
    specs = specs_of(params, stored, method.choice.pattern, method.choice.layout)
    behind, behind_table = extra.backward or (None, ())
    stored_backward = stored if behind is None else flat_masks(params, behind)
    backward = [None] * len(old) if behind is None else unpacked(stored_backward, weights)

    counts = old if engine.share is None else _everywhere(old, engine.share(state.count - 1))
    kept = flat_masks(params, extra.dense)
    dense = [w if m is None else dense_weight(m, w, d) for m, w, d in zip(counts, weights, kept, strict=True)]
    latents = _latents(engine, specs, dense, old, backward, state)
    seen = _gradients(engine, structure.flatten_up_to(grads), dense, old, latents)
    moving: list[Any] = [None] * len(old)
    inner_state, given = state.inner_state, dense
    if engine.moves is not None:
        for position, latent in latents.items():
            moving[position] = engine.moves(latent)
        inner_state = reset_off(method.inner, inner_state, structure.unflatten(dense), moving)
        seen, given = _laid(moving, seen), _laid(moving, dense)
    masks = {"masks": structure.unflatten(old)} if engine.wants_masks else {}
    step_tree, inner_state = method.inner.update(
        structure.unflatten(seen), inner_state, structure.unflatten(given), **extra_args, **masks
    )
    step = _laid(moving, structure.flatten_up_to(step_tree))
    moved = [v if m is None else (v + s).astype(v.dtype) for m, v, s in zip(old, dense, step, strict=True)]

    advanced = state._replace(inner_state=inner_state)
    chosen, chosen_backward, refused, memory = _branch(
        engine, specs, due, stored, stored_backward, behind_table, grads, advanced, structure.unflatten(moved)
    )
    new = unpacked(chosen, weights)
    if engine.shrink is not None:
        factor = engine.shrink(state.count)
        moved = [v if m is None else jnp.where(m, v, (factor * v).astype(v.dtype)) for m, v in zip(new, moved)]
    share = None if engine.share is None else engine.share(state.count)
    each = zip(step, weights, moved, old, new, strict=True)
    updates = structure.unflatten([_emit(*leaf, share) for leaf in each])
    after = [None if d is None else v.astype(d.dtype) for v, d in zip(moved, kept, strict=True)]
    dense_tree = with_masks(extra.dense, after)
    if behind is not None:
        behind = with_masks(behind, chosen_backward), behind_table
    extra = Straight(extra.table, dense_tree, behind or (), memory)
    count = optax.safe_increment(state.count)
    masks = with_masks(state.masks, chosen)
    return updates, SparseState(count, state.key, masks, inner_state, state.skipped + refused, extra)


def _everywhere(masks: list[Any], share: Any) -> list[Any]:
    """Where the params count: on the masks and, after a step with share 1, off them too."""
    return [None if mask is None else mask | (jnp.asarray(share) >= 1) for mask in masks]


def _latents(engine: Engine, specs: list[Spec], dense, masks, backward, state: SparseState) -> dict[int, Latent]:
    """What the hooks see of each sparsified leaf, by its position; empty without hooks."""
    if engine.gradient_term is None and engine.moves is None:
        return {}
    table, found = state.extra.table, {}
    for row, spec in enumerate(specs):
        i = spec.position
        if engine.method.choice.has_ramp:
            count = table[0 if engine.method.choice.one_budget else row, -1].astype(jnp.float32)
            sizes = [each.pattern.group_size(dense[each.position].shape, each.axes) for each in specs]
            size = sum(sizes) if engine.method.choice.one_budget else sizes[row]
            density = (count[0] * 65536 + count[1]) / size
        else:
            density = jnp.mean(masks[i], dtype=jnp.float32)
        found[i] = Latent(spec.path, dense[i], masks[i], backward[i], density, state.count)
    return found


def _gradients(engine: Engine, grads: list[Any], dense, masks, latents: dict[int, Latent]) -> list[Any]:
    """What the inner optimizer is given: the gradients in the dense weights' dtype, and the term."""
    seen = []
    for i, (grad, weight, mask) in enumerate(zip(grads, dense, masks, strict=True)):
        if mask is not None:
            grad = finite_off(mask, grad)
            if engine.dense_dtype is not None:
                grad = grad.astype(weight.dtype)
            if engine.gradient_term is not None:
                grad = grad + engine.gradient_term(latents[i]).astype(grad.dtype)
        seen.append(grad)
    return seen


def _laid(masks: list[Any], leaves: list[Any]) -> list[Any]:
    return [x if m is None else selected(m, x, jnp.zeros_like(x)) for m, x in zip(masks, leaves, strict=True)]


def _branch(engine: Engine, specs: list[Spec], due, old, backward, table, grads, state, dense):
    """The stored masks of this step, of the params and of what may move, the refused leaves, the memory."""
    none = jnp.zeros([], jnp.int32)
    if not specs:
        return old, backward, none, state.extra.memory
    there = lambda flat: [flat[spec.position] for spec in specs]

    def change():
        chosen, behind, refused, memory = choose_masks(engine, due, old, backward, table, grads, state, dense)
        return there(chosen), there(behind), refused, memory

    def stay():
        return there(old), there(backward), none, state.extra.memory

    chosen, behind, refused, memory = lax.cond(any_lane(due), change, stay)
    return placed(old, specs, chosen), placed(backward, specs, behind), refused, memory


def choose_masks(engine: Engine, due, old, backward, table, grads, state: SparseState, dense):
    """What `_branch` gives, by selection: the stored masks, those of what may move, the refused leaves, the memory."""
    method, extra = engine.method, state.extra
    specs = specs_of(dense, old, method.choice.pattern, method.choice.layout)
    told = extra.table if method.memory is None else Remembered(extra.table, extra.memory)
    chosen, refused, memory, _ = change_masks(method, specs, due, old, grads, state._replace(extra=told), dense)
    chosen = placed(old, specs, chosen)
    if engine.behind is None:
        return chosen, chosen, refused, memory
    wide = specs_of(dense, backward, engine.behind.choice.pattern, method.choice.layout)
    more, *_ = change_masks(engine.behind, wide, due, backward, grads, state._replace(extra=table), dense)
    return chosen, placed(backward, wide, more), refused, memory


def _emit(step, weight, dense, old, new, share) -> jax.Array:
    """One leaf's update: the inner step where the weight was and stays on the mask; else what makes it dense, or 0."""
    if old is None:
        return step
    dtype = jnp.promote_types(step.dtype, weight.dtype)
    to = lambda value: value.astype(weight.dtype).astype(dtype) - weight.astype(dtype)
    gone = -weight.astype(dtype)
    if share is not None:
        gone = jnp.where(jnp.asarray(share) > 0, to(share * dense), gone)
    comes = to(dense)
    stays = step.astype(dtype) if dense.dtype == weight.dtype else comes
    return jnp.where(new, jnp.where(old, stays, comes), gone)

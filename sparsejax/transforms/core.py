"""The wrapper that every method is: masks in the optimizer state, exactly sparse params after `optax.apply_updates`.

One step, in this order: (a) one branch on the step counter turns (params, gradients, masks, key) into masks, and
nothing else crosses it; (b) the new masks are laid on the gradients, the params and the incoming inner state; (c) the
inner step; (d) `-w` is emitted off the mask, so that `w + update` is exactly 0 there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sparsejax import schedules
from sparsejax.batching import any_lane
from sparsejax.leaves import Axes, Layout, Where, output_layers
from sparsejax.masks import apply_masks, flat_masks, map_masks, mask_tree, unpacked, with_masks
from sparsejax.packing import Packed, pack
from sparsejax.patterns import Pattern
from sparsejax.selection import Count, Scores, count_true
from sparsejax.selection.stored import opaque
from sparsejax.state import SparseState
from sparsejax.transforms.inner import params_shaped, reset_off
from sparsejax.transforms.lockstep import Known, run_each, run_together
from sparsejax.transforms.start import (
    Choice,
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
_STATIC = (  # arguments that `optax.inject_hyperparams` must not turn into arrays
    "sparsity", "masks", "distribution", "pattern", "where", "layout", "ties", "update_start", "update_end",
    "update_every", "initial_sparsity", "at_step", "skip_step", "drop_rounding", "regrow_dropped", "signed", "plan",
    "start", "seed", "packed", "rewire_end", "final_fraction", "threshold", "extra", "gradient_weight", "grow",
    "redistribute", "ablate", "saliency_threshold", "never_ablate",
)  # fmt: skip


def static_args(method: Callable[..., Any]) -> tuple[str, ...]:
    """The arguments of a method that are no rates, for `optax.inject_hyperparams`.

    Example:
      >>> tx = optax.inject_hyperparams(sparse_wrapper, static_args=static_args(sparse_wrapper))
    """
    return tuple(name for name in inspect.signature(method).parameters if name in _STATIC)


class Leaf(NamedTuple):
    """What a rule sees of one parameter at a mask update.

    Attributes:
      path: `Dense_0/kernel`.
      weight, grad, mask: arrays of the parameter's shape.
      keep: units to keep in each group of the pattern, a Count; `target`: the same once the plan's ramp has ended.
      fraction: the share of the kept units that moves (drop fraction), or None.
      key: PRNG key of this leaf and step.
      ties: None (lowest index first), or the PRNG key that breaks ties.
      step: int32 scalar.
      inner: the inner state's leaves that belong to this parameter, by path (`0/mu`).
      pattern, axes: the leaf's pattern, and its stacked, input and output axes.
      is_output: whether its name says that it is the output layer (`leaves.output_layers`).
    """

    path: str
    weight: jax.Array
    grad: jax.Array
    mask: jax.Array
    keep: Count
    target: Count
    fraction: jax.Array | None
    key: jax.Array
    ties: jax.Array | None
    step: jax.Array
    inner: dict[str, jax.Array]
    pattern: Pattern
    axes: Axes
    is_output: bool = False


class Remembered(NamedTuple):
    """The state's `extra` where a rule has a memory: a ramp's table of kept counts (or ()), and the memory."""

    table: Any
    memory: PyTree


NEVER = (schedules.fixed(),)
# A rule gives the mask, or is a generator that asks for selections on its way to it (see `transforms.rules`).
NewMask = Callable[[Leaf], jax.Array | Generator[Any, Any, jax.Array]]
NewMasks = Callable[..., Any]  # [list[Leaf]] -> list[jax.Array], or such a generator


class _Method(NamedTuple):
    """The arguments of `sparse_wrapper`, checked."""

    inner: optax.GradientTransformationExtraArgs
    new_mask: NewMask | None
    new_masks: NewMasks | None
    choice: Choice
    masks: PyTree
    memory: PyTree
    dense_moments: bool
    skip_step: bool
    ties: str
    seed: int | jax.Array
    packed: bool


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
    dense_moments: bool = False,
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
      dense_moments: whether the inner optimizer sees the gradients of all weights and keeps its moments off the mask.
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
    if any(phase.every for phase in plan) and (new_mask is None) == (new_masks is None):
        raise ValueError("sparse_wrapper needs either new_mask or new_masks")
    if ties not in ("index", "random"):
        raise ValueError(f"ties={ties!r}: 'index' or 'random'")
    if not isinstance(packed, bool):
        raise ValueError(f"packed={packed!r}: True or False")
    choice = checked_choice(sparsity, distribution, pattern, where, layout, start, plan, masks, new_masks)
    inner = optax.with_extra_args_support(inner)
    method = _Method(inner, new_mask, new_masks, choice, masks, memory, dense_moments, skip_step, ties, seed, packed)

    def init_fn(params: PyTree) -> SparseState:
        return _init(method, params)

    def update_fn(updates: PyTree, state: SparseState, params: PyTree = None, **extra_args: Any):
        return _update(method, updates, state, params, extra_args)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _init(method: _Method, params: PyTree) -> SparseState:
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
    inner_state = _copied(method.inner.init(seen), params)
    if method.memory is not None:
        extra = Remembered(extra, jax.tree.map(jnp.array, method.memory))
    return SparseState(jnp.zeros([], jnp.int32), key, masks, inner_state, jnp.zeros([], jnp.int32), extra)


def _reads_values(init: Callable[[PyTree], PyTree], params: PyTree) -> bool:
    """Whether an inner state holds more of the params than their shapes; masking them for nothing costs a second."""
    jaxpr = jax.make_jaxpr(init)(params).jaxpr
    read = {id(var) for equation in jaxpr.eqns for var in equation.invars} | {id(var) for var in jaxpr.outvars}
    return any(id(var) in read for var in jaxpr.invars)


def _copied(state: PyTree, params: PyTree) -> PyTree:
    """The inner state with its own copy of every array that it shares with the params, so that both can be donated."""
    shared = {id(leaf) for leaf in jax.tree.leaves(params)}
    return jax.tree.map(lambda leaf: jnp.array(leaf) if id(leaf) in shared else leaf, state)


def _update(method: _Method, grads: PyTree, state: SparseState, params: PyTree, extra_args: dict[str, Any]):
    if params is None:
        raise ValueError("a sparse transformation needs params: tx.update(grads, opt_state, params)")
    structure: Any = jax.tree.structure(params)
    due = schedules.is_update(method.choice.plan, state.count)
    stored, refused, memory = _next_masks(method, due, flat_masks(params, state.masks), grads, state, params)
    # Unpacked here, after the branch, which would store what it returns.
    new = unpacked(stored, jax.tree.leaves(params))
    masks = structure.unflatten(new)
    # Off the mask, moments are fresh on the way in at every step. A weight that comes in has thus seen one step with
    # neither gradient nor weight, which leaves the moments of most optimizers fresh (not rmsprop's initial scale).
    # Reading the old masks too, to reset at the change alone, keeps them alive beside the new ones: 1.9 x the bare
    # step, not 1.2 x.
    inner_state, seen = state.inner_state, grads
    if method.dense_moments:
        seen = map_masks(_finite_off, masks, grads)
    else:
        inner_state, seen = reset_off(method.inner, inner_state, params, new), apply_masks(grads, masks)
    step, inner_state = method.inner.update(seen, inner_state, apply_masks(params, masks), **extra_args)
    hold = due if method.skip_step else None
    leaves = zip(structure.flatten_up_to(step), jax.tree.leaves(params), new, strict=True)
    updates = structure.unflatten([_emit(*each, hold) for each in leaves])
    count = optax.safe_increment(state.count)
    masks = with_masks(state.masks, stored)
    extra = state.extra if method.memory is None else state.extra._replace(memory=memory)
    return updates, SparseState(count, state.key, masks, inner_state, state.skipped + refused, extra)


def _finite_off(mask: jax.Array | None, grad: jax.Array) -> jax.Array:
    """The gradient, without what is not finite off the mask: it harms no weight, but would stay in the moments."""
    return grad if mask is None else jnp.where(mask | jnp.isfinite(grad), grad, jnp.zeros_like(grad))


def _next_masks(method: _Method, due, old, grads, state, params) -> tuple[list[Any], jax.Array, PyTree]:
    """The masks of this step, as they are stored, how many leaves were refused, the memory: the step's only branch."""
    specs = specs_of(params, old, method.choice.pattern, method.choice.layout)
    none_refused = jnp.zeros([], jnp.int32)
    memory = () if method.memory is None else state.extra.memory
    if not specs or not any(phase.every for phase in method.choice.plan):
        return old, none_refused, memory

    before = [old[spec.position] for spec in specs]

    def change():
        masks = unpacked(old, jax.tree.leaves(params))
        known = {id(mask): packed for mask, packed in zip(masks, old, strict=True) if isinstance(packed, Packed)}
        leaves = _leaves_at(method, specs, masks, grads, state, params)
        chosen, refused, new_memory = _changed(method, due, leaves, known, memory)
        packed = [pack(m, o.axis) if isinstance(o, Packed) else m for o, m in zip(before, chosen, strict=True)]
        return packed, refused, new_memory

    def stay():
        return before, none_refused, memory

    chosen, refused, memory = lax.cond(any_lane(due), change, stay)
    new = list(old)
    for spec, mask in zip(specs, chosen, strict=True):
        new[spec.position] = mask
    return new, refused, memory


def _leaves_at(method: _Method, specs: list[Spec], masks, grads, state: SparseState, params) -> list[Leaf]:
    """What the rule sees of each sparsified leaf."""
    structure: Any = jax.tree.structure(params)
    weights, gradients = lax.stop_gradient((jax.tree.leaves(params), structure.flatten_up_to(grads)))
    owned = params_shaped(state.inner_state, params)
    fraction = schedules.drop_fraction(method.choice.plan, state.count)
    table = last = None
    if method.choice.has_ramp:
        counts = state.extra.table if isinstance(state.extra, Remembered) else state.extra
        table, last = counts[:, schedules.ramp_index(method.choice.plan, state.count)], counts[:, -1]
    rows = (
        opaque(range(len(specs)))
        if table is not None and not method.choice.one_budget
        else [jnp.uint32(0)] * len(specs)
    )
    outputs = output_layers([spec.path for spec in specs])
    leaves = []
    for row, spec in zip(rows, specs, strict=True):
        i = spec.position
        key = jax.random.fold_in(leaf_key(state.key, spec.path), state.count)
        leaf = Leaf(
            path=spec.path,
            weight=weights[i],
            grad=gradients[i],
            mask=masks[i],
            keep=(keep := _keep(table, row, spec, masks[i])),
            target=keep if last is None else _keep(last, row, spec, masks[i]),
            fraction=fraction,
            key=key,
            ties=jax.random.fold_in(key, 1) if method.ties == "random" else None,
            step=state.count,
            inner=owned[i],
            pattern=spec.pattern,
            axes=spec.axes,
            is_output=spec.path in outputs,
        )
        leaves.append(leaf)
    return leaves


def _keep(table: jax.Array | None, row: jax.Array, spec: Spec, mask: jax.Array) -> Count:
    """Units to keep in each group: by the ramp's table, or without a ramp as many as now."""
    if table is not None:
        return Count(*lax.dynamic_index_in_dim(table, row, keepdims=False))
    active = spec.pattern.units(mask.astype(jnp.float32), spec.axes) > 0
    return count_true([active], spec.pattern.group_axes(mask.shape, spec.axes))[0]


def _changed(
    method: _Method, due: jax.Array, leaves: list[Leaf], known: Known, memory: PyTree
) -> tuple[list[jax.Array], jax.Array, PyTree]:
    """New masks where this lane's update is due and the leaf is finite; how many leaves were not; the memory after."""
    proposed, finite = _proposed(method, leaves, known, memory)
    if method.memory is not None:
        proposed, remembered = proposed
        kept = due & jnp.stack(finite).all()
        memory = jax.tree.map(lambda new, old: jnp.where(kept, new, old), remembered, memory)
    accept = [jnp.stack(finite).all()] * len(leaves) if method.new_masks is not None else finite
    chosen = [jnp.where(due & ok, new, leaf.mask) for new, ok, leaf in zip(proposed, accept, leaves, strict=True)]
    return chosen, jnp.where(due, jnp.sum(~jnp.stack(finite), dtype=jnp.int32), 0), memory


def _proposed(method: _Method, leaves: list[Leaf], known: Known, memory: PyTree) -> tuple[Any, list[jax.Array]]:
    """The masks that the rule gives, and whether each leaf is finite: a rule in steps counts that as it selects."""
    if method.new_masks is not None:  # ranked together: one leaf that is not finite upsets the count of all
        masks = method.new_masks(leaves) if method.memory is None else method.new_masks(leaves, memory)
        if isinstance(masks, Generator):
            return run_together(masks, [_finite_units(leaf) for leaf in leaves], known)
        return masks, [_is_finite(leaf) for leaf in leaves]
    assert method.new_mask is not None
    found: list[Any] = [method.new_mask(leaf) for leaf in leaves]
    steps = [i for i, each in enumerate(found) if isinstance(each, Generator)]
    masks, finite = run_each([found[i] for i in steps], [_finite_units(leaves[i]) for i in steps], known)
    for i, mask in zip(steps, masks, strict=True):
        found[i] = mask
    told = dict(zip(steps, finite, strict=True))
    return found, [told[i] if told.get(i) is not None else _is_finite(leaf) for i, leaf in enumerate(leaves)]


def _is_finite(leaf: Leaf) -> jax.Array:
    return jnp.all(jnp.isfinite(leaf.weight)) & jnp.all(jnp.isfinite(leaf.grad))


def _finite_units(leaf: Leaf) -> Scores:
    """Which units of the leaf have a finite weight and gradient throughout."""
    both = lambda weight, grad: jnp.isfinite(weight) & jnp.isfinite(grad)
    units = [leaf.pattern.units(x, leaf.axes) for x in (leaf.weight, leaf.grad)]
    if units[0].size == leaf.weight.size:
        return Scores(both, tuple(units))
    pooled = leaf.pattern.units(both(leaf.weight, leaf.grad).astype(jnp.float32), leaf.axes)
    return Scores(lambda share: share >= 1, (pooled,))


def _emit(step: jax.Array, weight: jax.Array, mask: jax.Array | None, hold: jax.Array | None) -> jax.Array:
    """One leaf's update: the inner step on the mask (0 where `hold`), -w off it, in a dtype that holds -w exactly."""
    if hold is not None:
        step = jnp.where(hold, jnp.zeros_like(step), step)
    if mask is None:
        return step
    dtype = jnp.promote_types(step.dtype, weight.dtype)
    return jnp.where(mask, step.astype(dtype), -weight.astype(dtype))

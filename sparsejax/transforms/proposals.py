"""What a rule sees of a leaf, and how the masks that it proposes become those of the step: inside the branch.

`change_masks` is what the wrappers run where an update is due: the rules of all leaves select together, a leaf that is
not finite keeps its mask, and so does a lane whose update is not due.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sparsejax import schedules
from sparsejax.leaves import Axes, output_layers
from sparsejax.masks import unpacked
from sparsejax.packing import Packed, pack, sharded_as
from sparsejax.patterns import Pattern
from sparsejax.selection import Count, Scores, count_true
from sparsejax.selection.stored import opaque
from sparsejax.state import SparseState
from sparsejax.transforms.inner import params_shaped
from sparsejax.transforms.lockstep import Known, run_each, run_together
from sparsejax.transforms.start import Choice, Spec, leaf_key

PyTree = Any


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
      extra, memory: of reparametrized methods, the leaf's trained array and the one that is kept, or None.
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
    extra: Any = None
    memory: Any = None


class Adjusted(NamedTuple):
    """What a rule returns that gives a leaf's kept weights new values too.

    Attributes:
      mask: bool.
      weight: of the parameter's shape; what is off the mask is not read.
    """

    mask: jax.Array
    weight: jax.Array


class Remembered(NamedTuple):
    """The state's `extra` where a rule has a memory: a ramp's table of kept counts (or ()), and the memory."""

    table: Any
    memory: PyTree


NEVER = (schedules.fixed(),)
# A rule gives the mask, or is a generator that asks for selections on its way to it (see `transforms.rules`).
NewMask = Callable[[Leaf], jax.Array | Generator[Any, Any, jax.Array]]
NewMasks = Callable[..., Any]  # [list[Leaf]] -> list[jax.Array], or such a generator


class Method(NamedTuple):
    """The arguments of `sparse_wrapper`, checked."""

    inner: optax.GradientTransformationExtraArgs
    new_mask: NewMask | None
    new_masks: NewMasks | None
    choice: Choice
    masks: PyTree = None
    memory: PyTree = None
    adjusts: bool = False
    many_gradients: bool = False
    dense_moments: bool = False
    reset_moments: bool = False
    skip_step: bool = False
    ties: str = "index"
    seed: int | jax.Array = 0
    packed: bool = False


def change_masks(
    method: Method,
    specs: list[Spec],
    due: jax.Array,
    old: list[Any],
    grads: PyTree,
    state: SparseState,
    params: PyTree,
    grads_fn: Callable[..., PyTree] | None = None,
) -> tuple[list[Any], jax.Array, PyTree, Any]:
    """New masks of the specs' leaves, as stored; how many leaves were refused; the memory; new weights: in a branch."""
    memory = () if method.memory is None else state.extra.memory
    masks = unpacked(old, jax.tree.leaves(params))
    known = {id(mask): packed for mask, packed in zip(masks, old, strict=True) if isinstance(packed, Packed)}
    leaves = leaves_at(method, specs, masks, grads, state, params)
    further = _gradients_of(grads_fn, specs, params) if grads_fn is not None else None
    chosen, refused, new_memory, values = _changed(method, due, leaves, known, memory, further)
    before = [old[spec.position] for spec in specs]
    packed = [pack(m, o.axis) if isinstance(o, Packed) else m for o, m in zip(before, chosen, strict=True)]
    return packed, refused, new_memory, values


def _gradients_of(grads_fn: Callable[..., PyTree], specs: list[Spec], params: PyTree) -> Callable[..., Any]:
    """`grads_fn` in terms of the masked leaves alone."""
    structure: Any = jax.tree.structure(params)

    def gradients(weights: list[jax.Array], i: jax.Array) -> list[jax.Array]:
        leaves = jax.tree.leaves(params)
        for spec, weight in zip(specs, weights, strict=True):
            leaves[spec.position] = weight
        found = structure.flatten_up_to(grads_fn(structure.unflatten(leaves), i))
        return [found[spec.position] for spec in specs]

    return gradients


def placed(flat: list[Any], specs: list[Spec], values: list[Any]) -> list[Any]:
    """A flat tree with other values at the sparsified leaves."""
    new = list(flat)
    for spec, value in zip(specs, values, strict=True):
        new[spec.position] = value
    return new


def leaves_at(method: Method, specs: list[Spec], masks, grads, state: SparseState, params) -> list[Leaf]:
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
    method: Method, due: jax.Array, leaves: list[Leaf], known: Known, memory: PyTree, further: Any
) -> tuple[list[jax.Array], jax.Array, PyTree, Any]:
    """New masks where this lane's update is due and the leaf is finite; how many leaves were not; the memory after.

    And the new weights, of a method that gives some.
    """
    proposed, finite = proposed_masks(method, leaves, known, memory, further)
    if method.memory is not None:
        proposed, remembered = proposed
        kept = due & jnp.stack(finite).all()
        memory = jax.tree.map(lambda new, old: jnp.where(kept, new, old), remembered, memory)
    values: Any = ()
    if method.adjusts:
        proposed, values = zip(*proposed, strict=True)
        sound = [jnp.isfinite(value).all() for value in values]
        finite = [a & b for a, b in zip(finite, sound, strict=True)]
    accept = [jnp.stack(finite).all()] * len(leaves) if method.new_masks is not None else finite
    if method.adjusts:
        changes = zip(values, accept, leaves, strict=True)
        values = [
            jnp.where(due & ok, sharded_as(new, leaf.weight).astype(leaf.weight.dtype), leaf.weight)
            for new, ok, leaf in changes
        ]
    both = zip(proposed, accept, leaves, strict=True)
    chosen = [jnp.where(due & ok, sharded_as(new, leaf.mask), leaf.mask) for new, ok, leaf in both]
    return chosen, jnp.where(due, jnp.sum(~jnp.stack(finite), dtype=jnp.int32), 0), memory, values


def proposed_masks(
    method: Method, leaves: list[Leaf], known: Known, memory: PyTree, further: Any = None
) -> tuple[Any, list[jax.Array]]:
    """The masks that the rule gives, and whether each leaf is finite: a rule in steps counts that as it selects."""
    if method.new_masks is not None:  # ranked together: one leaf that is not finite upsets the count of all
        remembered = () if method.memory is None else (memory,)
        masks = method.new_masks(leaves, *remembered, *(() if further is None else (further,)))
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

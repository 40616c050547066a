"""The wrapper that every method is: masks in the optimizer state, exactly sparse params after `optax.apply_updates`.

One step, in this order: (a) one branch on the step counter turns (params, gradients, masks, key) into masks, and
nothing else crosses it; (b) the new masks are laid on the gradients, the params and the incoming inner state; (c) the
inner step; (d) `-w` is emitted off the mask, so that `w + update` is exactly 0 there.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sparsejax import schedules
from sparsejax.leaves import Axes, Layout, Where, checked_axes, leaf_path, select_leaves
from sparsejax.masks import apply_masks
from sparsejax.patterns import NM, Pattern, check_pattern_globs, kept_units, pattern_of
from sparsejax.selection import Count, Scores, count_true, order_key, select
from sparsejax.state import SparseState
from sparsejax.transforms.batching import any_lane
from sparsejax.transforms.inner import params_shaped, reset_off

PyTree = Any
Distribution = Callable[..., PyTree]
static_args = ("sparsity", "masks", "distribution", "pattern", "where", "layout", "ties", "update_start", "update_end", "update_every",
               "initial_sparsity", "at_step", "skip_step", "drop_rounding", "regrow_dropped", "signed", "plan", "start", "seed")  # fmt: skip


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


NewMask = Callable[[Leaf], jax.Array]
NewMasks = Callable[[list[Leaf]], list[jax.Array]]


class _Spec(NamedTuple):
    """The static facts of one sparsified leaf."""

    index: int
    path: str
    axes: Axes
    pattern: Pattern


def _specs(tree: PyTree, chosen: list[Any], pattern: Any, layout: Layout | None) -> list[_Spec]:
    """One spec for each leaf of `tree` that `chosen` does not give as None."""
    specs = []
    for index, ((key_path, leaf), choice) in enumerate(zip(jax.tree_util.tree_leaves_with_path(tree), chosen, strict=True)):
        if choice is not None:
            path = leaf_path(key_path)
            specs.append(_Spec(index, path, checked_axes(layout, path, leaf), pattern_of(pattern, path)))
    return specs


def _mask_list(params: PyTree, masks: PyTree) -> list[jax.Array | None]:
    flat = jax.tree.structure(params).flatten_up_to(masks)
    return [None if isinstance(mask, optax.MaskedNode) else mask for mask in flat]


def _checked_sparsity(sparsity: Any, pattern: Any, distribution: Any) -> float | None:
    """The sparsity as a float, from the pattern where that is N:M; ValueError where the three do not agree."""
    if isinstance(pattern, NM):
        implied = 1 - pattern.n / pattern.m
        if distribution is not None:
            raise ValueError(f"distribution: {pattern.n}:{pattern.m} fixes the density of every layer; leave distribution out")
        if sparsity is not None and abs(sparsity - implied) > 1e-9:
            raise ValueError(f"sparsity={sparsity} does not agree with pattern nm({pattern.n}, {pattern.m}), which is {implied}; leave sparsity out")
        return implied
    if sparsity is None:
        return None
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)) and not hasattr(sparsity, "__float__"):
        raise ValueError(f"sparsity={sparsity!r} must be a number in [0, 1)")
    if isinstance(sparsity, jax.core.Tracer):
        raise ValueError("sparsity must be a Python number: counts are exact integers; list it in inject_hyperparams(static_args=sparsejax.static_args)")
    if not 0 <= float(sparsity) < 1:
        raise ValueError(f"sparsity={sparsity} must lie in [0, 1): the fraction of weights that are zero")
    return float(sparsity)


def _densities(selected: PyTree, specs: list[_Spec], sparsity: float, distribution: Distribution, layout: Layout | None) -> list[float]:
    """The density of each spec's leaf; N:M leaves have their own, the rest share by the distribution."""
    flat = jax.tree.leaves(selected, is_leaf=lambda leaf: leaf is None)
    fixed = {spec.index: spec.pattern.n / spec.pattern.m for spec in specs if isinstance(spec.pattern, NM)}
    free = jax.tree.unflatten(_leaf_structure(selected), [None if i in fixed else leaf for i, leaf in enumerate(flat)])
    shared: dict[int, float] = {}
    if len(fixed) < len(specs):
        found = jax.tree.leaves(distribution(free, 1 - sparsity, layout), is_leaf=lambda leaf: leaf is None)
        shared = {i: density for i, density in enumerate(found) if density is not None}
    for spec in specs:
        value = {**shared, **fixed}.get(spec.index)
        if value is None or not 0 < value <= 1 + 1e-9:
            raise ValueError(f"distribution: {spec.path} was given density {value}; each layer needs one in (0, 1]")
    return [min({**shared, **fixed}[spec.index], 1.0) for spec in specs]


def _leaf_structure(tree: PyTree) -> Any:
    return jax.tree.structure(tree, is_leaf=lambda leaf: leaf is None)


def _beside(mask: jax.Array, weight: jax.Array) -> jax.Array:
    """The mask, tied to the weight so that the compiler shards it alike; the comparison never holds, which it cannot know."""
    key = order_key(weight)
    return mask ^ (key == jnp.array(jnp.iinfo(key.dtype).max, key.dtype))


def _start_masks(start: Any, params: PyTree, specs: list[_Spec], keeps: list[int], key: jax.Array, ties: str) -> list[jax.Array]:
    """The masks at init: all True ("dense"), or drawn at random with the kept counts ("random")."""
    leaves = jax.tree.leaves(params)
    masks = []
    for spec, keep in zip(specs, keeps, strict=True):
        weight = leaves[spec.index]
        if start == "dense":
            mask = jnp.ones(weight.shape, bool)
        else:
            bits = jax.random.bits(leaf_key(key, spec.path), weight.shape, jnp.uint32)
            units = Scores(order_key, (spec.pattern.units(bits, spec.axes),))
            chosen = select(units, keep, spec.pattern.group_axes(weight.shape, spec.axes))
            mask = spec.pattern.expand(chosen, weight.shape, spec.axes)
        masks.append(_beside(mask, weight))
    return masks


def _given_masks(params: PyTree, masks: PyTree) -> list[jax.Array | None]:
    """Copies of the masks that the user hands over, checked against the params."""
    structure = jax.tree.structure(params)
    try:
        flat = structure.flatten_up_to(masks)
    except ValueError as error:
        raise ValueError(f"masks: the tree does not fit the params ({error}); give the params' tree with a bool array or None at each leaf") from None
    copies: list[jax.Array | None] = []
    for (path, leaf), mask in zip(jax.tree_util.tree_leaves_with_path(params), flat, strict=True):
        if mask is None or isinstance(mask, optax.MaskedNode):
            copies.append(None)
        elif getattr(mask, "shape", None) != leaf.shape or mask.dtype != jnp.bool_:
            raise ValueError(f"masks: {leaf_path(path)} must be None or a bool array of shape {leaf.shape}, not {getattr(mask, 'dtype', type(mask).__name__)}{getattr(mask, 'shape', '')}")
        else:
            copies.append(_beside(jnp.array(mask), leaf))
    return copies


def leaf_key(key: jax.Array, path: str) -> jax.Array:
    """A PRNG key for one leaf: it depends on the leaf's path alone, not on the tree around it."""
    return jax.random.fold_in(jax.random.wrap_key_data(key), zlib.crc32(path.encode()))


def _keep_table(units: int, sparsity: float, plan: schedules.Plan) -> list[list[int]]:
    """Units kept after each update of the plan's ramp, in two words, from float64 arithmetic on the host."""
    counts = [kept_units(units, sparsity * share) for share in schedules.ramp_values(plan)]
    return [[count >> 16, count & 0xFFFF] for count in counts]


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
    plan: schedules.Plan = (schedules.fixed(),),
    start: str = "dense",
    sparsity: float | None = None,
    masks: PyTree = None,
    distribution: Distribution | str | None = None,
    pattern: Pattern | Mapping[str, Pattern] | None = None,
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
      distribution: `(params, density, layout) -> tree of densities`; None is uniform; "global": one budget for all leaves.
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
    if (new_mask is None) == (new_masks is None) and any(phase.every for phase in plan):
        raise ValueError("sparse_wrapper needs either new_mask or new_masks")
    schedules.check_plan(plan)
    if start not in ("dense", "random"):
        raise ValueError(f"start={start!r}: 'dense' or 'random'")
    if ties not in ("index", "random"):
        raise ValueError(f"ties={ties!r}: 'index' or 'random'")
    one_budget = distribution == "global"
    if isinstance(distribution, str) and not one_budget:
        raise ValueError(f"distribution={distribution!r}: a function of sparsejax.distributions, or 'global'")
    if one_budget and new_masks is None:
        raise ValueError("distribution='global' needs a method that ranks over all leaves: gmp or one_shot")
    if one_budget and pattern is not None:
        raise ValueError("distribution='global' ranks single weights; leave pattern out")
    target = _checked_sparsity(sparsity, pattern, distribution)
    if masks is None and target is None:
        raise ValueError("sparsity is missing: a fraction of zeros in [0, 1)")
    inner = optax.with_extra_args_support(inner)
    changes = any(phase.every for phase in plan)
    has_ramp = schedules.ramp_of(plan) is not None

    def init_fn(params: PyTree) -> SparseState:
        key = jax.random.key_data(jax.random.key(seed))
        flat, extra = _init_masks(params, key)
        tree = jax.tree.unflatten(jax.tree.structure(params), flat)
        inner_state = _copied(inner.init(apply_masks(params, tree)), params)
        zero = jnp.zeros([], jnp.int32)
        return SparseState(zero, key, tree, inner_state, zero, extra)

    def _init_masks(params, key):
        leaves = jax.tree.leaves(params)
        if masks is not None and leaves:
            return _given_masks(params, masks), ()
        selected = select_leaves(params, where)
        check_pattern_globs(pattern, [leaf_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)])
        flat = jax.tree.leaves(selected, is_leaf=lambda leaf: leaf is None)[: len(leaves)] if leaves else []
        specs = _specs(params, flat, pattern, layout)
        specs = [spec for spec in specs if spec.pattern.check(spec.path, leaves[spec.index].shape, spec.axes)]
        flat = [flat[i] if any(spec.index == i for spec in specs) else None for i in range(len(leaves))]
        selected = jax.tree.unflatten(jax.tree.structure(params), flat)
        sizes = [spec.pattern.group_size(leaves[spec.index].shape, spec.axes) for spec in specs]
        if one_budget:
            tables = [_keep_table(sum(leaves[spec.index].size for spec in specs), target, plan)]
            keeps = sizes
        else:
            densities = _densities(selected, specs, target, distribution or _uniform, layout) if specs else []
            keeps = [kept_units(size, 1 - density) for size, density in zip(sizes, densities, strict=True)]
            tables = [_keep_table(size, 1 - density, plan) for size, density in zip(sizes, densities, strict=True)]
        made = _start_masks(start, params, specs, keeps, key, ties)
        for spec, mask in zip(specs, made, strict=True):
            flat[spec.index] = mask
        shape = (len(tables), len(schedules.ramp_values(plan)), 2)
        return flat, (jnp.asarray(tables, jnp.uint32).reshape(shape) if has_ramp else ())

    def _keep(extra, row: int, step, spec: _Spec, mask):
        if has_ramp:
            return Count(*extra[row, schedules.ramp_index(plan, step)])
        units = spec.pattern.units(mask.astype(jnp.float32), spec.axes) > 0
        return count_true([units], spec.pattern.group_axes(mask.shape, spec.axes))[0]

    def _leaves_at(step, params, grads, state, specs, flat) -> list[Leaf]:
        weights, gradients = jax.tree.leaves(params), jax.tree.structure(params).flatten_up_to(grads)
        owned = params_shaped(state.inner_state, params)
        fraction = schedules.drop_fraction(plan, step)
        leaves = []
        for row, spec in enumerate(specs):
            key = jax.random.fold_in(leaf_key(state.key, spec.path), step)
            draw = jax.random.fold_in(key, 1) if ties == "random" else None
            mask = flat[spec.index]
            keep = _keep(state.extra, 0 if one_budget else row, step, spec, mask)
            weight, grad = lax.stop_gradient((weights[spec.index], gradients[spec.index]))
            leaves.append(Leaf(spec.path, weight, grad, mask, keep, fraction, key, draw, step, owned[spec.index], spec.pattern, spec.axes))
        return leaves

    def _changed(due, leaves: list[Leaf]) -> tuple[list[jax.Array], jax.Array]:
        """New masks where this lane's update is due and the leaf is finite; and how many leaves were not."""
        finite = [_finite(leaf) for leaf in leaves]
        if new_masks is not None:  # one ranking over all leaves: a leaf that is not finite would upset the count of the rest
            every = jnp.stack(finite).all()
            proposed, accept = new_masks(leaves), [every] * len(leaves)
        else:
            proposed, accept = [new_mask(leaf) for leaf in leaves], finite
        chosen = [jnp.where(due & ok, new, leaf.mask) for new, ok, leaf in zip(proposed, accept, leaves, strict=True)]
        refused = sum((~ok).astype(jnp.int32) for ok in finite)
        return chosen, jnp.where(due, refused, 0)

    def update_fn(updates: PyTree, state: SparseState, params: PyTree = None, **extra_args: Any) -> tuple[PyTree, SparseState]:
        if params is None:
            raise ValueError("a sparse transformation needs params: tx.update(grads, opt_state, params)")
        structure = jax.tree.structure(params)
        old = _mask_list(params, state.masks)
        specs = _specs(params, old, pattern, layout)
        new, skipped, due = list(old), state.skipped, None
        if changes and specs:
            due = schedules.is_update(plan, state.count)

            def change():
                return _changed(due, _leaves_at(state.count, params, updates, state, specs, old))

            def stay():
                return [old[spec.index] for spec in specs], jnp.zeros([], jnp.int32)

            chosen, refused = lax.cond(any_lane(due), change, stay)
            skipped = state.skipped + refused
            for spec, mask in zip(specs, chosen, strict=True):
                new[spec.index] = mask
        masks_tree = structure.unflatten(new)
        sparse_params, sparse_grads = apply_masks(params, masks_tree), apply_masks(updates, masks_tree)
        same = [None if m is None else m if m is o else m & o for m, o in zip(new, old, strict=True)]
        inner_state = reset_off(inner, state.inner_state, params, same)
        step, inner_state = inner.update(sparse_grads, inner_state, sparse_params, **extra_args)
        hold = due if skip_step else None
        emitted = [_emit(*each, hold) for each in zip(structure.flatten_up_to(step), jax.tree.leaves(params), new, strict=True)]
        count = optax.safe_increment(state.count)
        return structure.unflatten(emitted), SparseState(count, state.key, masks_tree, inner_state, skipped, state.extra)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _emit(step: jax.Array, weight: jax.Array, mask: jax.Array | None, hold: jax.Array | None) -> jax.Array:
    """The update of one leaf: the inner step on the mask (0 where `hold`), -w off it, in a dtype that holds -w exactly."""
    if hold is not None:
        step = jnp.where(hold, jnp.zeros_like(step), step)
    if mask is None:
        return step
    dtype = jnp.promote_types(step.dtype, weight.dtype)
    return jnp.where(mask, step.astype(dtype), -weight.astype(dtype))


def _uniform(params: PyTree, density: float, layout: Layout | None) -> PyTree:
    del layout
    return jax.tree.map(lambda leaf: density, params)

"""The wrapper of the straight-through methods: dense weights are trained, the params are what a mask leaves of them.

The loss's gradient at the sparse params is the straight-through gradient of the dense weights; `straight_step` has a
step's order.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax import schedules
from sparsejax.leaves import Layout, Where
from sparsejax.masks import mask_tree
from sparsejax.packing import pack
from sparsejax.patterns import NM, kept_units
from sparsejax.state import SparseState, Straight
from sparsejax.transforms.core import copied
from sparsejax.transforms.proposals import Method, NewMask, NewMasks
from sparsejax.transforms.start import Distribution, Patterns, checked_choice, starting_masks
from sparsejax.transforms.straight_step import Engine, Hook, Latent, choose_masks, straight_step

PyTree = Any


def straight_through(
    inner: optax.GradientTransformation,
    new_mask: NewMask | None = None,
    *,
    new_masks: NewMasks | None = None,
    plan: schedules.Plan,
    gradient_term: Hook | None = None,
    backward_sparsity: float | None = None,
    moves: Hook | None = None,
    share: Callable[[jax.Array], Any] | None = None,
    shrink: Callable[[jax.Array], Any] | None = None,
    dense_dtype: Any = None,
    wants_masks: bool | None = None,
    sparsity: float | None = None,
    distribution: Distribution | str | None = None,
    pattern: Patterns = None,
    where: Where | None = None,
    layout: Layout | None = None,
    memory: PyTree = None,
    ties: str = "index",
    seed: int | jax.Array = 0,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that it trains dense weights by their gradient at the masked ones, which the params are.

    v = where(mask, params, stored); v += inner step(g + term, v); mask = new_mask(v) where the plan is due;
    params = where(mask, v, 0). On the mask the params count, whatever has been done to them (clipped, averaged,
    restored); off it the stored weights do. Where the plan is due at step 0, the masks at init are chosen as well,
    unless there is a `share`.

    Args:
      inner: the optimizer. It sees dense weights and the gradients of all of them; those off the mask that are not
        finite count as 0. Its moments are never reset. Where its update has an argument named `masks`, it is given the
        masks of the step: the params' tree, None at dense leaves.
      new_mask, new_masks, plan, memory: as in `sparse_wrapper`; a leaf's weight is the dense one, after the step.
      gradient_term: `(latent: Latent) -> array`, added to the gradient.
      backward_sparsity: if given, only the weights that the same rule keeps at this sparsity, which are chosen together
        with the masks, have a gradient, moments and a step.
      moves: `(latent: Latent) -> mask` of the weights that do, in place of `latent.backward`.
      share: `step -> [0, 1]`: after a step, off the mask the params are share x dense, not 0, and are exactly sparse
        once it is 0. After a step with share 1 they are the dense weights, and count everywhere.
      shrink: `step -> factor` of the dense weights off the mask, after the step.
      dense_dtype: of the stored weights, of which the inner step is taken: float32 masters for bfloat16 params. On the
        mask they count as long as they round to the params. Leaves without a mask have none. None: the params' dtype.
      wants_masks: whether inner is given masks; None: told by its signature, which `optax.chain` hides.
      sparsity, distribution, pattern, where, layout, ties, seed, packed: see `sparse_wrapper`; None is uniform.

    Returns:
      A transformation with a `SparseState`, of which `get_masks` and `get_dense` read.

    Raises:
      ValueError: an argument is out of range, here or in `init`.

    Example:
      >>> from sparsejax.transforms import choose_best
      >>> tx = straight_through(optax.sgd(0.1), choose_best, plan=every_step(), pattern=sparsejax.nm(1, 2))
      >>> params = {"kernel": jnp.array([[2.0, 1.0], [1.5, 3.0]])}
      >>> state = tx.init(params)
      >>> params = sparsejax.apply_masks(params, sparsejax.get_masks(state))
      >>> updates, state = tx.update({"kernel": jnp.array([[10.0, 0.0], [0.0, 0.0]])}, state, params)
      >>> optax.apply_updates(params, updates)["kernel"].tolist()
      [[0.0, 0.0], [1.5, 3.0]]
    """
    if (new_mask is None) == (new_masks is None):
        raise ValueError("straight_through needs either new_mask or new_masks")
    if ties not in ("index", "random"):
        raise ValueError(f"ties={ties!r}: 'index' or 'random'")
    if not isinstance(packed, bool):
        raise ValueError(f"packed={packed!r}: True or False")
    if wants_masks is None:
        wants_masks = "masks" in inspect.signature(inner.update).parameters
    choice = checked_choice(sparsity, distribution, pattern, where, layout, "dense", plan, None, new_masks)
    inner = optax.with_extra_args_support(inner)
    method = Method(
        inner=inner,
        new_mask=new_mask,
        new_masks=new_masks,
        choice=choice,
        memory=memory,
        dense_moments=True,
        ties=ties,
        seed=seed,
        packed=packed,
    )
    behind = None
    if backward_sparsity is not None:
        wider = wider_pattern(pattern, backward_sparsity)
        implied = None if isinstance(wider, NM) else backward_sparsity
        checked = checked_choice(implied, distribution, wider, where, layout, "dense", plan, None, new_masks)
        behind = method._replace(choice=checked, memory=None)
        moves = moves or _behind
    engine = Engine(method, behind, gradient_term, moves, share, shrink, dense_dtype, wants_masks)

    def init_fn(params: PyTree) -> SparseState:
        return _init(engine, params)

    def update_fn(updates: PyTree, state: SparseState, params: PyTree = None, **extra_args: Any):
        return straight_step(engine, updates, state, params, extra_args)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _behind(latent: Latent) -> jax.Array:
    assert latent.backward is not None
    return latent.backward


def every_step(until: int | None = None, start: int = 0, every: int = 1) -> schedules.Plan:
    """The plan that has dense masks until `start` and chooses them anew from it on, to `until`, where they are fixed.

    Example:
      >>> [bool(schedules.is_update(every_step(4, 2), t)) for t in range(6)]
      [False, False, True, True, True, False]
    """
    last = () if until is None else (schedules.fixed(),)
    # The ramp has no length: at `start` the kept counts become the target's, whatever the masks were before.
    return (schedules.dense(start), schedules.gradual(start, 1), schedules.anew(every, until), *last)


def _init(engine: Engine, params: PyTree) -> SparseState:
    method = engine.method
    key = jax.random.key_data(jax.random.key(method.seed))
    flat: list[Any]
    flat, table = starting_masks(params, method.choice, key)
    backward: list[Any] = flat
    behind_table: Any = ()
    if engine.behind is not None:
        backward, behind_table = starting_masks(params, engine.behind.choice, key)
    leaves = jax.tree.leaves(params)
    structure: Any = jax.tree.structure(params)
    wide = engine.dense_dtype
    dense = [w if m is None else jnp.array(w, wide) for m, w in zip(flat, leaves, strict=True)]
    latent = structure.unflatten(dense)
    inner_state = copied(method.inner.init(latent), latent)
    none = jnp.zeros([], jnp.int32)
    memory = () if method.memory is None else jax.tree.map(jnp.array, method.memory)
    extra = Straight(table, mask_tree(params, _masked(dense, flat)), (), memory)

    def first(flat, backward, latent, inner_state, extra, behind_table):
        state = SparseState(none, key, None, inner_state, none, extra)
        no_grads = jax.tree.map(jnp.zeros_like, latent)
        return choose_masks(engine, jnp.ones([], bool), flat, backward, behind_table, no_grads, state, latent)

    with jax.ensure_compile_time_eval():
        at_once = bool(schedules.is_update(method.choice.plan, jnp.int32(0)))
    # With a share the params are dense at first, also for those who lay the masks on them before the loop.
    if at_once and engine.share is None and any(mask is not None for mask in flat):
        flat, backward, _, memory = jax.jit(first)(flat, backward, latent, inner_state, extra, behind_table)
    if method.packed:
        flat, backward = ([None if m is None else pack(m) for m in masks] for masks in (flat, backward))
    if engine.behind is not None:
        extra = extra._replace(backward=(mask_tree(params, backward), behind_table))
    zero = lambda: jnp.zeros([], jnp.int32)
    return SparseState(zero(), key, mask_tree(params, flat), inner_state, zero(), extra._replace(memory=memory))


def _masked(values: list[Any], masks: list[Any]) -> list[Any]:
    """The values of the sparsified leaves, else None."""
    return [None if mask is None else value for value, mask in zip(values, masks, strict=True)]


def wider_pattern(pattern: Patterns, sparsity: float) -> Patterns:
    """The pattern, with the n of N:M (also inside a mapping) that keeps 1 - `sparsity` of every M."""
    if isinstance(pattern, NM):
        return pattern._replace(n=kept_units(pattern.m, sparsity))
    if isinstance(pattern, Mapping):
        return {
            glob: each._replace(n=kept_units(each.m, sparsity)) if isinstance(each, NM) else each
            for glob, each in pattern.items()
        }
    return pattern

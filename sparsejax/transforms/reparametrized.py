"""The wrapper of methods whose params are a function of something else: latent weights, thresholds, scores."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax import schedules
from sparsejax.leaves import Layout, Where
from sparsejax.state import SparseState
from sparsejax.transforms import latent
from sparsejax.transforms.proposals import NEVER, Leaf, Method, NewMask, NewMasks
from sparsejax.transforms.start import Distribution, Patterns, checked_choice

PyTree = Any
ALWAYS = (schedules.gradual(0, 1),)  # a plan whose sparsity is the target from the first step on


def reparametrized(
    inner: optax.GradientTransformation,
    forward: Callable[[Leaf], jax.Array] | None = None,
    init_latent: Callable[[Leaf], jax.Array] | None = None,
    *,
    forwards: Callable[[list[Leaf]], list[jax.Array]] | None = None,
    aux_inner: optax.GradientTransformation | None = None,
    init_memory: Callable[[Leaf], jax.Array] | None = None,
    new_mask: NewMask | None = None,
    new_masks: NewMasks | None = None,
    moves: str = "all",
    soft: bool = False,
    update_every: int = 1,
    dense_dtype: Any = None,
    plan: schedules.Plan = NEVER,
    sparsity: float | None = None,
    distribution: Distribution | str | None = None,
    pattern: Patterns = None,
    where: Where | None = None,
    layout: Layout | None = None,
    ties: str = "index",
    seed: int | jax.Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """Trains latents theta of which the params are a function: w~ = F(theta), dL/dtheta = (dF/dtheta)^T dL/dw~.

    The loop holds w~, exactly sparse, and hands over dL/dw~. A latent is the dense weight of each masked leaf and, with
    `init_latent`, one more trained array (its extra: a threshold, scores). An update pulls the gradient back through
    F as it was when w~ was made, takes the steps of both optimizers, chooses the masks by the new latents, and emits
    what makes the params F(new latents): -w~ off the mask. Leaves without a mask are plain params. Where F is the
    weight itself on the mask (`soft=False`), the params are the truth there: a change by hand is taken over. Where it
    is not, the latents are, and such a change is undone. The params at step 0 are the user's own, not F of them.

    Args:
      inner: optimizer of the latent weights and of the leaves without a mask, all in one tree.
      forward: `(leaf) -> value`, differentiable in `leaf.weight` and `leaf.extra`, at `leaf.mask` and `leaf.memory`;
        what it gives off the mask is not read, but differentiated. `leaf.step` is when the value was made.
      init_latent: `(leaf) -> extra` in `init`; of any shape, float32 as a rule. None: no extras.
      forwards: the same as `forward`, for all leaves at once.
      aux_inner: optimizer of the extras; None is `inner` with a state (and a global norm) of its own.
      init_memory: `(leaf) -> array` that is kept but not trained; the rule of the masks then gives (mask, memory).
      new_mask, new_masks: rules as of `sparse_wrapper`, at the new latents `leaf.weight` and `leaf.extra`; `leaf.mask`
        is as it was, `leaf.grad` is dL/dw~. None: where the value is not 0.
      moves: which latent weights of masked leaves are trained: "all"; "kept": those on the mask, the others hold their
        value and lose their moments; "none": no one, and the inner optimizer sees zeros.
      soft: whether values differ from weights on the mask.
      update_every: steps between mask updates.
      dense_dtype: of the latent weights, such as float32 below bfloat16 params; None: the params'.
      plan: its ramp says how many units are kept; without one there is no count.
      sparsity: fraction of zeros at the end of the ramp; acts in `init` alone.
      distribution, pattern, where, layout, ties, seed: see `sparse_wrapper`.

    Returns:
      A transformation with a `SparseState` whose `extra` is a `Latents`. `get_masks` reads its masks; `set_masks`
      raises, for masks follow from latents. A leaf with a gradient, weight or extra that is not finite keeps its mask,
      and `skipped` counts it; its extra takes a gradient of 0, its weights what the bare optimizer makes of it.

    Raises:
      ValueError: an argument out of range, here or in `init`.

    Example:
      >>> halved = lambda leaf: 0.5 * leaf.weight  # params that are half of their latents
      >>> tx = reparametrized(optax.sgd(1.0), halved, soft=True)
      >>> params = {"kernel": jnp.full((2, 2), 2.0)}
      >>> updates, state = tx.update({"kernel": jnp.ones((2, 2))}, tx.init(params), params)
      >>> optax.apply_updates(params, updates)["kernel"][0].tolist()  # (2 - 0.5) / 2
      [0.75, 0.75]
    """
    if (forward is None) == (forwards is None):
        raise ValueError("reparametrized needs either forward or forwards")
    if moves not in (latent.ALL, latent.KEPT, latent.NONE):
        raise ValueError(f"moves={moves!r}: 'all', 'kept' or 'none'")
    if ties not in ("index", "random"):
        raise ValueError(f"ties={ties!r}: 'index' or 'random'")
    schedules.check_steps(1, update_every=update_every)
    if schedules.ramp_of(plan) is None:
        if sparsity is not None:
            raise ValueError(f"sparsity={sparsity}: without a gradual phase in the plan nothing reads it")
        sparsity = 0.0
    if new_mask is None and new_masks is None:
        if forward is None:
            raise ValueError("forwards needs new_masks")
        new_mask = partial(_not_zero, forward)
    values = forwards if forward is None else partial(_each, forward)
    assert values is not None
    choice = checked_choice(sparsity, distribution, pattern, where, layout, "dense", plan, None, new_masks)
    own, aux = optax.with_extra_args_support(inner), optax.with_extra_args_support(aux_inner or inner)
    method = Method(own, new_mask, new_masks, choice, ties=ties, seed=seed)
    how = latent.Reparametrized(
        method, aux, values, init_latent, init_memory, moves, soft, update_every, checked_dtype(dense_dtype)
    )

    def update_fn(updates: PyTree, state: SparseState, params: PyTree = None, **extra_args: Any):
        return latent.update(how, updates, state, params, extra_args)

    return optax.GradientTransformationExtraArgs(partial(latent.init, how), update_fn)


def checked_dtype(dense_dtype: Any) -> Any:
    """A floating dtype, or None; ValueError for others."""
    if dense_dtype is None:
        return None
    try:
        dtype = jnp.dtype(dense_dtype)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dense_dtype={dense_dtype!r} must be None or a floating dtype such as 'float32'")
    return dtype


def _each(forward: Callable[[Leaf], jax.Array], leaves: list[Leaf]) -> list[jax.Array]:
    return [forward(leaf) for leaf in leaves]


def _not_zero(forward: Callable[[Leaf], jax.Array], leaf: Leaf) -> jax.Array:
    return forward(leaf) != 0

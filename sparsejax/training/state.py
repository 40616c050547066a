"""The train state: everything that a checkpoint must hold, with the seeds of a trial stacked along the first axis."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparsejax.masks import apply_masks, get_masks, mask_leaves, sparse_states
from sparsejax.state import SparseState


class TrainState(NamedTuple):
    """One trial, S seeds at once.

    Attributes:
      step: int32 scalar, training steps done; all seeds are at the same step.
      params: the model's parameters, each leaf with a leading axis S; exactly sparse.
      opt_state: the transform's state, each leaf with a leading axis S; the masks are in it.
      ever_active: by path of the masked leaf: bool (S, *shape), True where the weight was active at some step.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ever_active: dict[str, jax.Array]


def sparse_state(opt_state: Any) -> SparseState | None:
    """The SparseState in an optimizer state, or None in a dense run."""
    return next(iter(sparse_states(opt_state)), None)


def masks_by_path(opt_state: Any) -> dict[str, jax.Array]:
    """The masks of a (stacked) optimizer state by path of the leaf; empty for a dense run."""
    return mask_leaves(get_masks(opt_state)) if sparse_states(opt_state) else {}


def init_params(model: Any, example: jax.ShapeDtypeStruct, seeds: jax.Array) -> Any:
    """Parameters of the model, one set for each seed, stacked."""
    x = jnp.zeros(example.shape, example.dtype)
    return jax.vmap(lambda seed: model.init(jax.random.key(seed), x)["params"])(seeds)


def init_state(
    transform: Callable[[jax.Array], optax.GradientTransformation], params: Any, seeds: jax.Array
) -> TrainState:
    """The state at step 0, sparse from the start.

    Args:
      transform: seed (traced int32) -> optax transform.
      params: stacked parameters, from `init_params`.
      seeds: int32 (S,).
    """

    def one(seed, params):
        opt_state = transform(seed).init(params)
        if sparse_states(opt_state):
            params = apply_masks(params, get_masks(opt_state))
        return params, opt_state

    params, opt_state = jax.vmap(one)(seeds, params)
    ever_active = {path: jnp.array(mask) for path, mask in masks_by_path(opt_state).items()}  # a copy: both are donated
    return TrainState(jnp.int32(0), params, opt_state, ever_active)

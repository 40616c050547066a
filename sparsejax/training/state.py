"""The train state: everything that a checkpoint must hold, with the seeds of a trial stacked along the first axis."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparsejax.initialization import UNTRAINED, density_aware, untrained
from sparsejax.leaves import Layout
from sparsejax.masks import apply_masks, get_masks, mask_leaves, sparse_states
from sparsejax.state import SparseState

_DRAWN = 0x696E  # sets the keys of weights that are drawn anew apart from those of training


class TrainState(NamedTuple):
    """One trial, S seeds at once.

    Attributes:
      step: int32 scalar, training steps done; all seeds are at the same step.
      params: the model's parameters, each leaf with a leading axis S; exactly sparse.
      opt_state: the transform's state, each leaf with a leading axis S; the masks are in it.
      ever_active: by path of the masked leaf: bool (S, *shape), True where the weight was active at some step.
      first_masks: by path: the masks at step 0, bool (S, *shape).
      model_state: the model's other collections (`batch_stats`), each leaf with a leading axis S; {} if it has none.
      ema: {"params", "model_state"}: their moving averages; {} in a run without.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ever_active: dict[str, jax.Array]
    first_masks: dict[str, jax.Array]
    model_state: Any
    ema: dict[str, Any]


def sparse_state(opt_state: Any) -> SparseState | None:
    """The SparseState in an optimizer state, or None in a dense run."""
    return next(iter(sparse_states(opt_state)), None)


def masks_by_path(opt_state: Any) -> dict[str, jax.Array]:
    """The masks of a (stacked) optimizer state by path of the leaf; empty for a dense run."""
    return mask_leaves(get_masks(opt_state)) if sparse_states(opt_state) else {}


def masked(params: Any, opt_state: Any) -> Any:
    """The params with zeros off the masks that the state holds."""
    return apply_masks(params, get_masks(opt_state)) if sparse_states(opt_state) else params


def init_state(
    transform: Callable[[jax.Array, Any], optax.GradientTransformation],
    params: Any,
    model_state: Any,
    seeds: jax.Array,
    *,
    init: str = "default",
    ema: bool = False,
    layout: Layout | None = None,
    masks: Any = None,
) -> TrainState:
    """The state at step 0, sparse from the start.

    Args:
      transform: (seed (traced int32), one seed's masks or None) -> optax transform.
      params, model_state: stacked, from `model.init_model`.
      seeds: int32 (S,).
      init: "density" corrects the fan-in of what the masks leave; "kaiming_normal" and "signed_constant" draw the
        weights of the masked leaves anew.
      ema: whether averages are kept.
      layout: of the model's leaves; None: Flax's.
      masks: stacked, where the method has them chosen before the first step.
    """

    def one(seed, params, masks):
        if init in UNTRAINED:
            params = untrained(params, jax.random.fold_in(jax.random.key(seed), _DRAWN), kind=init, layout=layout)
        opt_state = transform(seed, masks).init(params)
        if sparse_states(opt_state):
            params = masked(params, opt_state)
            if init == "density":
                params = density_aware(params, get_masks(opt_state), layout)
        return params, opt_state

    params, opt_state = jax.vmap(one)(seeds, params, masks)
    copied = lambda tree: jax.tree.map(jnp.array, tree)  # all of the state is donated, so nothing in it is shared
    ever_active, first = (copied(masks_by_path(opt_state)) for _ in range(2))
    averages = copied({"params": params, "model_state": model_state}) if ema else {}
    return TrainState(jnp.int32(0), params, opt_state, ever_active, first, model_state, averages)


def averaged(ema: dict[str, Any], params: Any, model_state: Any, step: jax.Array, decay: float) -> dict[str, Any]:
    """The averages one step on: d ema + (1 - d) new, where d = min(decay, (1 + step) / (10 + step)).

    The decay rises from 0.1, so that the initial parameters do not linger. What is not floating is taken as it is.

    Source: the warm-up of TensorFlow's ExponentialMovingAverage.
    """
    share = jnp.minimum(decay, (1.0 + step) / (10.0 + step))

    def one(old, new):
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        return (share * old + (1 - share) * new).astype(new.dtype)

    return jax.tree.map(one, ema, {"params": params, "model_state": model_state})


def to_evaluate(state: TrainState) -> tuple[Any, Any]:
    """(params, model state) that are evaluated: the averages, masked anew, where the run keeps them."""
    if not state.ema:
        return state.params, state.model_state
    return masked(state.ema["params"], state.opt_state), state.ema["model_state"]

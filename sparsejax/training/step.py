"""One training step of one seed: a batch, its gradient, the optimizer's update."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sparsejax.leaves import named_leaves, select_leaves
from sparsejax.training.distillation import Teacher, distilled
from sparsejax.training.further import make_further
from sparsejax.training.model import trained
from sparsejax.training.state import masks_by_path
from sparsejax.training.tasks import Task

_TRAINING = 0x7261  # sets the keys of training apart from the key of the initial parameters, which is the seed's own


def step_key(seed: jax.Array, step: jax.Array) -> jax.Array:
    """The key of all that is random in a step: a function of (seed, step) alone, so that nothing is kept for resuming.

    Example:
      >>> jax.random.key_data(step_key(0, 1)).tolist() == jax.random.key_data(step_key(0, 2)).tolist()
      False
    """
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _TRAINING), step)


def make_step(
    model: Any,
    task: Task,
    transform: optax.GradientTransformation,
    config: Mapping[str, Any],
    teacher: Teacher | None = None,
    gathered: Callable[[Any], Any] = lambda params: params,
) -> Callable[..., tuple[Any, Any, Any, jax.Array, Any]]:
    """(params, opt_state, model_state, seed, step, x, y, taught by, wanted) -> (the first three anew, loss, norms).

    The norms are what `gradient_norms` finds where they are wanted, and zeros of the same shapes elsewhere.

    With two more arguments, a feed's `pool`, the transform is given gradients of further examples.

    With `accumulate` = K, the batch is computed in K parts, one after the other; the optimizer, and with it the method,
    sees the mean of their gradients, and the step is the same to rounding (but that BatchNorm sees each part alone).
    `gathered` makes sharded params whole where the model uses them.
    """

    def gradient(params, model_state, key, x, y, taught_by):
        for_data, for_model = jax.random.split(key)
        inputs, targets = task.prepare(for_data, x, y)
        taught = teacher.logits(taught_by, inputs) if teacher else None

        def loss_of(params):
            logits, new_state = trained(model, gathered(params), model_state, inputs, for_model)
            loss = task.loss(logits, targets)
            return (loss if taught is None else distilled(loss, logits, taught, config["distill"])), new_state

        return jax.value_and_grad(loss_of, has_aux=True)(params)

    def in_parts(params, model_state, key, x, y, taught_by):
        parts = config["accumulate"]
        cut = lambda array: array.reshape(parts, array.shape[0] // parts, *array.shape[1:])

        def add(carry, part):
            model_state, loss_sum, grads_sum = carry
            key, x, y = part
            (loss, model_state), grads = gradient(params, model_state, key, x, y, taught_by)
            return (model_state, loss_sum + loss, jax.tree.map(jnp.add, grads_sum, grads)), None

        zero = jnp.zeros([]), jax.tree.map(jnp.zeros_like, params)
        pieces = jax.random.split(key, parts), cut(x), cut(y)
        (model_state, loss, grads), _ = lax.scan(add, (model_state, *zero), pieces)
        return (loss / parts, model_state), jax.tree.map(lambda g: g / parts, grads)

    further = make_further(model, task, gathered)

    def train_step(params, opt_state, model_state, seed, step, x, y, taught_by, wanted=False, *pool):
        compute = in_parts if config["accumulate"] > 1 else gradient
        key = step_key(seed, step)
        (loss, model_state), grads = compute(params, model_state, key, x, y, taught_by)
        norms = lax.cond(wanted, gradient_norms, _no_norms, grads, masks_by_path(opt_state))
        extra = {"grads_fn": further(model_state, key, x, y, *pool)} if pool else {}
        updates, opt_state = transform.update(grads, opt_state, params, **extra)
        return optax.apply_updates(params, updates), opt_state, model_state, loss, norms

    return train_step


def gradient_norms(grads: Any, masks: dict[str, jax.Array]) -> dict[str, dict[str, jax.Array]]:
    """||dL/dw||_2 over the kept weights of each masked leaf ("active") and over the others ("inactive"), by path.

    Of a dense run, of each leaf that could be masked, and "inactive" is empty.

    Example:
      >>> norms = gradient_norms({"kernel": jnp.array([[3.0, 4.0]])}, {"kernel": jnp.array([[True, False]])})
      >>> float(norms["active"]["kernel"]), float(norms["inactive"]["kernel"])
      (3.0, 4.0)
    """
    norm = lambda grad, kept: jnp.sqrt(jnp.sum(jnp.where(kept, grad.astype(jnp.float32), 0) ** 2))
    chosen = masks or {path: jnp.bool_(True) for path, _ in named_leaves(select_leaves(grads))}
    by_path = {path: grad for path, grad in named_leaves(grads) if path in chosen}
    return {
        "active": {path: norm(grad, chosen[path]) for path, grad in by_path.items()},
        "inactive": {path: norm(grad, ~masks[path]) for path, grad in by_path.items() if path in masks},
    }


def _no_norms(grads: Any, masks: dict[str, jax.Array]) -> dict[str, dict[str, jax.Array]]:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient_norms, grads, masks))

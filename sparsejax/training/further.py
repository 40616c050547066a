"""The gradients on further examples, for methods that want many at a mask update (`grads_fn` of `tx.update`)."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from sparsejax.training.model import evaluated
from sparsejax.training.tasks import Task

_FURTHER = 0x6675  # sets the keys of further examples apart from those of the step's own batch


def make_further(
    model: Any, task: Task, gathered: Callable[[Any], Any]
) -> Callable[..., Callable[[Any, jax.Array], Any]]:
    """(model state, the step's key, x, y, arrays, order) -> `grads_fn(params, i)`, of one seed.

    The i-th gradient is that of one example, prepared as in training, in the model as it predicts (a batch of one has
    no statistics of its own). Of data in memory it is drawn from all examples, with the step's key; of streamed data,
    where `arrays` and `order` are (), it is the i-th of the step's batch, in turn.
    """

    def further(model_state, key, x, y, arrays, order):
        key = jax.random.fold_in(key, _FURTHER)

        def example(key, i):
            if isinstance(order, tuple):
                return (lax.dynamic_slice_in_dim(part, i % part.shape[0], 1) for part in (x, y))
            index_1x1 = order[jax.random.randint(key, (1, 1), 0, order.shape[0])]
            return (part[0] for part in task.gather(arrays, index_1x1))

        def grads_fn(params, i):
            for_index, for_data = jax.random.split(jax.random.fold_in(key, i))
            inputs, targets = task.prepare(for_data, *example(for_index, i))
            loss = lambda params: task.loss(evaluated(model, gathered(params), model_state, inputs), targets)
            return jax.grad(loss)(params)

        return grads_fn

    return further

"""Evaluation of all seeds at once, on the device, over every example of the test set."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

_LARGEST_BATCH = 1024


class TestSet(NamedTuple):
    """A test set cut into K equal batches on the device; the last may be filled up.

    Attributes:
      x: uint8 (K, B, *shape).
      y: int32 (K, B).
      real: bool (K, B), False where the example only fills up.
      size: the number of real examples.
    """

    x: jax.Array
    y: jax.Array
    real: jax.Array
    size: int


def make_test_set(x: np.ndarray, y: np.ndarray) -> TestSet:
    """Cuts into as few batches as needed, of as equal a size as possible."""
    batches = -(-len(y) // _LARGEST_BATCH)
    batch = -(-len(y) // batches)
    missing = batches * batch - len(y)

    def cut(array):
        filled = np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
        return jnp.asarray(filled.reshape(batches, batch, *array.shape[1:]))

    return TestSet(cut(x), cut(y), cut(np.ones(len(y), bool)), len(y))


def make_evaluate(model: Any, to_float):
    """The function (stacked params, x, y, real) -> (sum of losses (S,), int32 number of right answers (S,)).

    Args:
      model: a Linen module.
      to_float: uint8 batch -> what the model sees.
    """

    def one_batch(params, x, y, real):
        logits = model.apply({"params": params}, to_float(x))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        right = (logits.argmax(-1) == y) & real
        return jnp.where(real, losses, 0).sum(), right.sum(dtype=jnp.int32)

    def evaluate(params, x, y, real):
        seeds = jax.tree.leaves(params)[0].shape[0]

        def add(sums, batch):
            loss, right = jax.vmap(one_batch, in_axes=(0, None, None, None))(params, *batch)
            return (sums[0] + loss, sums[1] + right), None

        zero = (jnp.zeros(seeds), jnp.zeros(seeds, jnp.int32))
        return jax.lax.scan(add, zero, (x, y, real))[0]

    return evaluate

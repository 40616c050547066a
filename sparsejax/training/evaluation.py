"""Evaluation of all seeds at once, on the device, over every example of the test set."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.data.stream import Batches
from sparsejax.topology import active_units, relu_outputs
from sparsejax.training.errors import refusing
from sparsejax.training.model import evaluated
from sparsejax.training.seeds import each_seed
from sparsejax.training.tasks import Streamed, Task

UNITS = "units/"  # in front of a ReLU's name, among the sums
_LARGEST_BATCH = 1024
_LARGEST_INPUT = 1 << 22  # numbers in the inputs of a batch, unless a training batch has more


class TestSet(NamedTuple):
    """A test set cut into K equal batches on the device; the last may be filled up.

    Attributes:
      x: raw inputs (K, B, *shape).
      y: targets (K, B) or, of windows of a text, (K, B, L).
      real: bool, of the shape of y; False where a target only fills up.
      size: the number of real targets.
    """

    x: jax.Array
    y: jax.Array
    real: jax.Array
    size: int

    @property
    def skipped(self) -> int:
        return 0

    def summed(self, evaluate: Callable, variables: tuple[Any, Any]) -> dict[str, jax.Array]:
        """What the program adds up over the set."""
        return evaluate(*variables, self.x, self.y, self.real)


class TestStream:
    """A test set that is read batch by batch, at each evaluation anew.

    Attributes:
      size: the number of real targets in the last evaluation.
      skipped: damaged examples that were left out of it.
    """

    size, skipped = 0, 0

    def __init__(self, examples: Streamed, *, largest: int, multiple: int, put: Callable[[Any], Any]):
        """Arguments as of `make_test_set`."""
        self._name, self._stream, self._put = repr(examples.name), examples.stream, put
        self._batch = -(-min(largest, self._stream.test_size) // multiple) * multiple

    def summed(self, evaluate: Callable, variables: tuple[Any, Any]) -> dict[str, jax.Array]:
        """What the program adds up over the set.

        Raises:
          ConfigError: an example cannot be read.
        """
        sums: dict[str, jax.Array] = {}
        before, size = sums, 0
        with contextlib.closing(self._stream.test(self._batch)) as batches:
            for batch in self._read(batches):
                found = evaluate(*variables, *self._put(tuple(part[None] for part in batch)))
                jax.block_until_ready(before)  # so that no more than two batches are on the device
                before, sums = sums, jax.tree.map(jnp.add, sums, found) if sums else found
                size += int(batch[-1].sum())
            self.size, self.skipped = size, batches.skipped
        return sums

    def _read(self, batches: Batches) -> Iterator[tuple[np.ndarray, ...]]:
        with refusing(self._name):
            yield from batches


def make_test_set(
    x: np.ndarray,
    y: np.ndarray,
    real: np.ndarray | None = None,
    *,
    largest: int = _LARGEST_BATCH,
    multiple: int = 1,
    put: Callable[[Any], Any] = jnp.asarray,
) -> TestSet:
    """Cuts into as few batches as needed, of as equal a size as possible.

    Args:
      x, y: examples and their targets.
      real: which targets count; None is all.
      largest: examples of a batch at most; multiple: what divides their number.
      put: puts the arrays on the devices.
    """
    real = np.ones(y.shape, bool) if real is None else real
    batches = -(-len(y) // largest)
    batch = -(-len(y) // batches)
    batch = -(-batch // multiple) * multiple
    missing = batches * batch - len(y)

    def cut(array):
        filled = np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
        return put(filled.reshape(batches, batch, *array.shape[1:]))

    return TestSet(cut(x), cut(y), cut(real), int(real.sum()))


def largest_batch(example: jax.ShapeDtypeStruct, batch_size: int) -> int:
    """Examples in a batch of an evaluation: many where they are small, else as many as training takes."""
    numbers = int(np.prod(example.shape))
    if jnp.issubdtype(example.dtype, jnp.integer):  # tokens: what counts are the logits, of every token
        return batch_size
    return max(batch_size, min(_LARGEST_BATCH, _LARGEST_INPUT // max(numbers, 1)))


def make_evaluate(
    model: Any,
    task: Task,
    split: Callable[[Any], Any] = lambda batch: batch,
    gathered: Callable[[Any], Any] = lambda params: params,
):
    """The function (stacked params, stacked model state, x, y, real) -> sums over the test set, by name, each (S,).

    Of each ReLU (`topology.relu_outputs`) it counts, too, the examples for which each unit is not zero, (S, units).

    Args:
      model: a Linen module.
      task: says what is summed.
      split: how a batch with a leading axis lies on the devices; gathered: makes sharded params whole.
    """

    def one_batch(params, model_state, x, y, real):
        forward = lambda params, state, x: evaluated(model, gathered(params), state, task.inputs(x))
        logits, outputs = relu_outputs(forward, params, model_state, x)
        return task.sums(logits, y, real) | {f"{UNITS}{name}": n for name, n in active_units(outputs, real).items()}

    def evaluate(params, model_state, x, y, real):
        every_seed = each_seed(one_batch, (0, 0, None, None, None))

        def add(sums, batch):
            found = every_seed(params, model_state, *(split(part[None])[0] for part in batch))
            return jax.tree.map(jnp.add, sums, found), None

        shapes = jax.eval_shape(every_seed, params, model_state, x[0], y[0], real[0])
        zero = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        return jax.lax.scan(add, zero, (x, y, real))[0]

    return evaluate

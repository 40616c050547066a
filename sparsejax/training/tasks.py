"""What a model is trained for: the few functions in which classification and language modelling differ."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from sparsejax.data.corpus import Corpus
from sparsejax.data.stream import Stream
from sparsejax.training.errors import ConfigError

Config = Mapping[str, Any]


class Task(NamedTuple):
    """The functions of a task; B examples, S seeds.

    Attributes:
      name: "classification" or "language".
      metric: what results are judged by: "accuracy" (higher is better) or "loss" (lower is better).
      unit: what an example consists of: "samples" or "tokens".
      units: how many of them.
      outputs: {"classes": K} or {"vocab": V}, what the model is made with.
      example: a batch of one, as the model sees it.
      inputs: raw x of a batch -> what the model sees.
      prepare: (key, raw x, raw y) -> (what the model sees, targets), in training.
      loss: (logits, targets) -> mean loss.
      gather: (arrays on the device, int32 (S, B) from the order) -> (x, y) with leading axes (S, B).
      sums: (logits, y, real) -> what of a test batch is added up, by name.
      scores: (sums on the host (S,), number of test targets) -> {metric: one number a seed}.
    """

    name: str
    metric: str
    unit: str
    units: int
    outputs: dict[str, int]
    example: jax.ShapeDtypeStruct
    inputs: Callable[[jax.Array], jax.Array]
    prepare: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    gather: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]
    sums: Callable[[jax.Array, jax.Array, jax.Array], dict[str, jax.Array]]
    scores: Callable[[Mapping[str, np.ndarray], int], dict[str, list[float]]]


class Examples(NamedTuple):
    """The data of a trial in memory, as its task takes them.

    Attributes:
      arrays: all training data, on the device.
      epoch_steps: training steps of an epoch.
      draw: (seeds, epoch) -> int32 (S, epoch_steps * batch_size), what `Task.gather` reads, batch after batch.
      test_x, test_y, test_real: the test set, example after example; `evaluation.make_test_set`.
    """

    arrays: Any
    epoch_steps: int
    draw: Callable[[list[int], int], jax.Array]
    test_x: np.ndarray
    test_y: np.ndarray
    test_real: np.ndarray


class Streamed(NamedTuple):
    """The data of a trial that are read batch by batch.

    Attributes:
      name: of the data set.
      stream: its batches are what the task takes.
      epoch_steps: training steps of an epoch.
    """

    name: str
    stream: Stream
    epoch_steps: int


def make_task(config: Config, data: Any, model: Any) -> Task:
    """The task of a resolved config on this data with this model.

    Raises:
      ConfigError: a field that this task does not know is set.
    """
    from sparsejax.training import classification, language  # here: they need Task

    _refuse_other_fields(config, data)
    return language.task(config, data, model) if isinstance(data, Corpus) else classification.task(config, data)


def make_examples(config: Config, data: Any, task: Task) -> Examples | Streamed:
    """The data as the task takes it.

    Raises:
      ConfigError: there is not enough for one batch.
    """
    from sparsejax.training import classification, language

    make = language.examples if isinstance(data, Corpus) else classification.examples
    return make(config, data, task)


def _refuse_other_fields(config: Config, data: Any) -> None:
    names = ("augment", "mixup", "cutmix", "label_smoothing") if isinstance(data, Corpus) else ("epoch_steps",)
    for name in names:
        if config[name]:
            kind = "text" if isinstance(data, Corpus) else "images"
            raise ConfigError(f"{name}: {config[name]!r} has no meaning for {kind} (data set {config['dataset']!r})")

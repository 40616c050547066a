"""Classification: cross-entropy with smoothed or mixed labels, judged by accuracy."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax.data import Dataset, Stream, augment, standardized
from sparsejax.training.errors import ConfigError
from sparsejax.training.order import epoch_order
from sparsejax.training.records import floats
from sparsejax.training.tasks import Config, Examples, Streamed, Task


def task(config: Config, data: Dataset | Stream) -> Task:
    """The task of telling the classes of `data` apart.

    Raises:
      ConfigError: the config's augmentations cannot be read.
    """
    augmented, mix = augmentation(config), mixing(config)
    classes, smoothing = data.classes, config["label_smoothing"]

    def inputs(x):
        return standardized(x, data.offset, data.scale)

    def prepare(key, x, y):
        for_augment, for_mix = jax.random.split(key)
        x = inputs(augmented(for_augment, x) if augmented else x)
        return mix(for_mix, x, jax.nn.one_hot(y, classes)) if mix else (x, y)

    def loss(logits, targets):
        if not mix and not smoothing:
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
        labels = targets if mix else jax.nn.one_hot(targets, classes)
        return optax.softmax_cross_entropy(logits, optax.smooth_labels(labels, smoothing)).mean()

    example = jax.ShapeDtypeStruct((1, *data.example.shape), jnp.float32)
    return Task(
        "classification", "accuracy", "samples", 1, {"classes": classes}, example, inputs, prepare, loss, _gather,
        _sums, _scores,
    )  # fmt: skip


def examples(config: Config, data: Dataset | Stream, task: Task) -> Examples | Streamed:
    """The images in a new order each epoch; the incomplete last batch of an epoch is dropped."""
    del task
    batch = config["batch_size"]
    size = data.train_size if isinstance(data, Stream) else len(data.train_y)
    if size < batch:
        raise ConfigError(f"batch_size: {batch} is more than the {size} training examples")
    if isinstance(data, Stream):
        return Streamed(config["dataset"], data, size // batch)
    arrays = jnp.asarray(data.train_x), jnp.asarray(data.train_y)
    draw = lambda seeds, epoch: epoch_order(seeds, epoch, size)
    return Examples(arrays, size // batch, draw, data.test_x, data.test_y, np.ones(len(data.test_y), bool))


def augmentation(config: Config) -> augment.Augmentation | None:
    """`(key, x) -> x` on images as they are stored, (B, H, W, C) bytes; None where the config asks for none."""
    return _asked("augment", config["augment"]) if config["augment"] else None


def mixing(config: Config) -> augment.Mixing | None:
    """`(key, x, labels_BxK) -> (x, labels_BxK)` on scaled images; where both are asked for, each batch draws one."""
    asked = [_asked(name, config[name]) for name in ("mixup", "cutmix") if config[name]]
    if len(asked) < 2:
        return asked[0] if asked else None

    def either(key, x, labels):
        which, key = jax.random.split(key)
        return jax.lax.cond(jax.random.bernoulli(which), *asked, key, x, labels)

    return either


def _asked(name: str, value: Any) -> Any:
    """What the function of this name in `sparsejax.data.augment` makes of the config's value."""
    made: dict[str, Callable[[Any], Any]] = {
        "augment": augment.augment, "mixup": augment.mixup, "cutmix": augment.cutmix,
    }  # fmt: skip
    try:
        return made[name](value)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{name}: {str(error).removeprefix(f'{name}: ')}") from error


def _gather(arrays, index_SxB):
    x, y = arrays
    return x[index_SxB], y[index_SxB]


def _sums(logits, y, real):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    right = (logits.argmax(-1) == y) & real
    return {"loss": jnp.where(real, losses, 0).sum(), "right": right.sum(dtype=jnp.int32)}


def _scores(sums: Mapping[str, np.ndarray], size: int) -> dict[str, list[float]]:
    return {"loss": floats(sums["loss"] / np.float32(size)), "accuracy": [int(count) / size for count in sums["right"]]}

"""Language modelling: the loss of the next token over windows of the model's context, judged by that loss."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax.data.corpus import Corpus
from sparsejax.data.token_stream import token_stream
from sparsejax.data.windows import covering_windows, cut_windows, window_starts, windows_per_epoch
from sparsejax.training.errors import ConfigError
from sparsejax.training.records import floats
from sparsejax.training.tasks import Config, Examples, Streamed, Task

_MOST_DECODED = 20_000_000  # tokens of a test set whose characters are counted


def task(config: Config, data: Corpus, model: Any) -> Task:
    """The task of predicting the next token of `data` from up to `model.context` before it."""
    del config
    context = int(model.context)
    characters = _characters(data)

    def loss(logits_BxLxV, y_BxL):
        return optax.softmax_cross_entropy_with_integer_labels(logits_BxLxV, y_BxL).mean()

    def scores(sums, size):
        return _scores(sums, size, size / characters if characters else None)

    def gather(tokens, starts):
        return cut_windows(tokens, starts, context)

    return Task(
        "language", "loss", "tokens", context, {"vocab": data.vocab}, jax.ShapeDtypeStruct((1, context), jnp.int32),
        _int32, lambda key, x, y: (_int32(x), _int32(y)), loss, gather, _sums, scores,
    )  # fmt: skip


def examples(config: Config, data: Corpus, task: Task) -> Examples | Streamed:
    """Windows that start anywhere, drawn anew each epoch; and the test tokens cut so that each is predicted once.

    Raises:
      ConfigError: a part of the corpus is too short.
    """
    context, batch = task.units, config["batch_size"]
    for name, part in (("training", data.train), ("test", data.test)):
        if len(part) <= context:
            raise ConfigError(
                f"dataset {config['dataset']!r}: {len(part)} {name} tokens; at least {context + 1} are needed"
            )
    steps = config["epoch_steps"] or windows_per_epoch(len(data.train), context) // batch
    if not steps:
        raise ConfigError(
            f"batch_size: {batch} windows of {context} tokens are more than the {len(data.train)} training tokens; "
            "epoch_steps sets the steps of an epoch"
        )

    if data.streamed:
        return Streamed(config["dataset"], token_stream(data, context, steps=steps), steps)
    train, test = np.asarray(data.train), np.asarray(data.test)

    def draw(seeds, epoch):
        return jnp.asarray(window_starts(seeds, epoch, len(train), context, batch, steps=steps).reshape(len(seeds), -1))

    starts, real = covering_windows(len(test), context, 1)
    x, y = cut_windows(test, starts[:, 0], context)
    return Examples(jnp.asarray(train), steps, draw, x, y, real[:, 0])


def _int32(x):
    return x.astype(jnp.int32)


def _sums(logits, y, real):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, _int32(y))
    return {"loss": jnp.where(real, losses, 0).sum()}


def _characters(data: Corpus) -> int:
    """Characters that the test tokens after the first stand for; 0 where it is not known."""
    if data.decode is None or len(data.test) > _MOST_DECODED:
        return 0
    return len(data.decode(data.test[1:].tolist()))


def _scores(sums: Mapping[str, np.ndarray], size: int, tokens_per_character: float | None) -> dict[str, list[float]]:
    losses = floats(sums["loss"] / np.float32(size))
    out = {"loss": losses, "perplexity": floats([math.exp(loss) if loss < 80 else math.inf for loss in losses])}
    if tokens_per_character is not None:
        out["bits_per_character"] = floats([loss / math.log(2) * tokens_per_character for loss in losses])
    return out

"""Language modelling: the loss of the next token over windows of the model's context, judged by that loss."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax.data.corpus import Corpus
from sparsejax.training.errors import ConfigError
from sparsejax.training.order import window_starts
from sparsejax.training.records import floats
from sparsejax.training.tasks import Config, Examples, Task

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

    return Task(
        "language", "loss", "tokens", context, {"vocab": data.vocab}, jax.ShapeDtypeStruct((1, context), jnp.int32),
        _int32, lambda key, x, y: (_int32(x), _int32(y)), loss, partial(_gather, context), _sums, scores,
    )  # fmt: skip


def examples(config: Config, data: Corpus, task: Task) -> Examples:
    """Windows that start anywhere, drawn anew each epoch; and the test tokens cut so that each is predicted once.

    Raises:
      ConfigError: a part of the corpus is too short.
    """
    context, batch = task.units, config["batch_size"]
    for name, part in (("training", data.train), ("test", data.test)):
        least = context + 1 if name == "training" else 2
        if len(part) < least:
            raise ConfigError(f"dataset {config['dataset']!r}: {len(part)} {name} tokens; at least {least} are needed")
    steps = config["epoch_steps"] or (len(data.train) - 1) // (context * batch)
    if not steps:
        raise ConfigError(
            f"batch_size: {batch} windows of {context} tokens are more than the {len(data.train)} training tokens; "
            "epoch_steps sets the steps of an epoch"
        )
    draw = lambda seeds, epoch: window_starts(seeds, epoch, steps * batch, len(data.train) - context)
    tokens = jnp.asarray(np.asarray(data.train))
    return Examples(tokens, steps, draw, *cut_test(np.asarray(data.test), context))


def cut_test(tokens: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, targets and which targets are real, (K, context) each: every token but the first is a target once."""
    targets = len(tokens) - 1
    windows = -(-targets // context)
    fill = lambda part: np.pad(part, (0, windows * context - targets)).reshape(windows, context)
    return fill(tokens[:-1]), fill(tokens[1:]), fill(np.ones(targets, bool))


def _gather(context, tokens, starts_SxB):
    windows_SxBxL = tokens[starts_SxB[..., None] + jnp.arange(context + 1)[None, None]]
    return windows_SxBxL[..., :-1], windows_SxBxL[..., 1:]


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

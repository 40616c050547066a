"""Two tiny models and data sets with everything that training has to carry: BatchNorm, dropout, tokens."""

import contextlib

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import data, models
from sparsejax.data import Dataset
from sparsejax.data.corpus import Corpus

TEXT = "the quick brown fox jumps over the lazy dog. " * 20
LETTERS = sorted(set(TEXT))


class Convolutions(nn.Module):
    """Two convolutions with BatchNorm and dropout."""

    classes: int
    width: int = 8
    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x_BxHxWxC, *, train=False):
        for _ in range(2):
            x_BxHxWxC = nn.Conv(self.width, (3, 3), use_bias=False, dtype=self.dtype)(x_BxHxWxC)
            x_BxHxWxC = nn.relu(nn.BatchNorm(use_running_average=not train, dtype=self.dtype)(x_BxHxWxC))
        x_BxC = nn.Dropout(0.1, deterministic=not train)(x_BxHxWxC.mean((1, 2)))
        return nn.Dense(self.classes, dtype=self.dtype)(x_BxC)


class Previous(nn.Module):
    """A causal model: each token's logits from itself and the mean of those before it in the window."""

    vocab: int
    context: int = 12
    width: int = 16

    @nn.compact
    def __call__(self, x_BxL, *, train=False):
        x_BxLxD = nn.Embed(self.vocab, self.width)(x_BxL)
        before = jnp.cumsum(x_BxLxD, axis=1) / jnp.arange(1, x_BxL.shape[1] + 1)[None, :, None]
        x_BxLxD = nn.gelu(nn.Dense(32)(jnp.concatenate([x_BxLxD, before], -1)))
        return nn.Dense(self.vocab)(nn.Dropout(0.1, deterministic=not train)(x_BxLxD))


def colours(data_dir: str = "", *, size: int = 64) -> Dataset:
    """Bright, dark and striped squares of 6x6, with a mean and a deviation for each channel."""
    del data_dir
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, size + 21).astype(np.int32)
    x = rng.integers(0, 80, (len(y), 6, 6, 3)).astype(np.uint8)
    x[y == 1] += 120
    x[y == 2, ::2] += 160
    offset, scale = np.asarray([60.0, 70, 80], np.float32), np.asarray([0.01, 0.02, 0.015], np.float32)
    return Dataset(x[:size], y[:size], x[size:], y[size:], 3, offset, scale)


def pangram(data_dir: str = "") -> Corpus:
    """One sentence over and over, by letter."""
    del data_dir
    tokens = np.asarray([LETTERS.index(letter) for letter in TEXT], np.uint16)
    decode = lambda ids: "".join(LETTERS[i] for i in ids)
    return Corpus(tokens[:-100], tokens[-100:], len(LETTERS), lambda text: [LETTERS.index(c) for c in text], decode)


@contextlib.contextmanager
def installed():
    """Inside, a config can name them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, model in (("convolutions", Convolutions), ("previous", Previous)):
            patch.setitem(models.MODELS, name, model)
        for name, source in (("colours", colours), ("pangram", pangram)):
            patch.setitem(data.DATASETS, name, source)
        yield


IMAGES = {"model": "convolutions", "dataset": "colours", "batch_size": 16, "epochs": 6, "learning_rate": 1e-2}
WORDS = {"model": "previous", "dataset": "pangram", "batch_size": 8, "epochs": 3, "learning_rate": 1e-2}

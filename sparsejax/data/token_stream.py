"""Texts that stay on disk: windows of a memory-mapped file, batch by batch."""

import functools
from dataclasses import dataclass

import jax
import numpy as np

from sparsejax.data.checks import check_choice
from sparsejax.data.corpus import Corpus
from sparsejax.data.draws import check_seed
from sparsejax.data.stream import Batches, Made, Stream
from sparsejax.data.tokens import check_range
from sparsejax.data.windows import ORDERS, covering_windows, cut_windows, window_starts, windows_per_epoch


def token_stream(corpus: Corpus, context: int, *, order: str = "random") -> Stream:
    """The windows of a corpus as a stream, so that its tokens need not fit on the device.

    Batches are those of `window_starts` and `covering_windows`, x and y int32 (B, context); of test batches, `real` is
    bool (B, context). Every token that is read is checked against the vocabulary.

    Args:
      corpus: memory-mapped, or in memory.
      context: inputs of a window.
      order: "random" or "consecutive" windows, see `window_starts`.

    Returns:
      The stream; its train_size counts windows, its test_size the tokens that are predicted.

    Raises:
      ValueError: if the text is shorter than a window; from a batch, one line that names file, token and byte.
    """
    check_choice("windows", order, ORDERS)
    train_size = windows_per_epoch(len(corpus.train), context)
    windows_per_epoch(len(corpus.test), context)

    def train(batch_size: int, seed: int) -> Batches:
        named = {"batch_size": batch_size, "seed": check_seed(seed), "context": context, "tokens": len(corpus.train)}
        named["order"] = ORDERS.index(order)
        _epoch(check_seed(seed), 0, len(corpus.train), context, batch_size, order)  # refuses what does not fit
        return Batches(_TrainWindows(corpus, context, batch_size, seed, order), named=named)

    def test(batch_size: int) -> Batches:
        starts, real = covering_windows(len(corpus.test), context, batch_size)
        named = {"batch_size": batch_size, "context": context, "tokens": len(corpus.test)}
        return Batches(_TestWindows(corpus, context, starts, real), named=named, count=len(starts))

    example = jax.ShapeDtypeStruct((context,), np.int32)
    return Stream(train, test, corpus.vocab, example, 0.0, 1.0, train_size, len(corpus.test) - 1, corpus.skipped)


@functools.lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, length: int, context: int, batch: int, order: str) -> np.ndarray:
    return window_starts([seed], epoch, length, context, batch, order=order)[0]


@dataclass(frozen=True)
class _TrainWindows:
    """Number of a training batch -> (x, y)."""

    corpus: Corpus
    context: int
    batch: int
    seed: int
    order: str

    def __call__(self, number: int) -> Made:
        length = len(self.corpus.train)
        steps = windows_per_epoch(length, self.context) // self.batch
        epoch, step = divmod(number, steps)
        starts = _epoch(self.seed, epoch, length, self.context, self.batch, self.order)[step]
        return _batch(self.corpus.train, starts, self.context, self.corpus.vocab)


@dataclass(frozen=True)
class _TestWindows:
    """Number of a test batch -> (x, y, real)."""

    corpus: Corpus
    context: int
    starts: np.ndarray
    real: np.ndarray

    def __call__(self, number: int) -> Made:
        made = _batch(self.corpus.test, self.starts[number], self.context, self.corpus.vocab)
        return made if isinstance(made, str) else ((*made[0], self.real[number]), 0)


def _batch(tokens: np.ndarray, starts: np.ndarray, context: int, vocab: int) -> Made:
    # np.asarray: indexing a memory map would make the copy pass for a map too
    x, y = cut_windows(np.asarray(tokens), starts, context)
    if int(x.max()) >= vocab or int(y.max()) >= vocab:
        path = getattr(tokens, "filename", "tokens")
        try:
            for start in starts.tolist():
                check_range(path, np.asarray(tokens[start : start + context + 1]), start, vocab)
        except ValueError as error:
            return str(error)
    return (x.astype(np.int32), y.astype(np.int32)), 0

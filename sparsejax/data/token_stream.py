"""Texts that stay on disk: windows of a memory-mapped file, batch by batch."""

import functools
from dataclasses import dataclass

import jax
import numpy as np

from sparsejax.data.checks import check_choice, check_integer
from sparsejax.data.corpus import Corpus
from sparsejax.data.draws import check_seed
from sparsejax.data.stream import Batches, Made, Stream
from sparsejax.data.tokens import check_range
from sparsejax.data.windows import ORDERS, covering_windows, cut_windows, window_starts, windows_per_epoch


def token_stream(corpus: Corpus, context: int, *, order: str = "random", steps: int = 0) -> Stream:
    """The windows of a corpus as a stream, so that its tokens need not fit on the device.

    Batches are those of `window_starts` and `covering_windows`, x and y int32 (B, context); of test batches, `real` is
    bool (B, context). Every token that is read is checked against the vocabulary.

    Args:
      corpus: memory-mapped, or in memory.
      context: inputs of a window.
      order: "random" or "consecutive" windows, see `window_starts`.
      steps: of an epoch of random windows; 0: about as many tokens as the text has.

    Returns:
      The stream; its train_size counts windows, its test_size the tokens that are predicted.

    Raises:
      ValueError: if the text is shorter than a window; from a batch, one line that names file, token and byte.
    """
    check_choice("windows", order, ORDERS)
    train_size = windows_per_epoch(len(corpus.train), context)
    windows_per_epoch(len(corpus.test), context)

    def train(batch_size: int, seed: int) -> Batches:
        check_integer("batch_size", batch_size, 1, 1 << 24 if steps else train_size)
        named = {"batch_size": batch_size, "seed": check_seed(seed), "context": context, "tokens": len(corpus.train)}
        named |= {
            "order": ORDERS.index(order),
            "steps": (steps if order == "random" else 0) or train_size // batch_size,
        }
        make = _TrainWindows(corpus, context, batch_size, seed, order, named["steps"])
        return Batches(make, named=named)

    def test(batch_size: int) -> Batches:
        starts, real = covering_windows(len(corpus.test), context, batch_size)
        named = {"batch_size": batch_size, "context": context, "tokens": len(corpus.test)}
        return Batches(_TestWindows(corpus, context, starts, real), named=named, count=len(starts))

    example = jax.ShapeDtypeStruct((context,), np.int32)
    return Stream(train, test, corpus.vocab, example, 0.0, 1.0, train_size, len(corpus.test) - 1, corpus.skipped)


@functools.lru_cache(maxsize=16)  # several seeds, and the epoch that is made ahead
def _epoch(seed: int, epoch: int, length: int, context: int, batch: int, order: str, steps: int) -> np.ndarray:
    return window_starts([seed], epoch, length, context, batch, order=order, steps=steps)[0]


@dataclass(frozen=True)
class _TrainWindows:
    """Number of a training batch -> (x, y)."""

    corpus: Corpus
    context: int
    batch: int
    seed: int
    order: str
    steps: int

    def __call__(self, number: int) -> Made:
        epoch, step = divmod(number, self.steps)
        return _batch(self.corpus.train, self.starts(epoch)[step], self.context, self.corpus.vocab)

    def starts(self, epoch: int) -> np.ndarray:
        return _epoch(self.seed, epoch, len(self.corpus.train), self.context, self.batch, self.order, self.steps)


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

"""Which windows of a text a step of training sees, and the windows that cover a test text once."""

from collections.abc import Sequence

import numpy as np

from sparsejax.data.checks import check_choice, check_integer
from sparsejax.data.draws import generator

ORDERS = ("random", "consecutive")


def windows_per_epoch(length: int, context: int) -> int:
    """How many windows without overlap a text of `length` tokens has; a window is `context` inputs and one more.

    Example:
      >>> windows_per_epoch(101, 10), windows_per_epoch(100, 10)
      (10, 9)
    """
    check_integer("context", context, 1, 1 << 24)
    if length <= context:
        raise ValueError(f"context: {context} is not below the {length} tokens of the text")
    return (length - 1) // context


def window_starts(
    seeds: Sequence[int],
    epoch: int,
    length: int,
    context: int,
    batch: int,
    *,
    order: str = "random",
    steps: int | None = None,
) -> np.ndarray:
    """Where the windows of an epoch begin: for each seed a function of (seed, epoch) and the sizes alone.

    By default an epoch has windows_per_epoch // batch steps, so about as many tokens as the text. "random": each start
    is drawn by itself from 0..length - context - 1. "consecutive": the windows lie end to end, from a start that is
    drawn, in an order that is drawn, so that no token is predicted twice in an epoch.

    Args:
      seeds: S integers, 0..2**63 - 1.
      epoch: 0, 1, ...
      length: tokens of the text.
      context: inputs of a window; it takes one token more, the last target.
      batch: windows in a step.
      order: "random" or "consecutive".
      steps: of an epoch, where the order is random; None is the default.

    Returns:
      (S, steps, batch), int32, or int64 for texts from 2**31 tokens on.

    Raises:
      ValueError: if the text is too short for a window or an epoch for a step.

    Example:
      >>> window_starts([0, 1], 0, 101, 10, 3).shape
      (2, 3, 3)
      >>> np.diff(np.sort(window_starts([0], 0, 101, 10, 1, order="consecutive").ravel())).tolist()
      [10, 10, 10, 10, 10, 10, 10, 10, 10]
    """
    check_choice("windows", order, ORDERS)
    windows = windows_per_epoch(length, context)
    if steps is not None and order == "random":
        windows = steps * batch
    steps = windows // check_integer("batch_size", batch, 1, windows)
    rows = [_starts(generator(seed, epoch), length, context, windows, order)[: steps * batch] for seed in seeds]
    return np.stack(rows).reshape(len(rows), steps, batch).astype(np.int32 if length < 1 << 31 else np.int64)


def _starts(draws: np.random.Generator, length: int, context: int, windows: int, order: str) -> np.ndarray:
    if order == "random":
        return draws.integers(length - context, size=windows)
    slack = length - 1 - windows * context  # what the windows leave over, before the first and after the last
    return draws.integers(slack + 1) + context * draws.permutation(windows)


def covering_windows(length: int, context: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows over a text such that every token but the first is predicted exactly once.

    The last window is moved back to end with the text; what the one before has predicted does not count in it. Where
    the last batch is not full, windows that count nothing fill it up.

    Args:
      length: tokens of the text.
      context: inputs of a window.
      batch: windows in a batch.

    Returns:
      starts: (K, batch), the dtype as of `window_starts`.
      real: bool (K, batch, context): whether the prediction at this place counts.

    Example:
      >>> starts, real = covering_windows(8, 3, 2)
      >>> starts.tolist(), real.sum(-1).tolist()
      ([[0, 3], [4, 0]], [[3, 3], [1, 0]])
    """
    check_integer("batch_size", batch, 1, 1 << 24)
    whole = windows_per_epoch(length, context)
    left = length - 1 - whole * context
    starts = np.arange(whole, dtype=np.int64) * context
    counts = np.full(whole, context)
    if left:
        starts, counts = np.append(starts, length - 1 - context), np.append(counts, left)
    batches = -(-len(starts) // batch)
    fill = (0, batches * batch - len(starts))
    real = np.arange(context) >= context - np.pad(counts, fill)[:, None]
    starts = np.pad(starts, fill).astype(np.int32 if length < 1 << 31 else np.int64)
    return starts.reshape(batches, batch), real.reshape(batches, batch, context)


def cut_windows(tokens, starts, context: int):
    """Inputs and targets of windows; the targets are the tokens one further. For NumPy and JAX alike.

    Args:
      tokens: integers (N,).
      starts: integers (*shape), each at most N - context - 1.
      context: inputs of a window.

    Returns:
      x, y: (*shape, context), the dtype of tokens.

    Example:
      >>> x, y = cut_windows(np.arange(10) * 10, np.array([0, 5]), 3)
      >>> x.tolist(), y.tolist()
      ([[0, 10, 20], [50, 60, 70]], [[10, 20, 30], [60, 70, 80]])
    """
    steps = np.arange(context + 1, dtype=starts.dtype)
    taken = tokens[starts[..., None] + steps.reshape(*(1,) * starts.ndim, -1)]
    return taken[..., :-1], taken[..., 1:]

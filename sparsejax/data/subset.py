"""Smaller experiments from the same data: a balanced part of the training set, and a held-out part as the test set."""

import numpy as np

from sparsejax.data.checks import check_integer
from sparsejax.data.source import Dataset


def subset(dataset: Dataset, *, limit: int = 0, validation: int = 0, split_seed: int = 0) -> Dataset:
    """The data set with `validation` training examples as its test set, and `limit` of the others for training.

    Args:
      dataset: in memory.
      limit: training examples to keep, as equally many of each class as there are; 0: all.
      validation: training examples to hold out, balanced in the same way, in place of the test set; 0: none, the test
        set stays.
      split_seed: which examples, together with the labels.

    Raises:
      ValueError: if `limit` or `validation` is out of range.
    """
    kept, held = split(dataset.train_y, limit=limit, validation=validation, split_seed=split_seed)
    if validation:
        dataset = dataset._replace(test_x=dataset.train_x[held], test_y=dataset.train_y[held])
    if limit or validation:
        dataset = dataset._replace(train_x=dataset.train_x[kept], train_y=dataset.train_y[kept])
    return dataset


def split(labels: np.ndarray, *, limit: int, validation: int, split_seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The sorted indices to train on and those held out; arguments as in `subset`.

    Example:
      >>> split(np.array([0, 0, 0, 1, 1, 1]), limit=2, validation=2, split_seed=0)
      (array([1, 5]), array([0, 4]))
    """
    size = len(labels)
    check_integer("split_seed", split_seed, 0, 2**63 - 1)
    check_integer("validation", validation, 0, size - 1)
    held = balanced(labels, validation, split_seed)
    rest = np.setdiff1d(np.arange(size), held)
    check_integer("limit", limit, 0, len(rest))
    kept = rest[balanced(labels[rest], limit, split_seed)] if limit else rest
    return kept, held


def balanced(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Sorted indices of `count` examples, as equally many of each class as the labels allow.

    Each class is put in an order of its own, then the classes take turns; one that has run out is passed over. So the
    counts of two classes differ by at most 1 unless one of them is used up, and a larger `count` keeps what a smaller
    one took.

    Args:
      labels: int (N,).
      count: 0..N.
      seed: which order.

    Returns:
      int64 (count,).
    """
    # Philox by name: NumPy promises the stream of a bit generator.
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    starts = np.searchsorted(labels[by_class], labels[by_class])  # where the class of each begins
    turn = np.arange(len(labels)) - starts
    return np.sort(by_class[np.argsort(turn, kind="stable")[:count]])

"""Handwritten digits that come with scikit-learn: no download."""

import numpy as np

from sparsejax.data.checks import check_integer
from sparsejax.data.source import Dataset
from sparsejax.data.subset import subset


def digits(
    data_dir: str = "", *, test_size: int = 360, split_seed: int = 0, limit: int = 0, validation: int = 0
) -> Dataset:
    """1,797 handwritten digits of 8x8 from scikit-learn, 10 classes (nothing to download).

    The split is a pure function of `split_seed`: one permutation, its first `test_size` images are the test set.
    The default leaves 1,437 for training.

    Args:
      data_dir: unused, the images are part of scikit-learn.
      test_size: images in the test set, 1 to 1796.
      split_seed: which split.
      limit: training images to use, the same number of each class; 0: all.
      validation: training images to hold out as the test set, in place of the `test_size` ones; 0: none.

    Raises:
      ValueError: if a number is out of range.

    Source: E. Alpaydin, C. Kaynak, Optical recognition of handwritten digits, UCI, 1998.
    """
    from sklearn.datasets import load_digits  # here: scikit-learn takes a second to import, and only digits needs it

    del data_dir
    bunch = load_digits()
    images, labels = bunch.images.astype(np.uint8), bunch.target.astype(np.int32)
    check_integer("test_size", test_size, 1, len(labels) - 1)
    # Philox by name: NumPy promises the stream of a bit generator, and `permutation` is built on bounded integers of
    # it.
    order = np.random.Generator(np.random.Philox(split_seed)).permutation(len(labels))
    test, train = order[:test_size], order[test_size:]
    whole = Dataset(images[train], labels[train], images[test], labels[test], classes=10, offset=0.0, scale=1 / 16)
    return subset(whole, limit=limit, validation=validation, split_seed=split_seed)

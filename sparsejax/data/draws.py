"""Random numbers on the host that depend on names alone: (seed, epoch) and, where there are many, an example."""

import functools

import numpy as np

from sparsejax.data.checks import check_integer


def generator(seed: int, epoch: int, example: int = -1) -> np.random.Generator:
    """The generator of an epoch, or of the example at one place of it; all of them are independent of each other.

    Args:
      seed: 0..2**63 - 1.
      epoch: 0, 1, ...
      example: place in the epoch; -1: the epoch's own generator.

    Example:
      >>> bool(generator(0, 3).random() == generator(0, 3).random()), bool(generator(0, 3, 5).random() < 1)
      (True, True)
    """
    # Philox by name: NumPy promises the stream of a bit generator. The lower two words of its counter count the
    # numbers drawn, the third says whose they are.
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, example + 1, 0]))


@functools.lru_cache(maxsize=16)  # several seeds, and the epoch that is made ahead
def epoch_permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """int64 (size,), read-only: in which order an epoch takes the examples; the same as in memory.

    Example:
      >>> sorted(epoch_permutation(0, 1, 4).tolist())
      [0, 1, 2, 3]
    """
    order = generator(seed, epoch).permutation(size)
    order.flags.writeable = False
    return order


def check_seed(seed: int) -> int:
    """`seed`, if a generator can be named by it."""
    return check_integer("seed", seed, 0, 2**63 - 1)

"""In which order the examples of an epoch come, and where the windows of a text begin."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def epoch_order(seeds: Sequence[int], epoch: int, size: int) -> jax.Array:
    """int32 (S, size): for each seed a permutation of the examples, a function of (seed, epoch, size) alone.

    Drawn on the host, while the device is busy with the epoch before: a random permutation on the device is a sort
    or two, a hundred times slower on a CPU.

    Example:
      >>> epoch_order([0, 1], 0, 4).shape
      (2, 4)
    """
    # Philox by name, keyed by both numbers: NumPy promises the stream of a bit generator.
    draw = lambda seed: np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(size)
    return jnp.asarray(np.stack([draw(seed) for seed in seeds]).astype(np.int32))


def window_starts(seeds: Sequence[int], epoch: int, size: int, starts: int) -> jax.Array:
    """int32 (S, size): for each seed positions in [0, starts), a function of (seed, epoch, size, starts) alone.

    Example:
      >>> window_starts([0, 1], 0, 4, 100).shape
      (2, 4)
    """
    draw = lambda seed: np.random.Generator(np.random.Philox(key=[seed, epoch])).integers(0, starts, size, np.int32)
    return jnp.asarray(np.stack([draw(seed) for seed in seeds]))

"""In which order the examples of an epoch come."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.data.draws import epoch_permutation


def epoch_order(seeds: Sequence[int], epoch: int, size: int) -> jax.Array:
    """int32 (S, size): for each seed a permutation of the examples, a function of (seed, epoch, size) alone.

    Drawn on the host, while the device is busy with the epoch before: a random permutation on the device is a sort
    or two, a hundred times slower on a CPU.

    Example:
      >>> epoch_order([0, 1], 0, 4).shape
      (2, 4)
    """
    return jnp.asarray(np.stack([epoch_permutation(seed, epoch, size) for seed in seeds]).astype(np.int32))

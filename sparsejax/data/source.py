"""What an image set in memory is: four arrays, how to scale the pixels, how many classes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# one number for all channels, or one for each of the last axis
PerChannel = float | tuple[float, ...]


class Dataset(NamedTuple):
    """A classification data set in memory.

    Attributes:
      train_x: uint8 (N, *shape); kept as bytes, also on the device, and scaled batch by batch.
      train_y: int32 (N,) in [0, classes).
      test_x: uint8 (M, *shape).
      test_y: int32 (M,).
      classes: number of classes.
      offset: pixel value that becomes 0, for all channels or for each of the last axis.
      scale: a model sees (pixel - offset) * scale, see `standardized`; for all channels or for each.
      skipped: damaged examples that were left out under on_error="skip".
    """

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    classes: int
    offset: PerChannel
    scale: PerChannel
    skipped: int = 0

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of one example, without a batch axis."""
        return jax.ShapeDtypeStruct(self.train_x.shape[1:], self.train_x.dtype)

    @property
    def streamed(self) -> bool:
        return False


def standardized(x: jax.Array, offset: PerChannel, scale: PerChannel) -> jax.Array:
    """What a model sees of a batch: (x - offset) * scale.

    Args:
      x: any dtype, (B, ..., C) where offset or scale are given for each of the C channels.
      offset: pixel value that becomes 0.
      scale: what one step of a pixel becomes.

    Returns:
      float32, the shape of x.

    Example:
      >>> standardized(jnp.full((1, 2, 2, 3), 8, jnp.uint8), (8.0, 4.0, 0.0), 0.5)[0, 0, 0].tolist()
      [0.0, 2.0, 4.0]
    """
    offsets, scales = (jnp.asarray(_along_last(value, x.ndim), jnp.float32) for value in (offset, scale))
    return (x.astype(jnp.float32) - offsets) * scales


def _along_last(value: PerChannel, ndim: int) -> PerChannel | np.ndarray:
    # every axis is written out: rank promotion is an error where a user asks for that
    return np.asarray(value, np.float32).reshape(*(1,) * (ndim - 1), -1) if np.ndim(value) else value


def from_moments(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(offset, scale) that bring bytes whose mean and deviation are given as parts of 255 to mean 0, deviation 1.

    Example:
      >>> from_moments((0.2,), (0.5,))
      ((51.0,), (0.00784313725490196,))
    """
    return tuple(255 * value for value in mean), tuple(1 / (255 * value) for value in std)

"""Cutout: a square of each image is blank."""

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.data.crops import Augmentation


def cutout(size: int = 16, fill: float | tuple[float, ...] = 0) -> Augmentation:
    """A square of size x size around a random pixel takes the value `fill`; what lies outside of the image is lost.

    The paper fills with the mean colour, on standardised pixels 0: give the data's offset where pixels are bytes.

    Args:
      size: pixels of a side.
      fill: value of the square, one for all channels or one for each.

    Returns:
      (key, x (B, H, W, C) or (B, H, W)) -> x of the same shape and dtype.

    Raises:
      ValueError: if size is not an integer >= 1, or fill not a number or several.

    Example:
      >>> int((cutout(2, 7)(jax.random.key(1), jnp.zeros((1, 9, 9))) == 7).sum())
      4

    Source: T. DeVries, G. W. Taylor, Improved regularization of convolutional neural networks with cutout, 2017.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size: {size!r} is not an integer >= 1")
    if not all(isinstance(value, int | float) for value in (fill if isinstance(fill, tuple) else (fill,))):
        raise ValueError(f"fill: {fill!r} is not a number, nor one for each channel")

    def augmented(key: jax.Array, x: jax.Array) -> jax.Array:
        rows, columns = jax.random.split(key)
        centre_B = lambda key, side: jax.random.randint(key, x.shape[:1], 0, side)
        centre_Bx2 = jnp.stack([centre_B(rows, x.shape[1]), centre_B(columns, x.shape[2])], axis=1)
        return blanked(x, centre_Bx2, size, fill)

    return augmented


def blanked(x: jax.Array, centre_Bx2: jax.Array, size: int, fill: float | tuple[float, ...] = 0) -> jax.Array:
    """The images with rows and columns centre - size // 2 and the size - 1 after them at `fill`."""
    first_Bx2 = centre_Bx2 - size // 2
    inside = lambda axis: _within(jnp.arange(x.shape[axis + 1])[None], first_Bx2[:, axis, None], size)
    square_BxHxW = inside(0)[:, :, None] & inside(1)[:, None, :]
    square = square_BxHxW.reshape(*square_BxHxW.shape, *(1,) * (x.ndim - 3))
    value = np.asarray(fill, np.float32)
    if jnp.issubdtype(x.dtype, jnp.integer):
        value = value.round().clip(0, 255)
    return jnp.where(square, jnp.asarray(value.reshape(*(1,) * (x.ndim - 1), -1), x.dtype), x)


def _within(place: jax.Array, first: jax.Array, size: int) -> jax.Array:
    return (place >= first) & (place < first + size)

"""The operations of RandAugment that move pixels: one affine map of each image, nearest pixel, black outside.

A map is float32 (2, 3): it takes the place (x, y, 1) of a pixel of the result, in pixels from the image's middle, to
the place in the image where its value is found.
"""

import math

import jax
import jax.numpy as jnp


def identity() -> jax.Array:
    """The map that moves nothing."""
    return jnp.asarray([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], jnp.float32)


def rotation(degrees: jax.Array) -> jax.Array:
    """Counterclockwise about the middle."""
    angle = jnp.asarray(degrees, jnp.float32) * (math.pi / 180)
    c, s, zero = jnp.cos(angle), jnp.sin(angle), jnp.zeros((), jnp.float32)
    return jnp.stack([jnp.stack([c, -s, zero]), jnp.stack([s, c, zero])])


def shear_x(factor: jax.Array) -> jax.Array:
    """Each row by `factor` times its distance from the middle row, to the left below it for a factor above 0."""
    return identity().at[0, 1].set(factor)


def shear_y(factor: jax.Array) -> jax.Array:
    """Each column by `factor` times its distance from the middle column, up on the right for a factor above 0."""
    return identity().at[1, 0].set(factor)


def translate_x(pixels: jax.Array) -> jax.Array:
    """To the left, for pixels above 0."""
    return identity().at[0, 2].set(pixels)


def translate_y(pixels: jax.Array) -> jax.Array:
    """Up, for pixels above 0."""
    return identity().at[1, 2].set(pixels)


def moved(image: jax.Array, map_2x3: jax.Array) -> jax.Array:
    """The image (H, W, C) under the map.

    Example:
      >>> moved(jnp.arange(4, dtype=jnp.uint8).reshape(1, 4, 1), translate_x(1.0)).ravel().tolist()
      [1, 2, 3, 0]
    """
    height, width = image.shape[:2]
    y, x = jnp.meshgrid(jnp.arange(height) + (0.5 - height / 2), jnp.arange(width) + (0.5 - width / 2), indexing="ij")
    at = lambda row, size: jnp.floor(row[0] * x + row[1] * y + row[2] + size / 2).astype(jnp.int32)
    from_x, from_y = at(map_2x3[0], width), at(map_2x3[1], height)
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    place = jnp.clip(from_y, 0, height - 1) * width + jnp.clip(from_x, 0, width - 1)
    taken = image.reshape(height * width, -1)[place.ravel()].reshape(image.shape)
    return jnp.where(inside[..., None], taken, jnp.zeros((), image.dtype))

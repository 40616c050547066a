"""The operations of RandAugment that change colours: each a table of 256 values for each channel, or a blend.

Images are uint8 (H, W, C), C = 1 or 3; batches come by vmap.
"""

import jax
import jax.numpy as jnp
import numpy as np

_VALUES = np.arange(256, dtype=np.int32)  # of NumPy: an import starts no device


def look_up(image: jax.Array, table_Cx256: jax.Array) -> jax.Array:
    """The image with each value replaced by what its channel's table says."""
    return table_Cx256[jnp.arange(image.shape[-1]), image.astype(jnp.int32)]


def histogram(image: jax.Array) -> jax.Array:
    """int32 (C, 256): how often each value occurs in each channel."""
    count = lambda channel: jnp.zeros(256, jnp.int32).at[channel].add(1)
    return jax.vmap(count)(image.reshape(-1, image.shape[-1]).T.astype(jnp.int32))


def autocontrast(counts_Cx256: jax.Array) -> jax.Array:
    """Tables that spread the values that occur over 0..255; the identity where only one occurs."""
    there = counts_Cx256 > 0
    low = jnp.argmax(there, axis=1).astype(jnp.int32)[:, None]
    high = 255 - jnp.argmax(there[:, ::-1], axis=1).astype(jnp.int32)[:, None]
    spread = 255 * (_VALUES[None] - low) // jnp.maximum(high - low, 1)
    return _bytes(jnp.where(high > low, spread, _VALUES[None]))


def equalize(counts_Cx256: jax.Array) -> jax.Array:
    """Tables that make the values as even as possible: (pixels below + half a step) // step.

    A step is the number of pixels, those of the largest value left out, by 255; the identity where it is 0.
    """
    last = 255 - jnp.argmax(counts_Cx256[:, ::-1] > 0, axis=1)
    largest = jnp.take_along_axis(counts_Cx256, last[:, None], axis=1)
    step = (counts_Cx256.sum(axis=1, keepdims=True) - largest) // 255
    below = jnp.cumsum(counts_Cx256, axis=1) - counts_Cx256
    even = (below + step // 2) // jnp.maximum(step, 1)
    return _bytes(jnp.where(step > 0, even, _VALUES[None]))


def solarize(threshold: int) -> jax.Array:
    """The table that inverts what is not below the threshold."""
    return _bytes(jnp.where(threshold > _VALUES, _VALUES, 255 - _VALUES))[None]


def posterize(bits: int) -> jax.Array:
    """The table that keeps the `bits` highest bits."""
    return _bytes(jnp.asarray(_VALUES & ~((1 << (8 - bits)) - 1)))[None]


def brightness(factor: jax.Array) -> jax.Array:
    """The table of a blend with black."""
    return blend(jnp.zeros(256), _VALUES, factor)[None]


def contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """The table of a blend with the image's mean grey."""
    shade = grey(image)
    # in two steps, so that the sum of a large image stays exact in 32 bits
    mean = shade.astype(jnp.float32).mean(axis=0).mean()
    return blend(jnp.full(256, jnp.floor(mean + 0.5)), _VALUES, factor)[None]


def grey(image: jax.Array) -> jax.Array:
    """int32 (H, W, 1): the luma of ITU-R 601-2, (19595 R + 38470 G + 7471 B) / 65536 rounded; of one channel itself."""
    values = image.astype(jnp.int32)
    if image.shape[-1] == 1:
        return values
    red, green, blue = (values[..., channel, None] for channel in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def smooth(image: jax.Array) -> jax.Array:
    """int32 (H, W, C): the mean of each pixel, weight 5, and its eight neighbours; the border stays as it is."""
    values = image.astype(jnp.int32)
    height, width = image.shape[:2]
    if height < 3 or width < 3:
        return values
    shifted = [values[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3)]
    inner = sum(shifted, 4 * values[1:-1, 1:-1])
    return values.at[1:-1, 1:-1].set((2 * inner + 13) // 26)  # rounded, in integers


def blend(base: jax.Array, values: jax.Array | np.ndarray, factor: jax.Array) -> jax.Array:
    """uint8 base + factor (values - base), cut to 0..255 and rounded down; a factor above 1 leads away from base."""
    base, values = (jnp.asarray(part, jnp.float32) for part in (base, values))
    return _bytes(base + factor * (values - base))


def _bytes(values: jax.Array) -> jax.Array:
    return jnp.clip(values, 0, 255).astype(jnp.uint8)

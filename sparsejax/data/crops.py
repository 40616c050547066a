"""Augmentations that move pixels: padded crops, mirror images, random boxes resized.

Each is a factory of a pure function (key, x (B, H, W, C) or (B, H, W)) -> x of the same shape and dtype, beside the
function that does the same for numbers that are given instead of drawn.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Augmentation = Callable[[jax.Array, jax.Array], jax.Array]


def pad_crop_flip(padding: int = 4) -> Augmentation:
    """A crop of the image's own size from the image with a black border, mirrored half of the time.

    Args:
      padding: pixels of the border on each side.

    Raises:
      ValueError: if padding is not an integer >= 1.

    Example:
      >>> x = jnp.ones((2, 8, 8, 3), jnp.uint8)
      >>> pad_crop_flip(2)(jax.random.key(0), x).shape
      (2, 8, 8, 3)

    Source: K. He et al., Deep residual learning for image recognition, 2016, section 4.2.
    """
    if isinstance(padding, bool) or not isinstance(padding, int) or padding < 1:
        raise ValueError(f"padding: {padding!r} is not an integer >= 1")

    def augmented(key: jax.Array, x: jax.Array) -> jax.Array:
        place, mirror = jax.random.split(key)
        corner_Bx2 = jax.random.randint(place, (x.shape[0], 2), 0, 2 * padding + 1)
        return mirrored(padded_crop(x, corner_Bx2, padding), jax.random.bernoulli(mirror, shape=x.shape[:1]))

    return augmented


def flip() -> Augmentation:
    """Mirrored left to right half of the time.

    Example:
      >>> flip()(jax.random.key(0), jnp.arange(8.0).reshape(1, 2, 4)).shape
      (1, 2, 4)
    """
    return lambda key, x: mirrored(x, jax.random.bernoulli(key, shape=x.shape[:1]))


def random_resized_crop(
    area: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> Augmentation:
    """A random box of the image, resized to the image's own size (bilinear, antialiased); no flip.

    The share of the area is uniform in `area`, the ratio of width to height log-uniform in `ratio`; the first of ten
    boxes that fits is taken, or else the largest box in the middle whose ratio is allowed.

    Args:
      area: least and largest share.
      ratio: least and largest ratio.

    Raises:
      ValueError: if a pair is not two numbers in order.

    Example:
      >>> random_resized_crop((0.2, 1.0))(jax.random.key(0), jnp.ones((2, 8, 8, 3), jnp.uint8)).dtype
      dtype('uint8')

    Source: C. Szegedy et al., Going deeper with convolutions, 2015.
    """
    if not _in_order(area) or area[1] > 1:
        raise ValueError(f"area: {area!r} is not two numbers, 0 < least <= largest <= 1")
    if not _in_order(ratio):
        raise ValueError(f"ratio: {ratio!r} is not two numbers, 0 < least <= largest")

    def augmented(key: jax.Array, x: jax.Array) -> jax.Array:
        batch, height, width = x.shape[:3]
        return resized_boxes(x, random_boxes(key, batch, height, width, area, ratio))

    return augmented


def padded_crop(x: jax.Array, corner_Bx2: jax.Array, padding: int) -> jax.Array:
    """From each image with a border of zeros, the crop whose top and left are `corner_Bx2` in 0..2 * padding."""
    border = [(0, 0), (padding, padding), (padding, padding)] + [(0, 0)] * (x.ndim - 3)

    def crop(image, corner):
        starts = (corner[0], corner[1]) + (0,) * (image.ndim - 2)
        return jax.lax.dynamic_slice(image, starts, x.shape[1:])

    return jax.vmap(crop)(jnp.pad(x, border), corner_Bx2)


def mirrored(x: jax.Array, which_B: jax.Array) -> jax.Array:
    """The images with those that `which_B` marks mirrored left to right."""
    return jnp.where(which_B.reshape(-1, *(1,) * (x.ndim - 1)), x[:, :, ::-1], x)


def random_boxes(
    key: jax.Array, batch: int, height: int, width: int, area: tuple[float, float], ratio: tuple[float, float]
) -> jax.Array:
    """int32 (B, 4): top, left, height and width of a random box for each image, see `random_resized_crop`."""
    keys = jax.random.split(key, 3)
    tries = (batch, 10)
    pixels = height * width * jax.random.uniform(keys[0], tries, minval=area[0], maxval=area[1])
    least, most = (jnp.log(jnp.float32(value)) for value in ratio)
    shape = jnp.exp(jax.random.uniform(keys[1], tries, minval=least, maxval=most))
    w = jnp.round(jnp.sqrt(pixels * shape)).astype(jnp.int32)
    h = jnp.round(jnp.sqrt(pixels / shape)).astype(jnp.int32)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = jnp.argmax(fits, axis=1, keepdims=True)
    taken = lambda tried: jnp.take_along_axis(tried, first, axis=1)[:, 0]
    any_fits = fits.any(axis=1)
    largest_w = max(1, min(width, round(height * ratio[1])))
    largest_h = max(1, min(height, round(width / ratio[0])))
    w, h = jnp.where(any_fits, taken(w), largest_w), jnp.where(any_fits, taken(h), largest_h)
    room_Bx2 = jnp.stack([height - h, width - w], axis=1)
    drawn = jnp.floor(jax.random.uniform(keys[2], (batch, 2)) * (room_Bx2 + 1)).astype(jnp.int32)
    corner = jnp.where(any_fits[:, None], jnp.minimum(drawn, room_Bx2), room_Bx2 // 2)
    return jnp.concatenate([corner, jnp.stack([h, w], axis=1)], axis=1)


def resized_boxes(x: jax.Array, box_Bx4: jax.Array) -> jax.Array:
    """Each image's box (top, left, height, width; int32) resized to the size of the image."""
    size = jnp.asarray(x.shape[1:3], jnp.float32)

    def resized(image, box):
        scale = size / box[2:].astype(jnp.float32)
        shift = -box[:2].astype(jnp.float32) * scale
        return jax.image.scale_and_translate(image, image.shape, (0, 1), scale, shift, "linear", antialias=True)

    out = jax.vmap(resized)(x.astype(jnp.float32), box_Bx4)
    return rounded(out, x.dtype)


def rounded(x: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """`x` in `dtype`; bytes are rounded and stay in 0..255."""
    return (jnp.clip(jnp.round(x), 0, 255) if jnp.issubdtype(dtype, jnp.integer) else x).astype(dtype)


def _in_order(pair: tuple[float, float]) -> bool:
    fine = isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(v, int | float) for v in pair)
    return fine and 0 < pair[0] <= pair[1]

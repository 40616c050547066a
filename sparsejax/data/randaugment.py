"""RandAugment on the device: n operations of one strength, drawn for each image.

Under vmap a branch of a switch runs for every image whatever it drew, fourteen of them. So an operation is written as
one or two of three things that all images go through, each with the neutral value where an image drew something else:
a table for each channel, a blend with a second image, an affine map.
"""

import jax
import jax.numpy as jnp

from sparsejax.data import affine, colours
from sparsejax.data.crops import Augmentation

OPERATIONS = (
    "identity", "autocontrast", "equalize", "rotate", "solarize", "color", "posterize", "contrast", "brightness",
    "sharpness", "shear_x", "shear_y", "translate_x", "translate_y",
)  # fmt: skip
_TABLES = ("identity", "autocontrast", "equalize", "solarize", "posterize", "contrast", "brightness")
_MAPS = ("identity", "rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def randaugment(n: int = 2, magnitude: float = 9) -> Augmentation:
    """n of 14 operations for each image, drawn with replacement, all of one magnitude.

    At magnitude m of 10, with a random sign s where there are two directions: rotate 30 m/10 degrees; shear 0.3 m/10;
    translate 150/331 of a side m/10; color, contrast, brightness and sharpness by a factor 1 + 0.9 s m/10; posterize
    to 8 - round(4 m/10) bits; solarize from 256 (1 - m/10) on. Black comes in at the border.

    Args:
      n: operations, one after the other.
      magnitude: 0..10.

    Returns:
      (key, x uint8 (B, H, W, 3), (B, H, W, 1) or (B, H, W)) -> x of the same shape and dtype.

    Raises:
      ValueError: if n is not an integer >= 1 or magnitude not in 0..10; when called, if x is not bytes.

    Example:
      >>> jax.eval_shape(randaugment(2, 9), jax.random.key(0), jnp.zeros((2, 8, 8, 3), jnp.uint8)).dtype
      dtype('uint8')

    Source: E. D. Cubuk et al., RandAugment: practical automated data augmentation with a reduced search space, 2020.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n: {n!r} is not an integer >= 1")
    if isinstance(magnitude, bool) or not isinstance(magnitude, int | float) or not 0 <= magnitude <= 10:
        raise ValueError(f"magnitude: {magnitude!r} is not a number in 0..10")

    def augmented(key: jax.Array, x: jax.Array) -> jax.Array:
        for k in jax.random.split(key, n):
            which, sign = jax.random.split(k)
            operation_B = jax.random.randint(which, x.shape[:1], 0, len(OPERATIONS))
            sign_B = jnp.where(jax.random.bernoulli(sign, shape=x.shape[:1]), 1.0, -1.0)
            x = operated(x, operation_B, sign_B, magnitude)
        return x

    return augmented


def operated(x: jax.Array, operation_B: jax.Array, sign_B: jax.Array, magnitude: float) -> jax.Array:
    """Each image after one operation: its index in OPERATIONS, and 1 or -1 for its direction."""
    if x.dtype != jnp.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[-1] not in (1, 3)):
        raise ValueError(f"randaugment: takes uint8 (B, H, W), (B, H, W, 1) or (B, H, W, 3), not {x.dtype} {x.shape}")
    one = lambda image, operation, sign: _operated(image, operation, sign, magnitude / 10)
    return jax.vmap(one)(x[..., None] if x.ndim == 3 else x, operation_B, sign_B).reshape(x.shape)


def _operated(image: jax.Array, operation: jax.Array, sign: jax.Array, strength: float) -> jax.Array:
    drew = lambda name: operation == OPERATIONS.index(name)
    factor = 1 + 0.9 * strength * sign
    image = colours.look_up(image, _table(image, operation, factor, strength))
    base = jnp.where(drew("color"), colours.grey(image), colours.smooth(image))
    blended = colours.blend(base, image, factor)
    image = jnp.where(drew("color") | drew("sharpness"), blended, image)
    return affine.moved(image, _map(image, operation, sign * strength))


def _table(image: jax.Array, operation: jax.Array, factor: jax.Array, strength: float) -> jax.Array:
    counts = colours.histogram(image)
    tables = {
        "identity": jnp.arange(256, dtype=jnp.uint8)[None],
        "autocontrast": colours.autocontrast(counts),
        "equalize": colours.equalize(counts),
        "solarize": colours.solarize(round(256 * (1 - strength))),
        "posterize": colours.posterize(8 - round(4 * strength)),
        "contrast": colours.contrast(image, factor),
        "brightness": colours.brightness(factor),
    }
    stacked = jnp.stack([jnp.broadcast_to(tables[name], (image.shape[-1], 256)) for name in _TABLES])
    return stacked[_place(operation, _TABLES)]


def _map(image: jax.Array, operation: jax.Array, amount: jax.Array) -> jax.Array:
    height, width = image.shape[:2]
    far = lambda side: jnp.round(150 / 331 * side * amount)  # whole pixels
    maps = {
        "identity": affine.identity(),
        "rotate": affine.rotation(30 * amount),
        "shear_x": affine.shear_x(0.3 * amount),
        "shear_y": affine.shear_y(0.3 * amount),
        "translate_x": affine.translate_x(far(width)),
        "translate_y": affine.translate_y(far(height)),
    }
    return jnp.stack([maps[name] for name in _MAPS])[_place(operation, _MAPS)]


def _place(operation: jax.Array, names: tuple[str, ...]) -> jax.Array:
    """Where the operation is among `names`; that of the identity, if it is not."""
    return jnp.asarray([names.index(name) if name in names else 0 for name in OPERATIONS], jnp.int32)[operation]

"""RandAugment's operations against Pillow's, one by one, and what is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from sparsejax.data.randaugment import OPERATIONS, operated, randaugment

SIDE = 32
AFFINE = Image.Transform.AFFINE


def pictures():
    """Noise; a dim one; a smooth one; one value alone; two values."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    smooth = np.stack([128 + 120 * np.sin(rows / 7 + k) * np.cos(columns / 9 - k) for k in range(3)], -1)
    return np.stack(
        [
            rng.integers(0, 256, (SIDE, SIDE, 3)),
            rng.integers(60, 130, (SIDE, SIDE, 3)),
            smooth,
            np.full((SIDE, SIDE, 3), 90),
            np.where(rng.random((SIDE, SIDE, 3)) < 0.2, 10, 200),
        ]
    ).astype(np.uint8)


def sheared(image, x, y):
    """About the middle, as an affine map of Pillow: the place that a pixel of the result comes from."""
    middle = SIDE / 2
    return image.transform((SIDE, SIDE), AFFINE, (1, x, -x * middle, y, 1, -y * middle))


def by_pillow(name, image, sign, m):
    """The operation at magnitude m by the words of its definition."""
    factor = 1 + sign * 0.9 * m / 10
    far = sign * round(150 / 331 * SIDE * m / 10)
    return {
        "identity": lambda: image,
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "rotate": lambda: image.rotate(sign * 30 * m / 10),
        "solarize": lambda: ImageOps.solarize(image, round(256 * (1 - m / 10))),
        "color": lambda: ImageEnhance.Color(image).enhance(factor),
        "posterize": lambda: ImageOps.posterize(image, 8 - round(4 * m / 10)),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
        "shear_x": lambda: sheared(image, sign * 0.3 * m / 10, 0),
        "shear_y": lambda: sheared(image, 0, sign * 0.3 * m / 10),
        "translate_x": lambda: image.transform(image.size, AFFINE, (1, 0, far, 0, 1, 0)),
        "translate_y": lambda: image.transform(image.size, AFFINE, (1, 0, 0, 0, 1, far)),
    }[name]()


apply = jax.jit(operated, static_argnums=3)
# Pillow computes tables in double precision and maps in fixed point: a level or the nearest of two pixels may differ.
LEVELS = {"autocontrast": 1, "color": 1, "contrast": 1, "brightness": 1, "sharpness": 1}
PIXELS = {"rotate": 0.01, "shear_x": 0.01, "shear_y": 0.01}


@pytest.mark.parametrize("m", [3, 9])  # 4 would shear pixels to exactly between two
def test_every_operation_is_pillows(m):
    x = pictures()
    names, signs = [n for n in OPERATIONS for _ in (1, -1)], [1, -1] * len(OPERATIONS)
    each = np.repeat(np.arange(len(names)), len(x))
    got = apply(
        jnp.asarray(np.tile(x, (len(names), 1, 1, 1))),
        jnp.asarray([OPERATIONS.index(name) for name in names])[each],
        jnp.asarray(signs, jnp.float32)[each],
        m,
    )
    got = np.asarray(got).reshape(len(names), *x.shape)
    for name, sign, some in zip(names, signs, got):
        for picture, one in zip(x, some):
            expected = np.asarray(by_pillow(name, Image.fromarray(picture), sign, m)).astype(int)
            off = np.abs(one - expected)
            off[off <= LEVELS.get(name, 0)] = 0
            assert (off > 0).mean() <= PIXELS.get(name, 0), (name, sign, off.max())
        if name != "identity":
            assert (some != x).any(), name


@pytest.mark.parametrize("shape", [(2, SIDE, SIDE), (2, SIDE, SIDE, 1)])
def test_grey_images(shape):
    x = pictures()[:2, :, :, 0]
    for name in OPERATIONS:
        if name == "color":  # a grey picture has no other grey
            continue
        got = apply(jnp.asarray(x.reshape(shape)), jnp.full(2, OPERATIONS.index(name)), jnp.ones(2), 7)
        assert got.shape == shape
        for picture, one in zip(x, np.asarray(got).reshape(x.shape)):
            off = np.abs(one - np.asarray(by_pillow(name, Image.fromarray(picture), 1, 7)).astype(int))
            assert (off > LEVELS.get(name, 0)).mean() <= PIXELS.get(name, 0), name


def test_magnitude_0_changes_nothing_but_the_two_without_a_magnitude():
    x = pictures()[:1]
    which = [name for name in OPERATIONS if name not in ("autocontrast", "equalize")]
    got = apply(
        jnp.asarray(np.tile(x, (len(which), 1, 1, 1))),
        jnp.asarray([OPERATIONS.index(name) for name in which]),
        jnp.ones(len(which)),
        0,
    )
    np.testing.assert_array_equal(got, np.tile(x, (len(which), 1, 1, 1)))


def test_each_operation_is_drawn_and_each_image_draws_its_own():
    x = pictures()[2:3]
    got = np.asarray(jax.jit(randaugment(1, 6))(jax.random.key(0), jnp.asarray(np.tile(x, (400, 1, 1, 1)))))
    expected = {}
    for name in OPERATIONS:
        for sign in (1.0, -1.0):
            one = apply(jnp.asarray(x), jnp.full(1, OPERATIONS.index(name)), jnp.full(1, sign), 6)
            expected.setdefault(np.asarray(one[0]).tobytes(), name)
    counts = dict.fromkeys(expected.values(), 0)
    for one in got:
        counts[expected[one.tobytes()]] += 1  # KeyError: not one of the operations
    assert min(counts.values()) > 5 and len(counts) >= 13, counts
    # two operations one after the other are mostly none of the single ones
    twice = np.asarray(jax.jit(randaugment(2, 6))(jax.random.key(0), jnp.asarray(np.tile(x, (100, 1, 1, 1)))))
    assert sum(one.tobytes() not in expected for one in twice) > 50


@pytest.mark.parametrize("x", [np.zeros((1, 4, 4, 3), np.float32), np.zeros((1, 4, 4, 2), np.uint8)])
def test_other_images_are_refused(x):
    with pytest.raises(ValueError, match="randaugment: takes uint8"):
        randaugment()(jax.random.key(0), jnp.asarray(x))

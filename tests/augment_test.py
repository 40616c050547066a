"""Augmentations on the device against NumPy and Pillow on given draws, and against what their draws promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sparsejax.data.augment import AUGMENTATIONS, augment, mix
from sparsejax.data.crops import flip, mirrored, pad_crop_flip, padded_crop, random_boxes, resized_boxes
from sparsejax.data.cutout import blanked, cutout
from sparsejax.data.mixing import blended, cutmix, mixup, patched, random_patch


def images(*shape, dtype=np.uint8, seed=0):
    """Random pixels."""
    return np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)


@pytest.mark.parametrize("shape", [(5, 6, 7, 3), (5, 6, 7)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_padded_crop_and_mirror(shape, dtype):
    x = images(*shape, dtype=dtype)
    rng = np.random.default_rng(1)
    corner, which = rng.integers(0, 5, (5, 2)), rng.integers(0, 2, 5).astype(bool)
    got = mirrored(padded_crop(jnp.asarray(x), jnp.asarray(corner), 2), jnp.asarray(which))
    padded = np.pad(x, [(0, 0), (2, 2), (2, 2)] + [(0, 0)] * (x.ndim - 3))
    for image, (top, left), mirror, one in zip(padded, corner, which, got):
        expected = image[top : top + 6, left : left + 7]
        np.testing.assert_array_equal(one, expected[:, ::-1] if mirror else expected)
    assert got.dtype == dtype


def test_pad_crop_flip_draws_every_place_and_side():
    # a single bright pixel in the middle tells where the crop was
    x = np.zeros((2000, 5, 5), np.uint8)
    x[:, 2, 1] = 1
    got = np.asarray(jax.jit(pad_crop_flip(1))(jax.random.key(0), jnp.asarray(x)))
    places, counts = np.unique(np.argwhere(got)[:, 1:], axis=0, return_counts=True)
    # rows 1, 2, 3; columns 0, 1, 2 and mirrored 4, 3, 2: column 2 both ways
    assert sorted(map(tuple, places.tolist())) == sorted((r, c) for r in (1, 2, 3) for c in range(5))
    expected = np.where(places[:, 1] == 2, 2, 1) * 2000 / 18
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_flip_takes_about_half():
    x = np.tile(np.arange(4, dtype=np.uint8), (1000, 2, 1))
    got = np.asarray(flip()(jax.random.key(3), jnp.asarray(x)))
    mirror = (got == x[:, :, ::-1]).all((1, 2))
    assert (mirror | (got == x).all((1, 2))).all() and 420 < mirror.sum() < 580


@pytest.mark.parametrize("channels", [(3,), ()])
def test_resized_boxes_are_pillows(channels):
    # smooth pictures: noise would show the rounding between Pillow's two passes
    rows, columns = np.mgrid[:24, :20]
    plain = np.stack([120 + 100 * np.sin(rows / 5 + k) * np.cos(columns / (3 + k)) for k in range(3)], -1)
    plain = plain.astype(np.uint8)
    boxes = np.asarray([(0, 0, 24, 20), (3, 4, 9, 8), (10, 0, 14, 20), (23, 19, 1, 1), (0, 5, 2, 13)], np.int32)
    x = np.stack([plain] * len(boxes))
    if not channels:
        x = x[..., 0]
    got = np.asarray(jax.jit(resized_boxes)(jnp.asarray(x), jnp.asarray(boxes)))
    assert got.dtype == np.uint8 and got.shape == x.shape
    for image, (top, left, height, width), one in zip(x, boxes.tolist(), got):
        box = (left, top, left + width, top + height)
        expected = np.asarray(Image.fromarray(image).resize((20, 24), Image.Resampling.BILINEAR, box=box))
        assert np.abs(one.astype(int) - expected).max() <= 1


boxes_of = jax.jit(random_boxes, static_argnums=(1, 2, 3, 4, 5))


def test_random_boxes_fit_and_have_the_promised_areas():
    boxes = np.asarray(boxes_of(jax.random.key(0), 4000, 40, 30, (0.2, 0.5), (0.75, 4 / 3)))
    top, left, h, w = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= 40).all() and (left + w <= 30).all()
    share, ratio = h * w / 1200, w / h
    assert share.min() > 0.18 and share.max() < 0.53 and abs(share.mean() - 0.35) < 0.01
    assert ratio.min() > 0.7 and ratio.max() < 1.45 and abs(np.log(ratio).mean()) < 0.02
    room = (40 - h) > 3
    assert abs((top[room] / (40 - h[room])).mean() - 0.5) < 0.03


def test_a_box_that_cannot_fit_is_the_middle():
    # a strip: no ratio within 3/4 and 4/3 has an area of 0.9 of it
    boxes = np.asarray(boxes_of(jax.random.key(0), 3, 10, 40, (0.9, 1.0), (0.75, 4 / 3)))
    np.testing.assert_array_equal(boxes, [[0, 13, 10, 13]] * 3)


@pytest.mark.parametrize("size", [1, 3, 4, 30])
def test_cutout_on_given_centres(size):
    x = images(4, 9, 7, 3)
    centres = np.asarray([(0, 0), (4, 3), (8, 6), (1, 5)])
    got = np.asarray(blanked(jnp.asarray(x), jnp.asarray(centres), size, (1, 2, 300)))
    expected = x.copy()
    for image, (row, column) in zip(expected, centres):
        for i in range(row - size // 2, row - size // 2 + size):
            for j in range(column - size // 2, column - size // 2 + size):
                if 0 <= i < 9 and 0 <= j < 7:
                    image[i, j] = (1, 2, 255)
    np.testing.assert_array_equal(got, expected)


def test_cutout_draws_centres_everywhere():
    got = np.asarray(jax.jit(cutout(1))(jax.random.key(0), jnp.ones((4000, 3, 5), jnp.float32)))
    counts = (got == 0).sum(0)
    assert counts.sum() == 4000 and (np.abs(counts - 4000 / 15) < 5 * np.sqrt(4000 / 15)).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_mixup_on_a_given_share(dtype):
    x, labels, order = images(4, 3, 3, 2, dtype=dtype), np.eye(4, dtype=np.float32), np.asarray([2, 3, 1, 0])
    got, got_labels = blended(jnp.asarray(x), jnp.asarray(labels), jnp.float32(0.25), jnp.asarray(order))
    expected = 0.25 * x.astype(np.float64) + 0.75 * x[order]
    assert got.dtype == dtype
    np.testing.assert_allclose(got, np.rint(expected) if dtype == np.uint8 else expected, rtol=1e-6)
    np.testing.assert_allclose(got_labels, 0.25 * labels + 0.75 * labels[order])


@pytest.mark.parametrize("channels", [(3,), ()])
def test_cutmix_on_a_given_box(channels):
    x, labels, order = images(3, 6, 8, *channels), np.eye(3, dtype=np.float32), np.asarray([1, 2, 0])
    box = jnp.asarray([1, 2, 4, 8])
    got, got_labels = jax.jit(patched)(jnp.asarray(x), jnp.asarray(labels), box, jnp.asarray(order))
    expected = x.copy()
    expected[:, 1:4, 2:8] = x[order][:, 1:4, 2:8]
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_allclose(got_labels, labels * (30 / 48) + labels[order] * (18 / 48), rtol=1e-6)


def test_cutmix_boxes_have_the_share_they_are_given():
    draw = jax.jit(jax.vmap(lambda key: random_patch(key, jnp.float32(0.75), 32, 64)))
    top, left, bottom, right = np.asarray(draw(jax.random.split(jax.random.key(0), 500))).T
    assert (top >= 0).all() and (left >= 0).all() and (bottom <= 32).all() and (right <= 64).all()
    whole = (top > 0) & (left > 0) & (bottom < 32) & (right < 64)
    assert whole.sum() > 100 and (bottom - top)[whole].tolist() == [16] * whole.sum()
    assert ((right - left)[whole] == 32).all() and (bottom > top).all()


@pytest.mark.parametrize("make", [mixup, cutmix])
def test_mixed_labels_follow_the_pixels(make):
    """Images of one value each: the labels say how much of which value an image holds."""
    x = np.broadcast_to(np.asarray([0.0, 1.0, 2.0, 3.0], np.float32)[:, None, None, None], (4, 8, 8, 1))
    mixed = jax.jit(make(1.0))
    seen = set()
    for seed in range(20):
        got, labels = mixed(jax.random.key(seed), jnp.asarray(x), jnp.eye(4))
        np.testing.assert_allclose(np.asarray(got).mean((1, 2, 3)), labels @ np.arange(4.0), atol=1e-5)
        np.testing.assert_allclose(labels.sum(1), 1, rtol=1e-6)
        seen.add(round(float(labels[0, 0]), 3))
    assert len(seen) > 5


SPEC = "random_resized_crop, pad_crop_flip(2), cutout(4, fill=3)"


def test_seeds_under_vmap_get_what_each_gets_alone():
    one = jax.jit(augment(SPEC))
    x = jnp.asarray(images(2, 3, 12, 12))
    keys = jax.random.split(jax.random.key(5), 2)
    together = jax.jit(jax.vmap(augment(SPEC)))(keys, x)
    colours = jnp.zeros((2, 3, 12, 12, 3), jnp.uint8)
    assert jax.eval_shape(jax.vmap(augment("randaugment(1, 5)")), keys, colours).shape == colours.shape
    for seed in range(2):
        np.testing.assert_array_equal(together[seed], one(keys[seed], x[seed]))
    assert (np.asarray(together) != np.asarray(x)).any() and together.dtype == jnp.uint8


def test_mix_under_vmap_over_seeds_takes_each_way():
    mixed = mix("mixup(1.0), cutmix")
    x = jnp.asarray(images(4, 8, 8, dtype=np.float32))
    keys = jax.random.split(jax.random.key(0), 24)
    got, labels = jax.jit(jax.vmap(mixed, in_axes=(0, None, None)))(keys, x, jnp.eye(4))
    pasted = np.asarray([np.isin(one, np.asarray(x)).all() for one in got])  # cutmix makes no new values
    assert 0 < pasted.sum() < 24 and got.shape == (24, 4, 8, 8)
    np.testing.assert_allclose(labels.sum(-1), 1, rtol=1e-6)


def test_an_empty_spec_changes_nothing():
    x = jnp.asarray(images(2, 4, 4))
    assert augment("")(jax.random.key(0), x) is x
    assert mix(" ")(jax.random.key(0), x, None) == (x, None)


def test_steps_of_a_spec_draw_independently():
    x = jnp.asarray(images(64, 4, 4))
    twice = np.asarray(augment("flip, flip")(jax.random.key(0), x))
    assert (twice != np.asarray(x)).any()  # the same draw twice would restore every image


WRONG = {
    "cutot(8)": r"unknown 'cutot'; did you mean 'cutout'\? one of cutout, flip, pad_crop_flip, randaugment, random_res",
    "cutout(0)": "cutout: size: 0 is not an integer >= 1",
    "cutout('a')": "cutout: size: 'a' is not",
    "cutout(4, fill='x')": "cutout: fill: 'x' is not a number",
    "cutout(": "is not names with plain numbers",
    "cutout(open('x'))": "is not names with plain numbers",
    "a.b(3)": "is not names with plain numbers",
    "cutout(8)(4)": "is not names with plain numbers",
    "[" * 5000: "is not names with plain numbers",
    "cutout(sise=4)": "unexpected keyword argument 'sise'",
    "pad_crop_flip(0)": "padding: 0 is not an integer >= 1",
    "pad_crop_flip(True)": "padding: True is not",
    "randaugment(0)": "n: 0 is not an integer >= 1",
    "randaugment(2, 11)": "magnitude: 11 is not a number in 0..10",
    "random_resized_crop((0.5, 2))": r"area: \(0.5, 2\) is not two numbers",
    "random_resized_crop(ratio=3)": "ratio: 3 is not two numbers",
    "mixup(0.2)": "unknown 'mixup'",
}


@pytest.mark.parametrize("spec", WRONG)
def test_a_wrong_spec_is_one_line(spec):
    with pytest.raises(ValueError, match=WRONG[spec]) as caught:
        augment(spec)
    assert str(caught.value).startswith("augment: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["mixup(0)", "cutmix(-1)", "mixup('a')", "cutout(4)"])
def test_a_wrong_mix_is_one_line(spec):
    with pytest.raises(
        ValueError, match=r"^mix: (unknown 'cutout'; one of cutmix, mixup|\w+: alpha: .* is not a numb)"
    ):
        mix(spec)


def test_every_augmentation_keeps_shape_and_dtype():
    for make in AUGMENTATIONS.values():
        for shape in ((2, 12, 12, 3), (2, 12, 12, 1), (2, 12, 12)):
            out = jax.eval_shape(make(), jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.uint8))
            assert out.shape == shape and out.dtype == jnp.uint8

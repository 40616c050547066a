"""Image folders: what is found, decoding and both views against Pillow, the stream's order, what is left out."""

import io
import json
import struct
import zlib

import data_files
import numpy as np
import pytest
from PIL import Image

from sparsejax.data import Dataset, Stream, image_folder
from sparsejax.data.draws import epoch_permutation, generator
from sparsejax.data.pictures import eval_view, random_box, read_picture, train_view


@pytest.fixture
def folder(tmp_path):
    data_files.write_images(tmp_path / "train", count=5)
    data_files.write_images(tmp_path / "val", count=3, seed=200)
    return tmp_path


def collect(batches, count):
    return [next(batches) for _ in range(count)]


def numbers(x):
    """(class, number) of each image of one colour in a batch, by what the writer put in."""
    pixels = x[:, 0, 0].astype(int)
    assert (x == x[:, :1, :1]).all()
    return list(zip((pixels[:, 0] - 5) // 40, (pixels[:, 1] - 3) // 20))


def test_in_memory_is_every_image_as_it_is(tmp_path):
    train = data_files.write_images(tmp_path / "train", count=3)
    test = data_files.write_images(tmp_path / "test", count=2, classes=("bee",), seed=9)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    (tmp_path / "train" / ".hidden").mkdir()
    (tmp_path / "train" / "README").write_text("no class")
    data = image_folder(str(tmp_path), in_memory=True)
    assert isinstance(data, Dataset) and data.classes == 2 and data.skipped == 0
    np.testing.assert_array_equal(data.train_x, np.stack(list(train.values())))
    np.testing.assert_array_equal(data.test_x, np.stack(list(test.values())))
    assert data.train_y.tolist() == [0, 0, 0, 1, 1, 1] and data.test_y.tolist() == [1, 1]
    assert data.train_y.dtype == np.int32
    np.testing.assert_allclose(data.offset, [0.485 * 255, 0.456 * 255, 0.406 * 255])
    np.testing.assert_allclose(data.scale, [1 / 0.229 / 255, 1 / 0.224 / 255, 1 / 0.225 / 255])


def test_limit_and_validation_of_a_folder(folder):
    data = image_folder(str(folder), in_memory=True, limit=4, validation=4, split_seed=1)
    assert np.bincount(data.train_y).tolist() == [2, 2] and np.bincount(data.test_y).tolist() == [2, 2]
    assert not set(numbers(data.train_x)) & set(numbers(data.test_x))
    stream = image_folder(str(folder), limit=4, validation=4, split_seed=1, workers=0)
    assert (stream.train_size, stream.test_size) == (4, 4)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1", "LA", "PA"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    if mode == "P":
        image.save(path, transparency=b"\0\x80")  # the way to RGB of which Pillow warns
    elif mode == "PA":
        image.convert("RGBA").save(path)
    else:
        image.save(path)
    got = np.asarray(read_picture(str(path)))
    assert got.shape == (6, 5, 3) and got.dtype == np.uint8
    if mode in ("RGB", "RGBA", "PA"):
        np.testing.assert_array_equal(got, pixels if mode != "PA" else np.asarray(image.convert("RGB")))
    if mode == "L":
        np.testing.assert_array_equal(got, np.repeat(np.asarray(image)[..., None], 3, -1))


def test_an_image_that_would_fill_the_memory_is_refused(tmp_path):
    out = io.BytesIO()
    Image.new("RGB", (2, 2)).save(out, "PNG")
    for side in (10_000, 100_000):  # Pillow warns of the one and refuses the other by itself
        data = bytearray(out.getvalue())
        data[16:24] = struct.pack(">II", side, side)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        path = tmp_path / "bomb.png"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"bomb\.png: cannot be decoded: .*pixels") as caught:
            read_picture(str(path))
        assert "\n" not in str(caught.value)


def smooth_image(width, height):
    rows, columns = np.mgrid[:height, :width]
    waves = [128 + 90 * np.sin(rows / (9 + k)) * np.cos(columns / (11 - k)) for k in range(3)]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8))


@pytest.mark.parametrize("width, height", [(60, 40), (40, 60), (33, 33), (16, 200), (300, 20)])
def test_the_view_for_evaluation_is_resize_then_cut(width, height):
    image = smooth_image(width, height)
    got = eval_view(image, 16, 20)
    scale = 20 / min(width, height)
    w, h = round(width * scale), round(height * scale)
    whole = np.asarray(image.resize((w, h), Image.Resampling.BILINEAR)).astype(int)
    top, left = (h - 16) // 2, (w - 16) // 2
    assert np.abs(got - whole[top : top + 16, left : left + 16]).max() <= 1
    assert got.shape == (16, 16, 3) and got.dtype == np.uint8


def test_the_view_for_training_is_a_box_resized_and_half_of_the_time_mirrored():
    image = smooth_image(50, 40)
    mirrors = 0
    for place in range(60):
        got = train_view(image, 12, generator(3, 0, place))
        draws = generator(3, 0, place)
        box = random_box(50, 40, draws, (0.08, 1.0))
        mirror = draws.random() < 0.5
        expected = np.asarray(image.crop(box).resize((12, 12), Image.Resampling.BILINEAR)).astype(int)
        expected = expected[:, ::-1] if mirror else expected
        inner = np.abs(got - expected)[1:-1, 1:-1]  # at its border the filter sees the pixels around the box
        assert inner.max() <= 12 and inner.mean() < 1.5
        mirrors += mirror
    assert 15 < mirrors < 45


def test_training_boxes_have_the_promised_areas():
    boxes = np.asarray([random_box(50, 40, generator(0, 1, place), (0.1, 0.4)) for place in range(1500)])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all() and (top >= 0).all() and (right <= 50).all() and (bottom <= 40).all()
    share, ratio = (right - left) * (bottom - top) / 2000, (right - left) / (bottom - top)
    assert 0.09 < share.min() and share.max() < 0.42 and abs(share.mean() - 0.25) < 0.01  # noqa: SIM300
    assert 0.7 < ratio.min() and ratio.max() < 1.42 and abs(np.log(ratio).mean()) < 0.03  # noqa: SIM300
    assert random_box(200, 10, generator(0, 1, 0), (0.9, 1.0)) == (93, 0, 106, 10)  # none fits: the middle
    assert random_box(1, 1, generator(0, 1, 0), (0.08, 1.0)) == (0, 0, 1, 1)


def test_an_epoch_has_every_image_once_in_the_order_of_memory(folder):
    stream = image_folder(str(folder), image_size=6, workers=0)
    assert isinstance(stream, Stream) and stream.train_size == 10 and stream.classes == 2
    assert stream.example.shape == (6, 6, 3) and stream.example.dtype == np.uint8
    batches = stream.train(5, 7)
    for epoch in range(3):
        got = collect(batches, 2)
        x, y = (np.concatenate(part) for part in zip(*got))
        where = epoch_permutation(7, epoch, 10)
        assert numbers(x) == [(i // 5, i % 5) for i in where] and y.tolist() == (where // 5).tolist()
    batches.close()
    assert batches.position == 6 and batches.skipped == 0
    other = stream.train(5, 8)
    assert numbers(next(other)[0]) != numbers(got[0][0])
    other.close()


def test_the_incomplete_batch_of_an_epoch_is_left_out(folder):
    batches = image_folder(str(folder), image_size=4, workers=0).train(4, 0)
    for epoch in range(2):
        got = numbers(np.concatenate([x for x, _ in collect(batches, 2)]))
        assert got == [(i // 5, i % 5) for i in epoch_permutation(0, epoch, 10)[:8]]
    batches.close()


def test_evaluation_covers_every_image_once(folder):
    stream = image_folder(str(folder), image_size=6, workers=0)
    got = list(stream.test(4))
    assert stream.test_size == 6 and len(got) == 2
    assert [real.tolist() for *_, real in got] == [[True] * 4, [True, True, False, False]]
    x, y, real = (np.concatenate(part) for part in zip(*got))
    assert numbers(x[real]) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert y[real].tolist() == [0, 0, 0, 1, 1, 1] and (x[real][..., 2] == 200).all() and not x[~real].any()


def test_workers_change_nothing_and_a_position_is_taken_up_by_any_number_of_them(folder):
    rng = np.random.default_rng(0)
    for path in folder.glob("train/*/*.png"):
        Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(path)
    expected = collect(image_folder(str(folder), image_size=6, workers=0).train(4, 1), 5)
    batches = image_folder(str(folder), image_size=6, workers=2).train(4, 1)
    for (x, y), (x0, y0) in zip(collect(batches, 3), expected):
        np.testing.assert_array_equal(x, x0)
        np.testing.assert_array_equal(y, y0)
    state = json.loads(json.dumps(batches.state()))
    batches.close()
    again = image_folder(str(folder), image_size=6, workers=0).train(4, 1)
    again.restore(state)
    for (x, y), (x0, y0) in zip(collect(again, 2), expected[3:]):
        np.testing.assert_array_equal(x, x0)
        np.testing.assert_array_equal(y, y0)
    again.close()


def damage(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:45])  # inside of the pixels
    return path


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_decoded_is_named(folder, workers):
    path = damage(folder, "train/bee/2.png")
    batches = image_folder(str(folder), image_size=4, workers=workers).train(10, 0)
    with pytest.raises(ValueError, match="cannot be decoded") as caught:
        next(batches)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="cannot be decoded"):
        next(batches)  # it does not go on after it
    batches.close()
    with pytest.raises(ValueError, match=r"bee/2.png: cannot be decoded"):
        image_folder(str(folder), in_memory=True)


def test_skipped_images_are_counted_and_replaced_by_the_next(folder):
    damage(folder, "train/bee/2.png")
    damage(folder, "train/ant/0.png")
    damage(folder, "val/ant/1.png")
    stream = image_folder(str(folder), image_size=4, workers=0, on_error="skip")
    batches = stream.train(5, 3)
    first, second = collect(batches, 2)
    order = epoch_permutation(3, 0, 10).tolist()
    good = lambda place: next(i for i in order[place:] + order if i not in (7, 0))
    expected = [good(place) for place in range(10)]
    assert numbers(np.concatenate([first[0], second[0]])) == [(i // 5, i % 5) for i in expected]
    assert first[1].tolist() + second[1].tolist() == [i // 5 for i in expected]
    assert batches.skipped >= 2
    batches.close()
    tests = stream.test(6)
    *_, real = next(tests)
    assert real.tolist() == [True, False, True, True, True, True] and tests.skipped == 1
    tests.close()
    data = image_folder(str(folder), in_memory=True, on_error="skip")
    assert data.skipped == 3 and len(data.train_y) == 8 and len(data.test_y) == 5


def test_nothing_left_is_said(folder):
    for path in folder.glob("train/*/*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"train: none of its 10 images can be decoded"):
        image_folder(str(folder), in_memory=True, on_error="skip")
    batches = image_folder(str(folder), workers=0, on_error="skip").train(2, 0)
    with pytest.raises(ValueError, match=r"train: none of its 10 images can be decoded"):
        next(batches)
    batches.close()


def test_an_empty_class_folder_is_named_or_counted(folder):
    (folder / "train" / "cat").mkdir()
    (folder / "train" / "cat" / "x.gif").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train/cat: holds no image \(\.jpg, \.jpeg, \.png\)"):
        image_folder(str(folder))
    data = image_folder(str(folder), in_memory=True, on_error="skip")
    assert data.skipped == 1 and data.classes == 3 and data.train_y.max() == 1


def test_a_class_that_train_does_not_have_is_named_or_counted(folder):
    data_files.write_images(folder / "val", classes=("emu",), count=1)
    with pytest.raises(ValueError, match="val/emu: is not a class of train"):
        image_folder(str(folder))
    assert image_folder(str(folder), on_error="skip").test_size == 6
    assert image_folder(str(folder), on_error="skip").skipped == 1


def test_images_of_other_sizes_do_not_fit_in_one_array(folder):
    Image.new("RGB", (3, 4)).save(folder / "train" / "bee" / "0.png")
    with pytest.raises(ValueError, match=r"bee/0\.png: has 3x4 pixels, .*ant/0\.png has 10x12; in memory"):
        Image.new("RGB", (10, 12)).save(folder / "train" / "ant" / "0.png")
        for number in range(1, 5):
            Image.new("RGB", (10, 12)).save(folder / "train" / "ant" / f"{number}.png")
        image_folder(str(folder), in_memory=True)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"image_size": 0}, "image_size: 0 is not in 1..8192"),
        ({"resize": 100}, "resize: 100 is not in 224.."),
        ({"workers": -1}, "workers: -1 is not in"),
        ({"crop_area": (0.5, 0.1)}, r"crop_area: \(0.5, 0.1\) is not two numbers"),
        ({"std": (0.1, 0.0, 0.1)}, "std: .* is not three numbers"),
        ({"mean": 3}, "mean: 3 is not three numbers"),
        ({"limit": 11}, "limit: 11 is not in 0..10"),
        ({"on_error": 1}, "on_error: 1 is not one of raise, skip"),
    ],
)
def test_options_out_of_range_are_named(folder, options, words):
    with pytest.raises(ValueError, match=words):
        image_folder(str(folder), **options)


@pytest.mark.parametrize("batch_size", [0, 11, "4"])
def test_a_batch_that_does_not_fit_is_named(folder, batch_size):
    stream = image_folder(str(folder), workers=0)
    with pytest.raises(ValueError, match=r"batch_size: .* in 1..10"):
        stream.train(batch_size, 0)


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"^data_dir: is empty; image_folder needs"):
        image_folder("")
    with pytest.raises(ValueError, match=r"^data_dir: '.*' has no train$"):
        image_folder(str(tmp_path))
    data_files.write_images(tmp_path / "train", count=2)
    with pytest.raises(ValueError, match=r"^data_dir: '.*' has no val or test$"):
        image_folder(str(tmp_path))
    assert image_folder(str(tmp_path), validation=1).test_size == 1
    (tmp_path / "val").mkdir()
    with pytest.raises(ValueError, match="val: has no folder for a class"):
        image_folder(str(tmp_path))

"""Thousands of damaged files: each ends in one line that names a file of the folder, or in what the file says."""

import io
import json
import string

import data_files
import numpy as np
import pytest
from PIL import Image

from sparsejax.data import bpe, cifar10, cifar100, image_batches, image_folder, mnist, text, tokens
from sparsejax.data.augment import augment, mix
from sparsejax.data.bpe import from_bpe
from sparsejax.data.image_files import ImageFiles


def mutated(data, rng):
    """The bytes with one to three changes: cut, flipped, inserted, deleted, overwritten, repeated."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        place, size = int(rng.integers(len(data) + 1)), int(rng.integers(1, 40))
        kind = rng.integers(7)
        if kind == 0:
            del data[place:]
        elif kind == 1 and data:
            data[place % len(data)] ^= 1 << rng.integers(8)
        elif kind == 2:
            data[place:place] = rng.bytes(size)
        elif kind == 3:
            del data[place : place + size]
        elif kind == 4:
            data[place : place + size] = bytes([rng.choice([0, 255])]) * min(size, len(data) - place)
        elif kind == 5:
            data[place:place] = data[place : place + size]
        else:
            data += rng.bytes(size)
    return bytes(data)


def fuzz(path, load, check, count, seed=0):
    """Loads `count` damaged versions of a file; what loads is checked against the damaged bytes. Returns the errors."""
    whole, rng, errors = path.read_bytes(), np.random.default_rng(seed), 0
    for number in range(count):
        data = mutated(whole, rng)
        path.write_bytes(data)
        try:
            got = load()
        except ValueError as error:
            errors += 1
            assert str(path.parent) in str(error) and "\n" not in str(error), (number, str(error))
        else:
            check(got, data)
    path.write_bytes(whole)
    return errors


def cifar_records(data, labels, classes):
    """Images and labels of the records of a file that are whole and in range, one by one."""
    size = labels + 3072
    images, kept = [], []
    for start in range(0, len(data) - size + 1, size):
        record = data[start : start + size]
        if record[labels - 1] < classes and (labels == 1 or record[0] < 20):
            planes = [np.frombuffer(record, np.uint8, 1024, labels + 1024 * c).reshape(32, 32) for c in range(3)]
            images.append(np.stack(planes, -1))
            kept.append(record[labels - 1])
    return images, kept


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(tmp_path, name, on_error):
    data_files.write_cifar(tmp_path, name, inside=False)
    load, labels, classes = (cifar10, 1, 10) if name == "cifar10" else (cifar100, 2, 100)
    path = tmp_path / ("test_batch.bin" if name == "cifar10" else "test.bin")
    path.write_bytes(path.read_bytes()[: 2 * (labels + 3072)])  # two records: a change is likely to meet a label

    def check(got, data):
        images, kept = cifar_records(data, labels, classes)
        np.testing.assert_array_equal(got.test_x, images)
        assert got.test_y.tolist() == kept
        if on_error == "raise":
            assert len(data) == len(kept) * (labels + 3072) and got.skipped == 0

    # a change inside of the pixels is none that can be seen: half of the labels are hit on purpose
    errors = fuzz(path, lambda: load(str(tmp_path), on_error=on_error), check, 250)
    whole = bytearray(path.read_bytes())
    for value in range(256):
        whole[0] = value
        path.write_bytes(whole)
        try:
            check(load(str(tmp_path), on_error=on_error), bytes(whole))
        except ValueError as error:
            errors += 1
            assert str(path) in str(error)
    assert errors > (300 if on_error == "raise" else 0)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("part", ["images-idx3", "labels-idx1"])
def test_mnist(tmp_path, part, zipped):
    data_files.write_mnist(tmp_path, zipped=zipped)
    path = tmp_path / (f"t10k-{part}-ubyte" + ".gz" * zipped)

    def check(got, data):
        assert got.test_x.shape == (7, 4, 5) and got.test_x.dtype == np.uint8
        assert got.test_y.shape == (7,) and got.test_y.min() >= 0 and got.test_y.max() <= 9
        if not zipped:
            values = np.frombuffer(data, np.uint8, offset=16 if part == "images-idx3" else 8)
            assert (got.test_x if part == "images-idx3" else got.test_y).ravel().tolist() == values.tolist()

    assert fuzz(path, lambda: mnist(str(tmp_path)), check, 300) > 150


def encoded(kind):
    """A small image file of the kind, as bytes."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 3), dtype=np.uint8)
    image, out = Image.fromarray(pixels), io.BytesIO()
    if kind == "palette":
        image.quantize(8).save(out, "PNG", transparency=b"\0\x50\xff")
    elif kind == "grey":
        image.convert("L").save(out, "PNG", pnginfo=None, dpi=(72, 72))
    elif kind == "progressive":
        image.save(out, "JPEG", progressive=True, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0")
    else:
        image.save(out, kind.upper())
    return out.getvalue()


@pytest.mark.parametrize("kind", ["png", "palette", "grey", "jpeg", "progressive"])
def test_images(tmp_path, kind):
    suffix = ".jpg" if kind in ("jpeg", "progressive") else ".png"
    for part in ("train", "val"):
        (tmp_path / part / "a").mkdir(parents=True)
        (tmp_path / part / "a" / f"0{suffix}").write_bytes(encoded(kind))
    path = tmp_path / "train" / "a" / f"0{suffix}"
    files = ImageFiles(str(tmp_path / "train"), (f"a/0{suffix}",), np.zeros(1, np.int32))

    def check(got, data):
        assert got.train_x.dtype == np.uint8 and got.train_x.shape == (1, 9, 8, 3)

    errors = fuzz(path, lambda: image_folder(str(tmp_path), in_memory=True), check, 200)

    views = image_batches.Views(4, 5, (0.08, 1.0), False)
    ways = image_batches.TrainBatch(files, views, 1, 0), image_batches.TestBatch(files, views, 1)

    def both_views():
        made = [make(0) for make in ways]
        if isinstance(made[0], str):
            assert made[0] == made[1]
            raise ValueError(made[0])
        return made

    def check_views(made, data):
        assert [batch[0].shape for batch, _ in made] == [(1, 4, 4, 3)] * 2
        assert [batch[0].dtype for batch, _ in made] == [np.uint8] * 2

    errors += fuzz(path, both_views, check_views, 200, seed=1)
    assert errors > 100


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_tokens(tmp_path, dtype):
    for name in ("train", "val"):
        np.random.default_rng(0).integers(0, 900, 60).astype(f"<u{2 if dtype == 'uint16' else 4}").tofile(
            tmp_path / f"{name}.bin"
        )

    def check(got, data):
        values = np.frombuffer(data, "<u2" if dtype == "uint16" else "<u4")
        assert got.train.tolist() == values.tolist() and values.max() < got.vocab == 1000

    assert fuzz(tmp_path / "train.bin", lambda: tokens(str(tmp_path), dtype=dtype, vocab=1000), check, 400) > 200


def test_vocabulary_from_the_files(tmp_path):
    for name in ("train", "val"):
        np.arange(20, dtype="<u4").tofile(tmp_path / f"{name}.bin")

    def check(got, data):
        values = np.frombuffer(data, "<u4")
        assert got.vocab == max(20, values.max() + 1) and got.train.tolist() == values.tolist()

    assert fuzz(tmp_path / "train.bin", lambda: tokens(str(tmp_path), dtype="uint32"), check, 200) > 50


def test_meta(tmp_path):
    for name in ("train", "val"):
        np.arange(8, dtype="<u4").tofile(tmp_path / f"{name}.bin")
    path = tmp_path / "meta.json"
    path.write_text('{"vocab_size": 50257, "dtype": "uint32", "x": [1, {"y": null}]}')

    def check(got, data):
        said = json.loads(data)
        assert got.train.dtype.name == said.get("dtype", "uint16") and got.vocab == said.get("vocab_size", 8)

    assert fuzz(path, lambda: tokens(str(tmp_path)), check, 500) > 200


def test_tokenizer(tmp_path):
    for name in ("train", "val"):
        np.arange(8, dtype="<u2").tofile(tmp_path / f"{name}.bin")
    path = tmp_path / "tokenizer.json"
    path.write_text(from_bpe("the cat and the hat " * 9, "rhyme", 260).tokenizer)

    def check(got, data):
        assert got.unit == "bpe" and got.vocab > 0

    assert fuzz(path, lambda: tokens(str(tmp_path)), check, 300) > 150


def test_text(tmp_path):
    path = tmp_path / "verse.txt"
    path.write_text("Füße – 𝄞, möge es so sein.\r\n" * 6, encoding="utf-8", newline="")

    def check(got, data):
        content = data.decode("utf-8", "ignore")
        assert got.decode(np.concatenate([got.train, got.test])) == content
        assert got.skipped == len(data) - len(content.encode())

    for on_error in ("raise", "skip"):
        errors = fuzz(path, lambda on_error=on_error: text(str(path), on_error=on_error), check, 300)
        assert errors > 100 if on_error == "raise" else errors < 100
    fuzz(path, lambda: text(str(path), unit="byte"), lambda got, data: None, 100)
    fuzz(path, lambda: bpe(str(path), vocab=258, on_error="skip"), check, 50)


def test_specs():
    rng = np.random.default_rng(0)
    letters = string.ascii_letters + string.digits + "(),.='\"[]{}*+-_ \\\n\0é#:"
    whole = "pad_crop_flip(4), cutout(8, fill=(1, 2, 3)), randaugment(n=2, magnitude=9)"
    wrong = 0
    for _ in range(600):
        spec = list(whole)
        for _ in range(rng.integers(1, 4)):
            place = int(rng.integers(len(spec)))
            kind = rng.integers(3)
            if kind == 0:
                spec[place] = rng.choice(list(letters))
            elif kind == 1:
                spec.insert(place, rng.choice(list(letters)))
            else:
                del spec[place]
        for make in (augment, mix):
            try:
                assert callable(make("".join(spec)))
            except ValueError as error:
                wrong += 1
                assert str(error).startswith(f"{make.__name__}: ") and "\n" not in str(error)
    assert wrong > 800

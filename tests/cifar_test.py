"""CIFAR's binary files, Fashion-MNIST, and the parts of a training set: limit and validation."""

import os
import subprocess
import sys
from pathlib import Path

import data_files
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.data import cifar10, cifar100, digits, fashion_mnist, mnist, standardized
from sparsejax.data.subset import balanced, split, subset

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("SPARSEJAX_DATA", ROOT.parent / "shared" / "data"))
LOADERS = {"cifar10": cifar10, "cifar100": cifar100}
# where the first label byte is, that decides about the class, and the classes
CLASS_BYTE = {"cifar10": (0, 10), "cifar100": (1, 100)}


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("name", LOADERS)
def test_cifar_reads_what_was_written(tmp_path, name, inside):
    written = data_files.write_cifar(tmp_path, name, inside=inside)
    data = LOADERS[name](str(tmp_path))
    for got, expected in zip(data[:4], written):
        np.testing.assert_array_equal(got, expected)
    assert data.train_x.dtype == np.uint8 and data.train_y.dtype == np.int32 and data.train_x.flags.c_contiguous
    assert data.classes == CLASS_BYTE[name][1] and data.skipped == 0
    assert len(data.offset) == len(data.scale) == 3


@pytest.mark.long  # 60,000 JPEG images are decoded
def test_cifar10_on_the_real_files(tmp_path):
    if not (SHARED / "cifar10_jpeg.tar.xz").is_file():
        pytest.skip(f"no cifar10_jpeg.tar.xz in {SHARED} (set SPARSEJAX_DATA)")
    unpack = [sys.executable, str(SHARED / "unpack_cifar10.py"), str(tmp_path)]
    subprocess.run(unpack, check=True, capture_output=True, timeout=300)
    data = cifar10(str(tmp_path))
    assert data.train_x.shape == (50000, 32, 32, 3) and data.test_x.shape == (10000, 32, 32, 3)
    assert np.bincount(data.train_y).tolist() == [5000] * 10 and np.bincount(data.test_y).tolist() == [1000] * 10
    some = (data.train_x[::10].astype(np.float64) - data.offset) * data.scale
    assert np.abs(some.mean((0, 1, 2))).max() < 0.02 and np.abs(some.std((0, 1, 2)) - 1).max() < 0.02
    part = cifar10(str(tmp_path), limit=1000, validation=500)
    assert np.bincount(part.train_y).tolist() == [100] * 10 and np.bincount(part.test_y).tolist() == [50] * 10


def test_fashion_mnist_is_the_same_files_with_another_scale(tmp_path):
    arrays = data_files.write_mnist(tmp_path)
    data, plain = fashion_mnist(str(tmp_path)), mnist(str(tmp_path))
    np.testing.assert_array_equal(data.train_x, arrays["train-images-idx3-ubyte"])
    assert (data.offset, data.scale) == (0.2860 * 255, 1 / (0.3530 * 255)) != (plain.offset, plain.scale)


FIRST = "data_batch_1.bin"
put = lambda at, value: lambda data: data[:at] + value + data[at + 1 :]
DAMAGED = {
    "label": ("cifar10", FIRST, put(6146, b"\x0a"), r"record 2 \(byte 6146\): label 10 is not in 0..9"),
    "cut": ("cifar10", FIRST, lambda data: data[:-5], r"record 3 \(byte 9219\): the file ends after 3068 of its 3073"),
    "long": ("cifar10", FIRST, lambda data: data + b"xyz", r"record 4 \(byte 12292\): the file ends after 3 of"),
    "empty": ("cifar10", FIRST, lambda data: b"", r"holds no images \(0 bytes, a record has 3073\)"),
    "fine": ("cifar100", "train.bin", put(1, b"\x64"), r"record 0 \(byte 0\): fine label 100 is not in 0..99"),
    "coarse": ("cifar100", "test.bin", put(0, b"\x14"), r"record 0 \(byte 0\): coarse label 20 is not in 0..19"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_cifar_is_one_line_that_names_the_record(tmp_path, case):
    name, file, change, words = DAMAGED[case]
    data_files.write_cifar(tmp_path, name, inside=False)
    path = tmp_path / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=words) as caught:
        LOADERS[name](str(tmp_path))
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    if case == "empty":
        return
    whole = 24 if name == "cifar10" else 28  # images of all files together
    data = LOADERS[name](str(tmp_path), on_error="skip")
    assert data.skipped == 1
    assert len(data.train_y) + len(data.test_y) == whole - (case != "long")


def test_skipping_leaves_the_other_records_as_they_are(tmp_path):
    train_x, train_y, *_ = data_files.write_cifar(tmp_path, "cifar10", inside=False)
    path = tmp_path / "data_batch_2.bin"  # its records are 4 to 7 of the training set
    data = bytearray(path.read_bytes())
    data[0] = 255
    path.write_bytes(data[:-1])
    got = cifar10(str(tmp_path), on_error="skip")
    left = np.delete(np.arange(20), [4, 7])
    np.testing.assert_array_equal(got.train_x, train_x[left])
    np.testing.assert_array_equal(got.train_y, train_y[left])
    assert got.skipped == 2


def test_skipping_labels_of_mnist(tmp_path):
    arrays = data_files.write_mnist(tmp_path)
    path = tmp_path / "train-labels-idx1-ubyte"
    data = bytearray(path.read_bytes())
    data[-3:-1] = b"\x0a\xff"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"label 10 at index 17 is not in 0\.\.9"):
        mnist(str(tmp_path))
    got = mnist(str(tmp_path), on_error="skip")
    assert got.skipped == 2
    np.testing.assert_array_equal(got.train_x, np.delete(arrays["train-images-idx3-ubyte"], [17, 18], 0))
    path.write_bytes(bytes(data[:8]) + b"\xff" * 20)
    with pytest.raises(ValueError, match=r"none of the 20 labels is in 0\.\.9"):
        mnist(str(tmp_path), on_error="skip")


@pytest.mark.parametrize("name", LOADERS)
def test_a_missing_file_is_named(tmp_path, name):
    data_files.write_cifar(tmp_path, name, inside=False)
    sorted(tmp_path.glob("*tr*.bin" if name == "cifar100" else "*3.bin"))[0].unlink()
    with pytest.raises(ValueError, match=r"^data_dir: '.*' has no (data_batch_3|train).bin"):
        LOADERS[name](str(tmp_path))


@pytest.mark.parametrize("options", [{"limit": 7}, {"validation": 11}, {"limit": 9, "validation": 6, "split_seed": 3}])
def test_subset_is_balanced_and_disjoint(options):
    labels = np.repeat([0, 1, 2, 3], [9, 4, 8, 9])
    x = np.arange(30, dtype=np.uint8)[:, None]
    whole = digits()._replace(train_x=x, train_y=labels, test_x=x[:2], test_y=labels[:2])
    part = subset(whole, **options)
    limit, validation = options.get("limit", 0), options.get("validation", 0)
    taken = part.train_x[:, 0]
    held = part.test_x[:, 0] if validation else np.zeros(0, int)
    assert len(taken) == (limit or 30 - validation) and len(held) == validation
    assert not set(taken) & set(held) and (np.diff(taken) > 0).all()
    np.testing.assert_array_equal(part.train_y, labels[taken])
    for some in (taken, held) if limit else (held,):
        counts = np.bincount(labels[some], minlength=4)
        assert not len(some) or counts.max() - counts.min() <= 1
    if not validation:
        assert part.test_x is whole.test_x


def test_a_larger_limit_keeps_what_a_smaller_one_took_and_unequal_classes_run_out():
    labels = np.repeat([0, 1, 2], [2, 50, 5])[np.random.default_rng(0).permutation(57)]
    smaller = set()
    for count in range(58):
        some = balanced(labels, count, 4)
        assert smaller <= set(some.tolist()) and len(some) == count
        smaller = set(some.tolist())
        counts = np.bincount(labels[some], minlength=3)
        assert counts[0] == min(2, (count + 2) // 3)  # the first class has the first turn
    assert set(balanced(labels, 20, 4)) != set(balanced(labels, 20, 5))


def test_split_is_fixed():
    """Results are published on these images: a change of the draw is a change of the data."""
    kept, held = split(np.arange(40) % 4, limit=6, validation=5, split_seed=0)
    assert (kept.tolist(), held.tolist()) == data_files.FIXED_SPLIT


@pytest.mark.parametrize(
    "options, words",
    [
        ({"limit": 1438}, "limit: 1438 is not in 0..1437"),
        ({"limit": 1400, "validation": 100}, "limit: 1400 is not in 0..1337"),
        ({"validation": 1437}, "validation: 1437 is not in 0..1436"),
        ({"limit": 1.5}, "limit: 1.5 is not an integer"),
        ({"limit": True}, "limit: True is not an integer"),
        ({"validation": "many"}, "validation: 'many' is not an integer"),
    ],
)
def test_options_out_of_range_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        digits(**options)


def test_on_error_is_checked(tmp_path):
    with pytest.raises(ValueError, match="on_error: 'ignore' is not one of raise, skip"):
        cifar10(str(tmp_path), on_error="ignore")


def test_standardized_per_channel():
    x = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3)).astype(np.uint8)
    got = standardized(jnp.asarray(x), (1.0, 2.0, 3.0), (0.5, 0.25, 2.0))
    np.testing.assert_allclose(got, (x.astype(float) - [1, 2, 3]) * [0.5, 0.25, 2], rtol=1e-6)
    one = standardized(jnp.asarray(x), 16.0, 1 / 7)
    np.testing.assert_array_equal(one, (x.astype(np.float32) - np.float32(16)) * np.float32(1 / 7))

"""Data sets: the split of digits, MNIST's IDX files, and what damaged files lead to."""

import ast
import gzip
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from data_files import idx_bytes, write_mnist
from sklearn.datasets import load_digits

from sparsejax.data import DATASETS, digits, mnist
from sparsejax.data.idx import read_idx

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("SPARSEJAX_DATA", ROOT.parent / "shared" / "data"))


def test_digits_split_is_a_partition_of_the_source():
    data = digits()
    assert data.train_x.shape == (1437, 8, 8) and data.test_x.shape == (360, 8, 8)
    assert data.train_x.dtype == np.uint8 and data.train_y.dtype == np.int32 and data.classes == 10
    both = np.concatenate([data.train_x, data.test_x]).reshape(-1, 64)
    labels = np.concatenate([data.train_y, data.test_y])
    got = sorted(map(bytes, np.column_stack([both, labels.astype(np.uint8)])))
    bunch = load_digits()
    assert got == sorted(map(bytes, np.column_stack([bunch.data, bunch.target]).astype(np.uint8)))


def test_digits_split_depends_on_its_seed_alone():
    first, again, other = digits(), digits("ignored"), digits(split_seed=1)
    np.testing.assert_array_equal(first.test_x, again.test_x)
    np.testing.assert_array_equal(
        first.test_y[:10], [1, 4, 4, 6, 3, 6, 4, 8, 4, 9]
    )  # the split that results were published on
    assert (first.test_y != other.test_y).any()


@pytest.mark.parametrize("size", [0, 1797, -1])
def test_digits_test_size_out_of_range(size):
    with pytest.raises(ValueError, match=rf"test_size: {size} is not in 1..1796"):
        digits(test_size=size)


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_reads_what_was_written(tmp_path, zipped):
    arrays = write_mnist(tmp_path, zipped=zipped)
    data = mnist(str(tmp_path))
    for got, name in (
        (data.train_x, "train-images-idx3-ubyte"),
        (data.train_y, "train-labels-idx1-ubyte"),
        (data.test_x, "t10k-images-idx3-ubyte"),
        (data.test_y, "t10k-labels-idx1-ubyte"),
    ):
        np.testing.assert_array_equal(got, arrays[name])


def test_gzip_is_recognised_by_content_not_by_name(tmp_path):
    (tmp_path / "file").write_bytes(gzip.compress(idx_bytes(np.arange(6))))
    np.testing.assert_array_equal(read_idx(tmp_path / "file", 1), np.arange(6))


def test_mnist_on_the_real_files():
    if not (SHARED / "mnist").is_dir():
        pytest.skip(f"no MNIST in {SHARED} (set SPARSEJAX_DATA)")
    data = mnist(str(SHARED / "mnist"))
    assert data.train_x.shape == (60000, 28, 28) and data.test_x.shape == (10000, 28, 28)
    scaled = (data.train_x.astype(np.float64) - data.offset) * data.scale
    assert abs(scaled.mean()) < 1e-3 and abs(scaled.std() - 1) < 1e-3
    np.testing.assert_array_equal(np.bincount(data.test_y), [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009])


def damage(name, change):
    def apply(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return apply


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
CASES = {
    "magic": (IMAGES, damage(IMAGES, lambda b: b"\0\0\x09" + b[3:]), "magic number is 0x00000903, expected 0x00000803"),
    "labels for images": (IMAGES, damage(IMAGES, lambda b: idx_bytes(np.zeros(4))), "magic number is 0x00000801"),
    "empty": (IMAGES, damage(IMAGES, lambda b: b""), "magic number is 0x,"),
    "header": (IMAGES, damage(IMAGES, lambda b: b[:9]), "ends inside its header"),
    "short": (IMAGES, damage(IMAGES, lambda b: b[:-3]), "promises 400 bytes for shape .20, 4, 5., the file has 397"),
    "long": (IMAGES, damage(IMAGES, lambda b: b + b"x"), "the file has more"),
    "huge": (IMAGES, damage(IMAGES, lambda b: b[:4] + b"\xff" * 12 + b[16:]), "the file has 400"),
    "gzip": (IMAGES, damage(IMAGES, lambda b: gzip.compress(b)[:-30]), "cannot be read"),
    "crc": (IMAGES, damage(IMAGES, lambda b: gzip.compress(b)[:-8] + bytes(8)), "cannot be read"),
    "none": (IMAGES, damage(IMAGES, lambda b: idx_bytes(np.zeros((0, 4, 5)))), "holds no images"),
    "label": (LABELS, damage(LABELS, lambda b: b[:-2] + b"\x0a\x03"), "label 10 at index 18 is not in 0..9"),
    "count": (LABELS, damage(LABELS, lambda b: idx_bytes(np.zeros(19))), "19 labels for 20 images"),
    "missing": ("data_dir", lambda f: (f / IMAGES).unlink(), "has neither train-images-idx3-ubyte nor"),
    "sizes": ("", damage("t10k-images-idx3-ubyte", lambda b: idx_bytes(np.zeros((7, 5, 5)))), "test images are .5, 5."),
}


@pytest.mark.parametrize("case", CASES)
def test_damaged_mnist_is_one_line_that_names_the_file(tmp_path, case):
    named, apply, words = CASES[case]
    write_mnist(tmp_path)
    apply(tmp_path)
    with pytest.raises(ValueError, match=words) as caught:
        mnist(str(tmp_path))
    assert named in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("where", ["", "/no/such/place"])
def test_missing_data_dir_names_the_field(where):
    with pytest.raises(ValueError, match=r"^data_dir: "):
        mnist(where)


@pytest.mark.parametrize("zipped", [False, True])
def test_fuzzed_idx_gives_the_array_or_one_line(tmp_path, zipped):
    """Random cuts, flips, insertions: the reader returns an array, or raises a ValueError that names the file."""
    rng = np.random.default_rng(1)
    array = rng.integers(0, 10, (6, 3, 4), dtype=np.uint8)
    whole = gzip.compress(idx_bytes(array), mtime=0) if zipped else idx_bytes(array)
    path, raised = tmp_path / "fuzzed", 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            kind, place = rng.integers(4), int(rng.integers(len(data) or 1))
            if kind == 0:
                del data[place:]
            elif kind == 1 and data:
                data[place % len(data)] ^= 1 << rng.integers(8)
            elif kind == 2:
                data[place:place] = rng.bytes(rng.integers(1, 9))
            else:
                del data[place : place + rng.integers(1, 9)]
        path.write_bytes(data)
        try:
            got = read_idx(path, 3)
        except ValueError as error:
            raised += 1
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            assert got.dtype == np.uint8 and got.ndim == 3
    assert raised > 200


def test_the_package_imports_only_what_is_fast():
    """Reading images, training a BPE and the like are imported where they are used."""
    for path in (ROOT / "sparsejax" / "data").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
                first = {name.split(".")[0] for name in names}
                assert first <= {"jax", "numpy", "sparsejax", *sys.stdlib_module_names}, path


def test_every_data_set_says_what_it_is():
    for source in DATASETS.values():
        assert len(source.__doc__.splitlines()[0]) > 20

"""Small files in the formats of the data sets, written by their descriptions, with what a reader must make of them."""

import gzip
import struct

import numpy as np
from PIL import Image

# (kept, held) of 40 examples in 4 classes, see cifar_test.py
FIXED_SPLIT = ([8, 19, 26, 29, 33, 36], [20, 23, 32, 34, 37])


def idx_bytes(array):
    """An IDX file of unsigned bytes."""
    shape = b"".join(struct.pack(">I", size) for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + shape + array.astype(np.uint8).tobytes()


def write_mnist(folder, images=20, tests=7, zipped=False):
    """Four small files in MNIST's layout; returns the arrays by file name."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, count in (("train", images), ("t10k", tests)):
        arrays[f"{name}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 4, 5), dtype=np.uint8)
        arrays[f"{name}-labels-idx1-ubyte"] = rng.integers(0, 10, count, dtype=np.uint8)
    for name, array in arrays.items():
        data = idx_bytes(array)
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(data) if zipped else data)
    return arrays


def write_cifar(folder, name, inside):
    """CIFAR's binary files with 4 records each (100: 24 and 4); returns train_x, train_y, test_x, test_y."""
    rng = np.random.default_rng(1)
    if name == "cifar10":
        files, where = {f"data_batch_{n}.bin": 4 for n in range(1, 6)} | {"test_batch.bin": 4}, "cifar-10-batches-bin"
    else:
        files, where = {"train.bin": 24, "test.bin": 4}, "cifar-100-binary"
    if inside:
        folder = folder / where
        folder.mkdir()
    x, y = [], []
    for file, count in files.items():
        data = bytearray()
        for _ in range(count):
            image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            label = int(rng.integers(10 if name == "cifar10" else 100))
            data += bytes([label]) if name == "cifar10" else bytes([rng.integers(20), label])
            for channel in range(3):
                data += image[:, :, channel].tobytes()
            x.append(image)
            y.append(label)
        (folder / file).write_bytes(data)
    x, y = np.stack(x), np.asarray(y)
    return x[:-4], y[:-4], x[-4:], y[-4:]


def write_images(folder, *, classes=("ant", "bee"), count=4, size=(12, 10), suffix=".png", seed=0):
    """<folder>/<class>/<number>.png: each image of one colour that tells class and number; returns them by name."""
    images = {}
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.full((size[1], size[0], 3), (40 * label + 5, 20 * number + 3, seed), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}{suffix}")
            images[f"{name}/{number}{suffix}"] = pixels
    return images

"""MNIST from the user's own copy of the four IDX files."""

from pathlib import Path

import numpy as np

from sparsejax.data.idx import read_idx
from sparsejax.data.source import Dataset


def mnist(data_dir: str = "") -> Dataset:
    """MNIST, 60,000 + 10,000 digits of 28x28, 10 classes (data_dir: its four IDX files, gzipped or not).

    Pixels are scaled to mean 0 and standard deviation 1 (0.1307 and 0.3081 of the full range).

    Args:
      data_dir: directory with train-images-idx3-ubyte, train-labels-idx1-ubyte and t10k-*, each with or without .gz.

    Raises:
      ValueError: one line that names the field or the file, if something is missing or not what it should be.
    """
    if not data_dir:
        raise ValueError("data_dir: is empty; mnist needs the directory of its four IDX files")
    folder = Path(data_dir)
    if not folder.is_dir():
        raise ValueError(
            f"data_dir: {str(data_dir)!r} is not a directory; mnist needs the directory of its four IDX files"
        )
    train_x, train_y = _half(folder, "train")
    test_x, test_y = _half(folder, "t10k")
    if train_x.shape[1:] != test_x.shape[1:]:
        raise ValueError(
            f"{folder}: train images are {train_x.shape[1:]}, test images are {test_x.shape[1:]}; expected the same"
        )
    return Dataset(train_x, train_y, test_x, test_y, classes=10, offset=0.1307 * 255, scale=1 / (0.3081 * 255))


def _half(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    images_path = _find(folder, f"{name}-images-idx3-ubyte")
    labels_path = _find(folder, f"{name}-labels-idx1-ubyte")
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if images.size == 0:
        raise ValueError(f"{images_path}: holds no images (shape {images.shape})")
    if len(images) != len(labels):
        raise ValueError(f"{labels_path}: {len(labels)} labels for {len(images)} images in {images_path.name}")
    if labels.max() > 9:
        raise ValueError(f"{labels_path}: label {labels.max()} at index {labels.argmax()} is not in 0..9")
    return images, labels.astype(np.int32)


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise ValueError(f"data_dir: {str(folder)!r} has neither {name} nor {name}.gz")

"""MNIST and Fashion-MNIST from the user's own copy of the four IDX files."""

from pathlib import Path

import numpy as np

from sparsejax.data.checks import check_folder, check_on_error
from sparsejax.data.idx import read_idx
from sparsejax.data.source import Dataset
from sparsejax.data.subset import subset


def mnist(
    data_dir: str = "", *, limit: int = 0, validation: int = 0, split_seed: int = 0, on_error: str = "raise"
) -> Dataset:
    """MNIST, 60,000 + 10,000 digits of 28x28, 10 classes (data_dir: its four IDX files, gzipped or not).

    Pixels are scaled to mean 0 and standard deviation 1 (0.1307 and 0.3081 of the full range).

    Args:
      data_dir: directory with train-images-idx3-ubyte, train-labels-idx1-ubyte and t10k-*, each with or without .gz.
      limit: training images to use, the same number of each class; 0: all.
      validation: training images to hold out as the test set, in place of t10k-*; 0: none.
      split_seed: which images these are.
      on_error: "raise", or "skip": leave out and count images whose label is out of range.

    Raises:
      ValueError: one line that names the field or the file, if something is missing or not what it should be.

    Source: Y. LeCun, C. Cortes, C. Burges, The MNIST database.
    """
    whole = _read("mnist", data_dir, on_error, offset=0.1307 * 255, scale=1 / (0.3081 * 255))
    return subset(whole, limit=limit, validation=validation, split_seed=split_seed)


def fashion_mnist(
    data_dir: str = "", *, limit: int = 0, validation: int = 0, split_seed: int = 0, on_error: str = "raise"
) -> Dataset:
    """Fashion-MNIST, 60,000 + 10,000 pictures of clothes, 28x28, 10 classes (data_dir: its four IDX files).

    Pixels are scaled to mean 0 and standard deviation 1 (0.2860 and 0.3530 of the full range). Arguments and errors as
    of `mnist`.

    Source: H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, 2017.
    """
    whole = _read("fashion_mnist", data_dir, on_error, offset=0.2860 * 255, scale=1 / (0.3530 * 255))
    return subset(whole, limit=limit, validation=validation, split_seed=split_seed)


def _read(name: str, data_dir: str, on_error: str, *, offset: float, scale: float) -> Dataset:
    skip = check_on_error(on_error)
    folder = check_folder(data_dir, f"{name} needs the directory of its four IDX files")
    train_x, train_y, train_bad = _half(folder, "train", skip)
    test_x, test_y, test_bad = _half(folder, "t10k", skip)
    if train_x.shape[1:] != test_x.shape[1:]:
        raise ValueError(
            f"{folder}: train images are {train_x.shape[1:]}, test images are {test_x.shape[1:]}; expected the same"
        )
    return Dataset(train_x, train_y, test_x, test_y, 10, offset, scale, skipped=train_bad + test_bad)


def _half(folder: Path, name: str, skip: bool) -> tuple[np.ndarray, np.ndarray, int]:
    images_path = _find(folder, f"{name}-images-idx3-ubyte")
    labels_path = _find(folder, f"{name}-labels-idx1-ubyte")
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if images.size == 0:
        raise ValueError(f"{images_path}: holds no images (shape {images.shape})")
    if len(images) != len(labels):
        raise ValueError(f"{labels_path}: {len(labels)} labels for {len(images)} images in {images_path.name}")
    fine = labels <= 9
    if not fine.all() and not skip:
        first = int(fine.argmin())
        raise ValueError(f"{labels_path}: label {labels[first]} at index {first} is not in 0..9")
    if not fine.any():
        raise ValueError(f"{labels_path}: none of the {len(labels)} labels is in 0..9")
    if not fine.all():
        images, labels = images[fine], labels[fine]
    return images, labels.astype(np.int32), int((~fine).sum())


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise ValueError(f"data_dir: {str(folder)!r} has neither {name} nor {name}.gz")

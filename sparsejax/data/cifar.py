"""CIFAR-10 and CIFAR-100 from the user's own copy of the official binary files."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from sparsejax.data.checks import check_folder, check_on_error
from sparsejax.data.source import Dataset, from_moments
from sparsejax.data.subset import subset

_PIXELS = 3 * 32 * 32


class _Layout(NamedTuple):
    """The labels that lead a record, each with its number of values; the last of them is the class."""

    labels: tuple[tuple[str, int], ...]
    folder: str
    train: tuple[str, ...]
    test: str

    @property
    def record(self) -> int:
        return len(self.labels) + _PIXELS


_TEN = _Layout(
    (("label", 10),), "cifar-10-batches-bin", tuple(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"
)
_HUNDRED = _Layout((("coarse label", 20), ("fine label", 100)), "cifar-100-binary", ("train.bin",), "test.bin")


def cifar10(
    data_dir: str = "", *, limit: int = 0, validation: int = 0, split_seed: int = 0, on_error: str = "raise"
) -> Dataset:
    """CIFAR-10, 50,000 + 10,000 colour images of 32x32, 10 classes (data_dir: its binary version).

    Pixels are scaled to mean 0 and standard deviation 1 of each channel.

    Args:
      data_dir: directory with data_batch_1.bin ... data_batch_5.bin and test_batch.bin, or one that holds it as
        cifar-10-batches-bin. A record is a label byte and the red, the green and the blue plane.
      limit: training images to use, the same number of each class; 0: all.
      validation: training images to hold out as the test set, in place of test_batch.bin; 0: none.
      split_seed: which images these are.
      on_error: "raise", or "skip": leave out and count records whose label is out of range or that are cut short.

    Raises:
      ValueError: one line that names the field, or the file with the record, if something is not what it should be.

    Source: A. Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """
    offset, scale = from_moments((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    whole = _read("cifar10", _TEN, data_dir, on_error)._replace(offset=offset, scale=scale)
    return subset(whole, limit=limit, validation=validation, split_seed=split_seed)


def cifar100(
    data_dir: str = "", *, limit: int = 0, validation: int = 0, split_seed: int = 0, on_error: str = "raise"
) -> Dataset:
    """CIFAR-100, 50,000 + 10,000 colour images of 32x32, 100 classes (data_dir: its binary version).

    The classes are the fine labels. A record is a coarse label, a fine label and the three planes; the files are
    train.bin and test.bin, or lie in cifar-100-binary. Other arguments and errors as of `cifar10`.

    Source: A. Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """
    offset, scale = from_moments((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    whole = _read("cifar100", _HUNDRED, data_dir, on_error)._replace(offset=offset, scale=scale)
    return subset(whole, limit=limit, validation=validation, split_seed=split_seed)


def _read(name: str, layout: _Layout, data_dir: str, on_error: str) -> Dataset:
    skip = check_on_error(on_error)
    folder = check_folder(data_dir, f"{name} needs the directory of its binary files")
    if not (folder / layout.test).is_file() and (folder / layout.folder).is_dir():
        folder = folder / layout.folder
    for file in (*layout.train, layout.test):
        if not (folder / file).is_file():
            raise ValueError(f"data_dir: {str(folder)!r} has no {file}")
    parts = [_file(folder / file, layout, skip) for file in layout.train]
    train_x, train_y = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    test_x, test_y, bad = _file(folder / layout.test, layout, skip)
    skipped = bad + sum(part[2] for part in parts)
    return Dataset(train_x, train_y, test_x, test_y, layout.labels[-1][1], 0.0, 1.0, skipped)


def _file(path: Path, layout: _Layout, skip: bool) -> tuple[np.ndarray, np.ndarray, int]:
    """uint8 (N, 32, 32, 3) images, int32 (N,) labels, and how many records were left out."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    whole, rest = divmod(len(data), layout.record)
    if rest and not skip:
        where = f"record {whole} (byte {whole * layout.record})"
        raise ValueError(f"{path}: {where}: the file ends after {rest} of its {layout.record} bytes")
    records = data[: whole * layout.record].reshape(whole, layout.record)
    fine = np.ones(whole, bool)
    for column, (name, values) in enumerate(layout.labels):
        fine &= records[:, column] < values
        if not fine.all() and not skip:
            at = int(fine.argmin())
            where = f"record {at} (byte {at * layout.record})"
            raise ValueError(f"{path}: {where}: {name} {records[at, column]} is not in 0..{values - 1}")
    if not fine.any():
        raise ValueError(f"{path}: holds no images ({len(data)} bytes, a record has {layout.record})")
    if not fine.all():
        records = records[fine]
    planes = records[:, len(layout.labels) :].reshape(-1, 3, 32, 32)
    labels = records[:, len(layout.labels) - 1].astype(np.int32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels, int((~fine).sum()) + bool(rest)

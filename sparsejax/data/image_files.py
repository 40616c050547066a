"""Which images a folder holds: `train/<class>/*.jpg`, and `val` or `test` beside it."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

SUFFIXES = (".jpg", ".jpeg", ".png")


class ImageFiles(NamedTuple):
    """The images of one split.

    Attributes:
      folder: the split's directory.
      names: of each image, relative to `folder`, as "<class>/<file>"; by class, then by name.
      labels: int32 (N,), the index of the class among the sorted classes of train.
    """

    folder: str
    names: tuple[str, ...]
    labels: np.ndarray

    def path(self, index: int) -> str:
        return os.path.join(self.folder, self.names[index])

    def take(self, indices: np.ndarray) -> "ImageFiles":
        return ImageFiles(self.folder, tuple(self.names[i] for i in indices), self.labels[indices])


def class_names(folder: Path) -> tuple[str, ...]:
    """The sorted names of a split's subdirectories, hidden ones left out."""
    with _scanned(folder) as entries:
        found = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise ValueError(f"{folder}: has no folder for a class")
    return tuple(found)


def image_files(folder: Path, classes: tuple[str, ...], skip: bool) -> tuple[ImageFiles, int]:
    """The images of a split, and how many class folders were left out.

    Args:
      folder: the split's directory.
      classes: the classes of train.
      skip: a class folder that is empty or that train does not have is left out and counted, rather than an error.

    Raises:
      ValueError: one line that names the folder.
    """
    names: list[str] = []
    labels: list[int] = []
    skipped = 0
    for name in class_names(folder):
        with _scanned(folder / name) as entries:
            images = sorted(entry.name for entry in entries if _is_image(entry))
        problem = "is not a class of train" if name not in classes else f"holds no image ({', '.join(SUFFIXES)})"
        if images and name in classes:
            names.extend(f"{name}/{image}" for image in images)
            labels.extend([classes.index(name)] * len(images))
        elif not skip:
            raise ValueError(f"{folder / name}: {problem}")
        else:
            skipped += 1
    if not names:
        raise ValueError(f"{folder}: holds no image ({', '.join(SUFFIXES)})")
    return ImageFiles(str(folder), tuple(names), np.asarray(labels, np.int32)), skipped


def _is_image(entry: os.DirEntry) -> bool:
    return entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".") and entry.is_file()


def _scanned(folder: Path):
    try:
        return os.scandir(folder)
    except OSError as error:
        raise ValueError(f"{folder}: cannot be read: {error}") from error

"""Folders of images in ImageNet's layout: streamed and augmented by workers, or small ones in memory."""

import os
from pathlib import Path

import jax
import numpy as np

from sparsejax.data.checks import check_folder, check_integer, check_on_error
from sparsejax.data.draws import check_seed
from sparsejax.data.image_batches import TestBatch, TrainBatch, Views
from sparsejax.data.image_files import ImageFiles, class_names, image_files
from sparsejax.data.pictures import eval_view, read_picture
from sparsejax.data.source import Dataset, from_moments
from sparsejax.data.stream import Batches, Stream
from sparsejax.data.subset import split


def image_folder(
    data_dir: str = "",
    *,
    image_size: int = 224,
    resize: int = 0,
    crop_area: tuple[float, float] = (0.08, 1.0),
    in_memory: bool = False,
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
    std: tuple[float, float, float] = (0.229, 0.224, 0.225),
    workers: int | None = None,
    limit: int = 0,
    validation: int = 0,
    split_seed: int = 0,
    on_error: str = "raise",
) -> Dataset | Stream:
    """Folders train/<class>/*.jpg|png and val/ or test/ alike, as ImageNet is laid out (streamed by worker processes).

    Training sees a random box of each image, resized, mirrored half of the time; evaluation sees the middle after its
    shorter side was resized. Which boxes an epoch draws depends on the seed and the epoch alone, in the same order of
    examples as in memory. Classes are the folders of train, sorted.

    Args:
      data_dir: directory with train and val (or test).
      image_size: pixels of a side, as a model sees it.
      resize: pixels of the shorter side before the middle is cut out for evaluation; 0: 8/7 of image_size.
      crop_area: least and largest share of an image's area that a training box has.
      in_memory: a `Dataset` of the images as they are, which must all have one size, in place of a stream; image_size,
        resize, crop_area and workers do not matter then.
      mean, std: of each channel, as parts of 255; they become 0 and 1.
      workers: processes that decode; None: as many as there are cores, at most 8; 0: threads of this process. What is
        read does not depend on it.
      limit: training images to use, the same number of each class; 0: all.
      validation: training images to hold out as the test set, in place of val; 0: none.
      split_seed: which images these are.
      on_error: "raise", or "skip": leave out and count class folders that are empty or that train does not have, and
        images that cannot be decoded (in a stream the next image of the epoch takes the place of such a one).

    Raises:
      ValueError: one line that names the field, the folder or the file, here or when a batch is read.
    """
    skip = check_on_error(on_error)
    folder = check_folder(data_dir, "image_folder needs a directory with train/<class>/*.jpg and val/<class>/*.jpg")
    offset, scale = from_moments(_channels("mean", mean, 0.0), _channels("std", std, 1e-9))
    train, test, classes, skipped = _find(folder, skip, limit, validation, split_seed)
    if in_memory:
        return _in_memory(train, test, len(classes), skip, skipped)._replace(offset=offset, scale=scale)
    check_integer("image_size", image_size, 1, 8192)
    shorter = check_integer("resize", resize, image_size, 1 << 16) if resize else round(image_size * 8 / 7)
    views = Views(image_size, shorter, _area(crop_area), skip)
    if workers is None:
        workers = min(8, os.cpu_count() or 1)
    check_integer("workers", workers, 0, 1024)
    threads = 1 if workers else min(4, os.cpu_count() or 1)

    def train_batches(batch_size: int, seed: int) -> Batches:
        check_integer("batch_size", batch_size, 1, len(train.names))
        named = {"batch_size": batch_size, "seed": check_seed(seed), "examples": len(train.names), "size": image_size}
        make = TrainBatch(train, views, batch_size, seed)
        return Batches(make, named=named, workers=workers, threads=threads)

    def test_batches(batch_size: int) -> Batches:
        check_integer("batch_size", batch_size, 1, 1 << 20)
        named = {"batch_size": batch_size, "examples": len(test.names), "size": image_size}
        make, count = TestBatch(test, views, batch_size), -(-len(test.names) // batch_size)
        return Batches(make, named=named, count=count, workers=min(workers, count), threads=threads)

    example = jax.ShapeDtypeStruct((image_size, image_size, 3), np.uint8)
    sizes = len(train.names), len(test.names)
    view = lambda path: eval_view(read_picture(path), image_size, shorter)
    return Stream(train_batches, test_batches, len(classes), example, offset, scale, *sizes, skipped, view)


def _channels(field: str, value: tuple[float, ...], least: float) -> tuple[float, ...]:
    fine = isinstance(value, tuple | list) and len(value) == 3
    if not fine or not all(isinstance(v, int | float) and least <= v <= 1 for v in value):
        raise ValueError(f"{field}: {value!r} is not three numbers in [{least}, 1]")
    return tuple(float(v) for v in value)


def _area(value: tuple[float, float]) -> tuple[float, float]:
    fine = isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(v, int | float) for v in value)
    if not fine or not 0 < value[0] <= value[1] <= 1:
        raise ValueError(f"crop_area: {value!r} is not two numbers, 0 < least <= largest <= 1")
    return float(value[0]), float(value[1])


def _find(
    folder: Path, skip: bool, limit: int, validation: int, split_seed: int
) -> tuple[ImageFiles, ImageFiles, tuple[str, ...], int]:
    """The images of train and test, the classes, and how many class folders were left out."""
    for name in ("train",) if validation else ("train", "val"):
        if not (folder / name).is_dir() and not (name == "val" and (folder / "test").is_dir()):
            raise ValueError(f"data_dir: {str(folder)!r} has no {name}" + " or test" * (name == "val"))
    classes = class_names(folder / "train")
    everything, skipped = image_files(folder / "train", classes, skip)
    kept, held = split(everything.labels, limit=limit, validation=validation, split_seed=split_seed)
    if validation:
        return everything.take(kept), everything.take(held), classes, skipped
    test, more = image_files(folder / ("val" if (folder / "val").is_dir() else "test"), classes, skip)
    return everything.take(kept), test, classes, skipped + more


def _in_memory(train: ImageFiles, test: ImageFiles, classes: int, skip: bool, skipped: int) -> Dataset:
    arrays: list[np.ndarray] = []
    like: tuple[str, tuple[int, ...]] | None = None
    for files in (train, test):
        images, labels = [], []
        for index, label in enumerate(files.labels):
            try:
                image = np.asarray(read_picture(files.path(index)))
            except ValueError:
                if not skip:
                    raise
                skipped += 1
                continue
            like = like or (files.path(index), image.shape)
            if image.shape != like[1]:
                sizes = f"{image.shape[1]}x{image.shape[0]} pixels, {like[0]} has {like[1][1]}x{like[1][0]}"
                raise ValueError(f"{files.path(index)}: has {sizes}; in memory all must have one size")
            images.append(image)
            labels.append(label)
        if not images:
            raise ValueError(f"{files.folder}: none of its {len(files.labels)} images can be decoded")
        arrays += [np.stack(images), np.asarray(labels, np.int32)]
    return Dataset(arrays[0], arrays[1], arrays[2], arrays[3], classes, 0.0, 1.0, skipped)

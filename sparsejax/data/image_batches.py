"""The batches of an image folder, each a pure function of its number; these run in the workers of a stream."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sparsejax.data.draws import epoch_permutation, generator
from sparsejax.data.image_files import ImageFiles
from sparsejax.data.pictures import eval_view, read_picture, train_view
from sparsejax.data.stream import Made


class Views(NamedTuple):
    """What becomes of an image.

    Attributes:
      size: pixels of a side that a model sees.
      shorter: pixels of the shorter side before the middle is cut out for evaluation.
      area: least and largest share of the area in training.
      skip: an image that cannot be decoded is left out and counted.
    """

    size: int
    shorter: int
    area: tuple[float, float]
    skip: bool


@dataclass(frozen=True)
class TrainBatch:
    """Number of a training batch -> (x, y). A class, because it travels to the workers."""

    files: ImageFiles
    views: Views
    batch_size: int
    seed: int

    def __call__(self, number: int) -> Made:
        size = len(self.files.labels)
        epoch, step = divmod(number, size // self.batch_size)
        order = epoch_permutation(self.seed, epoch, size)
        images, labels, skipped = [], [], 0
        for place in range(step * self.batch_size, (step + 1) * self.batch_size):
            for further in range(size):
                index = int(order[(place + further) % size])
                try:
                    image = read_picture(self.files.path(index))
                    break
                except ValueError as error:
                    if not self.views.skip:
                        return str(error)
                    skipped += 1
            else:
                return f"{self.files.folder}: none of its {size} images can be decoded"
            images.append(train_view(image, self.views.size, generator(self.seed, epoch, place), self.views.area))
            labels.append(self.files.labels[index])
        return (np.stack(images), np.asarray(labels, np.int32)), skipped


@dataclass(frozen=True)
class TestBatch:
    """Number of a test batch -> (x, y, real), the last one filled up."""

    files: ImageFiles
    views: Views
    batch_size: int

    def __call__(self, number: int) -> Made:
        size, skipped = self.views.size, 0
        x = np.zeros((self.batch_size, size, size, 3), np.uint8)
        y, real = np.zeros(self.batch_size, np.int32), np.zeros(self.batch_size, bool)
        first = number * self.batch_size
        for index in range(first, min(first + self.batch_size, len(self.files.labels))):
            try:
                image = read_picture(self.files.path(index))
            except ValueError as error:
                if not self.views.skip:
                    return str(error)
                skipped += 1
                continue
            x[index - first] = eval_view(image, size, self.views.shorter)
            y[index - first], real[index - first] = self.files.labels[index], True
        return (x, y, real), skipped

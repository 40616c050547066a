"""What a data set is: four arrays, how to scale the pixels, how many classes."""

from typing import NamedTuple

import numpy as np


class Dataset(NamedTuple):
    """A classification data set in memory.

    Attributes:
      train_x: uint8 (N, *shape); kept as bytes, also on the device, and scaled batch by batch.
      train_y: int32 (N,) in [0, classes).
      test_x: uint8 (M, *shape).
      test_y: int32 (M,).
      classes: number of classes.
      offset: pixel value that becomes 0.
      scale: a model sees (pixel - offset) * scale.
    """

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    classes: int
    offset: float
    scale: float

"""One image file -> pixels: decoding, and the two ways to a fixed size that the ImageNet recipes use.

Pillow and NumPy only, on the host: these run in the workers of a stream.
"""

import math
from typing import Any

import numpy as np

# Pillow's own limit, beyond which it warns: 16 times the largest photograph of ImageNet
_MOST_PIXELS = 89_478_485


def read_picture(path: str) -> Any:
    """The image in a file as a decoded RGB image of Pillow.

    Raises:
      ValueError: one line that names the file, if it is not an image, is damaged, or is larger than 89 megapixels.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels are more than {_MOST_PIXELS}")
            if image.mode == "P" and "transparency" in image.info:
                return image.convert("RGBA").convert("RGB")  # Pillow warns of the direct way
            return image.convert("RGB")
    # A damaged file makes Pillow's decoders raise nearly anything: OSError, SyntaxError, struct.error, IndexError, ...
    except Exception as error:
        words = " ".join(str(error).split()).replace(repr(str(path)), "").strip()
        raise ValueError(f"{path}: cannot be decoded: {words or type(error).__name__}") from error


def train_view(
    image: Any, size: int, draws: np.random.Generator, area: tuple[float, float] = (0.08, 1.0)
) -> np.ndarray:
    """A random box of the image, resized to size x size, mirrored half of the time.

    The box has a share of the image's area that is uniform in `area` and a ratio of width to height that is
    log-uniform in [3/4, 4/3]. A box that does not fit is drawn anew, ten times at most; then it is the largest box in
    the middle whose ratio is allowed.

    Args:
      image: RGB, of Pillow.
      size: pixels.
      draws: where the random numbers come from.
      area: least and largest share.

    Returns:
      uint8 (size, size, 3).

    Source: C. Szegedy et al., Going deeper with convolutions, 2015.
    """
    box = random_box(image.width, image.height, draws, area)
    pixels = _resized(image, size, size, box)
    return pixels[:, ::-1] if draws.random() < 0.5 else pixels


def eval_view(image: Any, size: int, shorter: int) -> np.ndarray:
    """The middle size x size of the image, after its shorter side was resized to `shorter` pixels.

    Returns:
      uint8 (size, size, 3).
    """
    scale = shorter / min(image.width, image.height)
    width, height = (max(shorter, round(side * scale)) for side in (image.width, image.height))
    left, top = (width - size) // 2, (height - size) // 2
    # the same as to resize all of it and to cut, without the pixels that are cut away
    box = tuple(
        at * whole / resized
        for at, whole, resized in (
            (left, image.width, width),
            (top, image.height, height),
            (left + size, image.width, width),
            (top + size, image.height, height),
        )
    )
    return _resized(image, size, size, box)


def random_box(
    width: int, height: int, draws: np.random.Generator, area: tuple[float, float]
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random box in an image, see `train_view`."""
    least, most = 3 / 4, 4 / 3
    for _ in range(10):
        pixels = width * height * draws.uniform(*area)
        ratio = math.exp(draws.uniform(math.log(least), math.log(most)))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draws.integers(width - w + 1)), int(draws.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * most)), min(height, round(width / least))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _resized(image: Any, width: int, height: int, box: tuple) -> np.ndarray:
    from PIL import Image

    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=box))

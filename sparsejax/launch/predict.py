"""`sparsejax predict`: what a trained classifier says to files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from sparsejax.launch.config import InputError
from sparsejax.launch.terminal import one_line, say

_BATCH = 64


def run_predict(workdir: Path, files: Sequence[Path], console: Console) -> int:
    """Prints `FILE: class 3, 97.1 %` for each file, by the mean probability over the run's seeds; exit code 0.

    Raises:
      InputError: the run is no classifier's, or a file cannot be read; nothing is printed then.
    """
    from sparsejax.training.errors import ConfigError
    from sparsejax.training.trained import load_trained

    try:
        trained = load_trained(workdir)
    except ConfigError as error:
        raise InputError(f"--workdir: {error}") from error
    if trained.task.name != "classification":
        raise InputError(f"--workdir: {workdir} has a language model; sparsejax sample is for that")
    view = getattr(trained.data, "view", None)
    images = [read_image(file, trained.task.example.shape[1:], view) for file in files]
    for file, probabilities in zip(files, _probabilities(trained, images), strict=True):
        best = int(probabilities.argmax())
        say(console, f"{file}: class {best}, {100 * probabilities[best]:.1f} %")
    return 0


def read_image(file: Path, shape: tuple[int, ...], view: Callable[[str], Any] | None = None) -> Any:
    """The pixels of an image file or .npy as the data set stores them: numbers of this shape, (H, W) or (H, W, C).

    An image is turned to grey or RGB and resized where it has another size, or, where the data set says how its
    evaluation sees an image, by that `view`; an array must have the shape.

    Raises:
      InputError: one line that names the file.
    """
    import numpy as np

    try:
        pixels = np.load(file, allow_pickle=False) if file.suffix == ".npy" else _picture(file, shape, view)
    except Exception as error:  # a damaged file can break a decoder in more ways than it has exceptions
        raise InputError(f"{file}: cannot be read: {one_line(error)}") from error
    if not isinstance(pixels, np.ndarray) or pixels.shape != shape or pixels.dtype.kind not in "uif":
        what = f"{pixels.dtype}{list(pixels.shape)}" if isinstance(pixels, np.ndarray) else "an archive"
        raise InputError(f"{file}: is {what}, expected numbers of shape {list(shape)}")
    return pixels


def _picture(file: Path, shape: tuple[int, ...], view: Callable[[str], Any] | None) -> Any:
    import numpy as np
    from PIL import Image

    if view is not None:
        return view(str(file))
    with Image.open(file) as opened:
        image: Image.Image = opened.convert("RGB" if shape[2:] == (3,) else "L")
        if image.size != (shape[1], shape[0]):
            image = image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(shape)


def _probabilities(trained: Any, images: Sequence[Any]) -> Any:
    """(files, classes), in batches of one size."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from sparsejax.training.model import evaluated

    @jax.jit
    def of_batch(params, model_state, x):
        logits = lambda params, model_state: evaluated(trained.model, params, model_state, trained.task.inputs(x))
        return jax.nn.softmax(jax.vmap(logits)(params, model_state)).mean(0)

    size = min(_BATCH, len(images))
    stacked = np.stack([np.asarray(image, np.float32) for image in images])
    out = []
    for start in range(0, len(images), size):
        batch = stacked[start : start + size]
        filled = np.concatenate([batch, np.zeros((size - len(batch), *batch.shape[1:]), np.float32)])
        out.append(np.asarray(of_batch(trained.params, trained.model_state, jnp.asarray(filled)))[: len(batch)])
    return np.concatenate(out)

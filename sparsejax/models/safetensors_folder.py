"""A folder as Hugging Face's libraries save models: config.json and model.safetensors. Nothing is downloaded."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from sparsejax.files import write_json

CONFIG, TENSORS = "config.json", "model.safetensors"


def read_folder(folder: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The config, and the tensors by name, in the dtypes in which they are stored.

    Raises:
      ValueError: one line that names the folder or the file, if one is missing or not what it should be.

    Example:
      >>> write_folder("model", {"model_type": "none"}, {"w": np.ones(3, np.float32)})
      >>> read_folder("model")
      ({'model_type': 'none'}, {'w': array([1., 1., 1.], dtype=float32)})
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: is not a directory; it needs to hold {CONFIG} and {TENSORS}")
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            other = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".safetensors"))
            found = f"; pickles and shards ({', '.join(other)}) are not read" if other and name == TENSORS else ""
            raise ValueError(f"{folder}: has no {name}{found}")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{folder / CONFIG}: cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{folder / CONFIG}: holds {type(config).__name__}, expected an object")
    try:
        return config, load_file(folder / TENSORS)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{folder / TENSORS}: cannot be read as safetensors: {words}") from error


def write_folder(folder: str | Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Writes what `read_folder` reads, each file whole or not at all; makes the folder.

    The tensors' file says that its layout is PyTorch's ("pt"), without which other libraries refuse it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{TENSORS}.part"
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, part, {"format": "pt"})
    os.replace(part, folder / TENSORS)
    write_json(folder / CONFIG, dict(config))


def take(tensors: dict[str, np.ndarray], name: str, shape: tuple[int, ...], file: str | Path) -> np.ndarray:
    """Removes one tensor and returns it in float32.

    Raises:
      ValueError: one line that names the tensor and the file, if it is missing, of another shape or not of floats.

    Example:
      >>> take({"w": np.ones(3, np.float16)}, "w", (3,), "model").dtype
      dtype('float32')
    """
    if name not in tensors:
        raise ValueError(f"{file}: has no tensor {name!r}")
    tensor = tensors.pop(name)
    if tensor.shape != shape:
        raise ValueError(f"{file}: tensor {name!r} has shape {list(tensor.shape)}, expected {list(shape)}")
    if not np.issubdtype(tensor.dtype, np.floating) and tensor.dtype.name != "bfloat16":
        raise ValueError(f"{file}: tensor {name!r} holds {tensor.dtype}, expected floats")
    return tensor.astype(np.float32)


def check_all_taken(tensors: Mapping[str, np.ndarray], file: str | Path, ignored: tuple[str, ...] = ()) -> None:
    """ValueError that names the first tensor which is left and whose name no glob of `ignored` matches."""
    left = sorted(name for name in tensors if not any(fnmatchcase(name, glob) for glob in ignored))
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise ValueError(f"{file}: unknown tensor {left[0]!r}{more}")

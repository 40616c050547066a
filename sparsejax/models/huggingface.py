"""Local Hugging Face folders: config.json and model.safetensors, both checked; nothing is downloaded or unpickled."""

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class FolderConfig:
    """The config.json of a folder, whose values are checked as they are read.

    Args:
      folder: path of the folder.
      model_type: what its field "model_type" must be.

    Raises:
      ValueError: there is no such file, it is no JSON object, or it is of another model type.
    """

    def __init__(self, folder: str | Path, model_type: str):
        self.file = Path(folder) / CONFIG
        try:
            values = json.loads(self.file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{self.file}: {error.strerror or error}; a Hugging Face folder has {CONFIG}") from error
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
            raise ValueError(f"{self.file}: not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{self.file}: {type(values).__name__} is not a JSON object")
        self.values: dict[str, Any] = values
        self.get("model_type", model_type, (model_type,))

    def get(self, field: str, default: Any, allowed: tuple[Any, ...] = ()) -> Any:
        """The value of a field, of the default's type, or the default where the file has none.

        Raises:
          ValueError: it has another type, is a number below 0, or is not among the allowed values.
        """
        value = self.values.get(field, default)
        kind = (int, float) if isinstance(default, float) else type(default)
        wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
        if wrong or (isinstance(value, int | float) and value < 0):
            name = "a number >= 0" if isinstance(default, float) else f"a value like {default!r}"
            raise ValueError(f"{self.file}: {field}: {value!r} is not {name}")
        if allowed and value not in allowed:
            raise ValueError(f"{self.file}: {field}: {value!r} is not {' or '.join(map(repr, allowed))}")
        return value

    def size(self, field: str, default: int) -> int:
        """A whole number of at least 1."""
        value = self.get(field, default)
        if value < 1:
            raise ValueError(f"{self.file}: {field}: {value!r} is not at least 1")
        return value


def tensor_names(folder: str | Path) -> list[str]:
    """Names of the tensors in a folder's model.safetensors.

    Raises:
      ValueError: there is no such file, or it is no safetensors file.
    """
    with _opened(folder) as tensors:
        return list(tensors.keys())


def read_tensors(
    folder: str | Path, shapes: Mapping[str, tuple[int, ...]], ignored: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """The tensors of a folder's model.safetensors as float32, checked against the names and shapes that are wanted.

    Args:
      folder: path of the folder.
      shapes: name -> shape of every tensor that must be there.
      ignored: globs of names that may be there, and are not read.

    Raises:
      ValueError: no safetensors file, or a tensor is missing, unknown, of another shape or not floating; it names the
        file and the tensor.
    """
    file = Path(folder) / WEIGHTS
    with _opened(folder) as tensors:
        names = set(tensors.keys())
        for name in sorted(names - shapes.keys()):
            if not any(fnmatchcase(name, glob) for glob in ignored):
                raise ValueError(f"{file}: unknown tensor {name!r}, which {CONFIG} gives no place to")
        for name, shape in shapes.items():
            if name not in names:
                raise ValueError(f"{file}: no tensor {name!r}, which {CONFIG} asks for")
            header = tensors.get_slice(name)
            if tuple(header.get_shape()) != shape:
                raise ValueError(f"{file}: {name!r} has shape {tuple(header.get_shape())}, not {shape} as in {CONFIG}")
            if header.get_dtype() not in ("F64", "F32", "F16", "BF16"):
                raise ValueError(f"{file}: {name!r} is {header.get_dtype()}, not F64, F32, F16 or BF16")
        return {name: np.asarray(tensors.get_tensor(name)).astype(np.float32) for name in shapes}


def _opened(folder: str | Path) -> Any:
    """The safetensors file of a folder, open for reading."""
    from safetensors import SafetensorError, safe_open

    file = Path(folder) / WEIGHTS
    if not file.is_file():
        other = sorted(path.name for path in Path(folder).glob("*") if path.suffix in (".bin", ".safetensors", ".pt"))
        found = f"; pickles and shards ({', '.join(other)}) are not read" if other else ""
        raise ValueError(f"{file}: no such file{found}")
    try:
        return safe_open(file, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: not a safetensors file: {error}") from error

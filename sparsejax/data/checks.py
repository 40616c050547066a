"""Checks of what a config can hand to a data set: each failure is one line that names the option."""

from pathlib import Path
from typing import Any

import numpy as np


def check_integer(field: str, value: Any, low: int, high: int) -> int:
    """`value`, if it is an integer in low..high; ValueError otherwise.

    Example:
      >>> check_integer("limit", 12, 0, 10)
      Traceback (most recent call last):
      ValueError: limit: 12 is not in 0..10
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{field}: {value!r} is not an integer in {low}..{high}")
    if not low <= value <= high:
        raise ValueError(f"{field}: {value} is not in {low}..{high}")
    return int(value)


def check_fraction(field: str, value: Any) -> float:
    """`value` as a float, if it is a number in (0, 1); ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ValueError(f"{field}: {value!r} is not a number in (0, 1)")
    return float(value)


def check_choice(field: str, value: Any, allowed: tuple[str, ...]) -> str:
    """`value`, if it is one of `allowed`; ValueError otherwise."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{field}: {value!r} is not one of {', '.join(allowed)}")
    return value


def check_on_error(value: Any) -> bool:
    """Whether what is damaged is left out and counted ("skip") rather than an error ("raise")."""
    return check_choice("on_error", value, ("raise", "skip")) == "skip"


def check_folder(data_dir: str | Path, needs: str) -> Path:
    """`data_dir` as a path, if it is a directory; ValueError that says what is needed otherwise."""
    if not data_dir:
        raise ValueError(f"data_dir: is empty; {needs}")
    folder = Path(data_dir)
    if not folder.is_dir():
        raise ValueError(f"data_dir: {str(data_dir)!r} is not a directory; {needs}")
    return folder

"""Checks of a module's attributes: one line that names the attribute, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp

_DTYPES = ("float32", "bfloat16", "float16")


def check_sizes(module: Any, *names: str) -> None:
    """Raises ValueError where an attribute is not an integer >= 1."""
    for name in names:
        if not _is_size(value := getattr(module, name)):
            raise ValueError(f"{name}: {value!r} is not an integer >= 1")


def check_widths(module: Any, name: str) -> None:
    """Raises ValueError where an attribute is not a list or tuple of integers >= 1."""
    value = getattr(module, name)
    if not isinstance(value, list | tuple) or not all(map(_is_size, value)):
        raise ValueError(f"{name}: {value!r} is not a list of integers >= 1")


def check_flags(module: Any, *names: str) -> None:
    """Raises ValueError where an attribute is not True or False."""
    for name in names:
        if not isinstance(value := getattr(module, name), bool):
            raise ValueError(f"{name}: {value!r} is not true or false")


def check_choice(module: Any, name: str, known: Iterable[str]) -> None:
    """Raises ValueError where an attribute is not one of the known strings."""
    if getattr(module, name) not in (choices := tuple(known)):
        raise ValueError(f"{name}: unknown {getattr(module, name)!r}; one of {', '.join(choices)}")


def check_rate(module: Any, name: str) -> None:
    """Raises ValueError where an attribute is not a number in [0, 1)."""
    value = getattr(module, name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
        raise ValueError(f"{name}: {value!r} is not a number in [0, 1)")


def check_dtype(module: Any, name: str) -> None:
    """Raises ValueError where an attribute is not a dtype to compute in, or its name."""
    dtype = getattr(module, name)
    try:
        known = (dtype if isinstance(dtype, str) else jnp.dtype(dtype).name) in _DTYPES
    except TypeError:
        known = False
    if not known:
        raise ValueError(f"{name}: unknown {dtype!r}; one of {', '.join(_DTYPES)}")


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_form(module: Any, form: str, models: str) -> None:
    """Raises ValueError where a model cannot take this form (`models` can), or has taken one already."""
    if form not in module.__dataclass_fields__:
        raise ValueError(f"{form}: {type(module).__name__} has no such form; {models} have")
    for other in ("monarch", "roast", "sparse_ift"):
        if getattr(module, other, None) is not None:
            raise ValueError(f"{form}: the model has its {other} form; one at a time")

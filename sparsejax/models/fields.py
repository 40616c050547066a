"""Checks of a module's attributes: one line that names the attribute, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp

_DTYPES = ("float32", "bfloat16", "float16")


def check_sizes(module: Any, *names: str) -> None:
    """Raises ValueError where an attribute is not an integer >= 1."""
    for name in names:
        value = getattr(module, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}: {value!r} is not an integer >= 1")


def check_choice(module: Any, name: str, known: Iterable[str]) -> None:
    """Raises ValueError where an attribute is not one of the known strings."""
    if getattr(module, name) not in (choices := tuple(known)):
        raise ValueError(f"{name}: unknown {getattr(module, name)!r}; one of {', '.join(choices)}")


def check_rate(module: Any, name: str) -> None:
    """Raises ValueError where an attribute is no dropout rate."""
    if not 0 <= getattr(module, name) < 1:
        raise ValueError(f"{name}: {getattr(module, name)!r} is not in [0, 1)")


def check_dtype(module: Any, name: str) -> None:
    """Raises ValueError where an attribute is not a dtype to compute in, or its name."""
    dtype = getattr(module, name)
    if (dtype if isinstance(dtype, str) else jnp.dtype(dtype).name) not in _DTYPES:
        raise ValueError(f"{name}: unknown {dtype!r}; one of {', '.join(_DTYPES)}")

"""What all distributions share: their type, a map over named leaves, the check of a density."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from sparsejax.leaves import Layout, named_leaves

Distribution = Callable[[Any, float, Layout | None], Any]


def map_named(function: Callable[[str, Any], Any], params: Any) -> Any:
    """`function(path, leaf)` at each leaf; None stays None."""
    leaves = [function(path, leaf) for path, leaf in named_leaves(params)]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def checked_density(density: float, name: str) -> float:
    """The density as a float; ValueError, naming it, where it is not in (0, 1]."""
    if not 0 < density <= 1:
        raise ValueError(f"{name}={density} must be above 0 and at most 1")
    return float(density)

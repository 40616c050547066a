"""The optimizer state that every sparse method shares."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax


class SparseState(NamedTuple):
    """State of a sparse transformation.

    Attributes:
      count: int32 scalar, updates so far.
      key: uint32 key data; with `count` it seeds every random choice.
      masks: the params' tree with a boolean array, a `packing.Packed` or None at each leaf; `get_masks` reads them.
      inner_state: the wrapped optimizer's.
      skipped: int32 scalar, leaves whose mask update was skipped for a non-finite weight or gradient.
      extra: what a method needs besides; of a gradual method the kept counts of each update.
    """

    count: jax.Array  # type: ignore[assignment]  # the name of optax's counters, and also a method of tuples
    key: jax.Array
    masks: Any
    inner_state: Any
    skipped: jax.Array
    extra: Any

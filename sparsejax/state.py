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
      extra: what a method needs besides; of a gradual method the kept counts of each update, of a reparametrized one
        a `Latents`.
    """

    count: jax.Array  # type: ignore[assignment]  # the name of optax's counters, and also a method of tuples
    key: jax.Array
    masks: Any
    inner_state: Any
    skipped: jax.Array
    extra: Any


class Straight(NamedTuple):
    """The `extra` of a straight-through method.

    Attributes:
      table: kept counts of the plan's ramp, or ().
      dense: the params' tree with the dense weights of each sparsified leaf, else None; off the mask they count, on it
        the params do. `masks.get_dense` reads them.
      backward: stored masks of the weights that may move, where these are selected too, with their table; or ().
      memory: of a rule that has one; else ().
    """

    table: Any
    dense: Any
    backward: Any
    memory: Any


class Latents(NamedTuple):
    """The state's `extra` of a reparametrized method: of what its params are a function.

    Attributes:
      weights: the params' tree with the dense weights of each masked leaf, None elsewhere.
      extras: the params' tree with one trained array (a threshold, scores) at each masked leaf, or None.
      memory: the params' tree with one array that is kept but not trained at each masked leaf, or None.
      aux_state: the state of the optimizer of the extras.
      table: kept counts of each update of a ramp, or ().
    """

    weights: Any
    extras: Any
    memory: Any
    aux_state: Any
    table: Any

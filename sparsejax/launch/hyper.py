"""The `h` that `get_hyper(h)` of a config file receives: three ways to write a list of trials.

A trial is a dict of overrides, `{"method": "rigl", "method_args.drop_fraction": 0.5}`; dots reach nested
fields. Lists of trials are joined with `+`.

    def get_hyper(h):
        return h.list([{"method": "dense"}]) + h.product({"method": ["set", "rigl"], "sparsity": [0.9, 0.95]})
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

Trial = dict[str, Any]


def product(grid: Mapping[str, Sequence[Any]]) -> list[Trial]:
    """Every combination of the values, the last field varying fastest.

    Args:
      grid: field -> values.

    Raises:
      ValueError: if the values of a field are not a sequence, or are none.
    """
    columns = _columns("product", grid)
    return [dict(zip(columns, row)) for row in itertools.product(*columns.values())]


def zip_(grid: Mapping[str, Sequence[Any]]) -> list[Trial]:
    """The first values of all fields together, then the second ones, and so on; called `h.zip` in configs.

    Args:
      grid: field -> values, all of one length.

    Raises:
      ValueError: if the lengths differ, or the values of a field are not a sequence, or are none.
    """
    columns = _columns("zip", grid)
    lengths = {field: len(values) for field, values in columns.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{field} has {length}" for field, length in lengths.items())
        raise ValueError(f"h.zip: the fields need equally many values; {found}")
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


def list_(trials: Iterable[Mapping[str, Any]]) -> list[Trial]:
    """The trials as they are written; called `h.list` in configs.

    Raises:
      ValueError: if a member is not a dict from field to value.
    """
    return [check_trial("h.list", trial) for trial in trials]


def check_trial(where: str, trial: Any) -> Trial:
    """The trial as a new dict; raises a ValueError that begins with `where` if it is no dict of fields."""
    if not isinstance(trial, Mapping) or not all(isinstance(field, str) for field in trial):
        raise ValueError(f'{where}: a trial is a dict such as {{"method": "rigl"}}, not {trial!r}')
    return dict(trial)


def _columns(name: str, grid: Any) -> dict[str, list[Any]]:
    if not isinstance(grid, Mapping):
        raise ValueError(f'h.{name} takes a dict such as {{"sparsity": [0.9, 0.95]}}, not {grid!r}')
    for field, values in grid.items():
        # a string is a sequence too: {"method": "rigl"} would be four methods of one letter
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
            raise ValueError(f"h.{name}: {field} needs a list of values, not {values!r}")
    columns = {field: list(values) for field, values in grid.items()}
    for field, values in columns.items():
        if not values:
            raise ValueError(f"h.{name}: {field} has no values")
    return columns


h = SimpleNamespace(product=product, zip=zip_, list=list_)

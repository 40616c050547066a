"""What a config can name, for `sparsejax list`."""

from __future__ import annotations

import inspect
from typing import Any


def known_names() -> list[tuple[str, str, str]]:
    """(name, kind, first line of its docstring) of every method, procedure, data set and model."""
    from sparsejax.data import DATASETS
    from sparsejax.models import MODELS
    from sparsejax.training.methods import METHODS
    from sparsejax.training.procedures import PROCEDURES

    tables: dict[str, Any] = {"method": METHODS, "procedure": PROCEDURES, "dataset": DATASETS, "model": MODELS}
    return [(name, kind, first_line(thing)) for kind, table in tables.items() for name, thing in table.items()]


def first_line(thing: Any) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]

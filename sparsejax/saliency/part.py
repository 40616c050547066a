"""The prunable part of a parameter tree, and means of functions over batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.leaves import Where, select_leaves

PyTree = Any


class Part(NamedTuple):
    """The leaves that `where` chooses.

    Attributes:
      leaves: the chosen ones, in the tree's order.
      filled: such leaves -> the params with them in place.
      alone: such leaves -> the params' tree with them, and None at every other leaf.
    """

    leaves: list[Any]
    filled: Callable[[Sequence[Any]], PyTree]
    alone: Callable[[Sequence[Any]], PyTree]


def part_of(params: PyTree, where: Where | None) -> Part:
    """The part of the params that `where` chooses; ValueError where that is nothing, or a glob matches no leaf."""
    structure: Any = jax.tree.structure(params)
    every = jax.tree.leaves(params)
    places = [i for i, leaf in enumerate(structure.flatten_up_to(select_leaves(params, where))) if leaf is not None]

    def put(into: list[Any], leaves: Sequence[Any]) -> PyTree:
        for place, leaf in zip(places, leaves, strict=True):
            into[place] = leaf
        return structure.unflatten(into)

    return Part([every[i] for i in places], lambda x: put(list(every), x), lambda x: put([None] * len(every), x))


def wide(x: jax.Array) -> jax.Array:
    """Floats of at least 32 bits: scores of bfloat16 weights would tie by the thousand."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def as_batches(batch: tuple[Any, ...], batches: Iterable[tuple[Any, ...]] | None) -> list[tuple[Any, ...]]:
    """The batches, each a tuple of the loss's arguments, of a function that takes one or several.

    Raises:
      ValueError: both are given, or `batches` is empty.
    """
    if batches is None:
        return [batch]
    if batch:
        raise ValueError("batches: give either one batch, as arguments, or batches=[(x, y), ...], not both")
    if not (found := [tuple(each) for each in batches]):
        raise ValueError("batches: empty; at least one batch is needed")
    return found


def mean_over(function: Callable[..., PyTree], batches: list[tuple[Any, ...]], stacked: bool) -> PyTree:
    """The mean of `function(*batch)`, in at least 32 bits; where `stacked`, of the entries of the one batch too."""
    if not stacked:
        values = [jax.tree.map(wide, function(*batch)) for batch in batches]
        return jax.tree.map(lambda *each: sum(each[1:], each[0]) / len(each), *values)

    def along(*batch):
        def add(total, entry):
            return jax.tree.map(lambda t, new: t + wide(new), total, function(*entry)), None

        shapes = jax.eval_shape(lambda: jax.tree.map(wide, function(*jax.tree.map(lambda x: x[0], batch))))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, _ = lax.scan(add, zeros, batch)
        return jax.tree.map(lambda x: x / len(jax.tree.leaves(batch)[0]), total)

    return mean_over(along, batches, False)

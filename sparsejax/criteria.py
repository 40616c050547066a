"""Scores that rank the weights of one leaf: plain functions `(leaf) -> scores`, larger = keep (or grow)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from sparsejax.selection.lots import lots

if TYPE_CHECKING:
    from sparsejax.transforms.proposals import Leaf

Criterion = Callable[["Leaf"], jax.Array]


def magnitude(leaf: Leaf) -> jax.Array:
    """|w|: the smallest weights go first. Source: Han et al. 2015, arXiv:1506.02626."""
    return jnp.abs(leaf.weight)


def gradient(leaf: Leaf) -> jax.Array:
    """|g|, the dense gradient of this step. Source: RigL, Evci et al. 2020, arXiv:1911.11134."""
    return jnp.abs(leaf.grad)


def saliency(leaf: Leaf) -> jax.Array:
    """|w g|, the first-order change of the loss when the weight is removed. Source: Mozer & Smolensky 1989."""
    return jnp.abs(leaf.weight * leaf.grad.astype(leaf.weight.dtype))


def momentum(leaf: Leaf) -> jax.Array:
    """|m|, the inner optimizer's moving sum of gradients; |m| / (sqrt(v) + 1e-8) where it has second moments v too.

    Raises:
      ValueError: the inner optimizer has neither `trace` (SGD with momentum) nor `mu` (Adam, Lion).

    Source: sparse momentum, Dettmers & Zettlemoyer 2019, arXiv:1907.04840.
    """
    found = {path.rsplit("/", 1)[-1]: moment for path, moment in leaf.inner.items()}
    first = found.get("trace", found.get("mu"))
    if first is None:
        raise ValueError(f"{leaf.path}: the inner optimizer keeps no momentum; take sgd with momentum, adam or adamw")
    second = found.get("nu")
    return jnp.abs(first) if second is None else jnp.abs(first) / (jnp.sqrt(second) + 1e-8).astype(first.dtype)


def lamp(leaf: Leaf) -> jax.Array:
    """w² / (the sum of all active w² of the layer that are as large or larger): 1 for the largest, comparable globally.

    Each layer is sorted, so that on many devices its leaf is gathered.

    Source: layer-adaptive magnitude pruning, Lee et al. 2021, arXiv:2010.07611.
    """
    squares = jnp.where(leaf.mask, leaf.weight, 0).astype(jnp.float32) ** 2
    stacked = range(len(leaf.axes.stacked))
    layers = jnp.moveaxis(squares, leaf.axes.stacked, stacked)
    flat = layers.reshape(math.prod(layers.shape[: len(stacked)]), -1)
    ordered = jnp.sort(flat, axis=1)
    sums = jnp.cumsum(ordered[:, ::-1], axis=1)[:, ::-1]
    first = jax.vmap(lambda row, wanted: jnp.searchsorted(row, wanted))(ordered, flat)
    below = jnp.take_along_axis(sums, first, axis=1)
    scores = jnp.where(below > 0, flat / jnp.where(below > 0, below, 1), 0).reshape(layers.shape)
    return jnp.moveaxis(scores, stacked, leaf.axes.stacked)


def random(leaf: Leaf) -> jax.Array:
    """Uniform integers in [1, 2^32 - 2], drawn with the leaf's key. Source: SET, Mocanu 2018, arXiv:1707.04780."""
    drawn = lots(leaf.key, leaf.weight.shape)
    return drawn.keys(*drawn.operands)


WHOLE = (lamp,)  # criteria whose score of a weight reads other weights: computed before, not where they are read

"""Scores that rank the weights of one leaf: plain functions `(leaf) -> scores`, larger = keep (or grow)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from sparsejax.selection.lots import lots

if TYPE_CHECKING:
    from sparsejax.transforms.core import Leaf

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


def random(leaf: Leaf) -> jax.Array:
    """Uniform integers in [1, 2^32 - 2], drawn with the leaf's key. Source: SET, Mocanu 2018, arXiv:1707.04780."""
    drawn = lots(leaf.key, leaf.weight.shape)
    return drawn.keys(*drawn.operands)

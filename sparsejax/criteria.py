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


def random(leaf: Leaf) -> jax.Array:
    """Uniform integers in [1, 2^32 - 2], drawn with the leaf's key. Source: SET, Mocanu 2018, arXiv:1707.04780."""
    drawn = lots(leaf.key, leaf.weight.shape)
    return drawn.keys(*drawn.operands)

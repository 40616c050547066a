"""Initialisation for sparse nets: scaled up to the fan-in that the mask leaves; weights that are never trained."""

from __future__ import annotations

import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.leaves import Layout, Where, checked_axes, leaf_path, select_leaves
from sparsejax.masks import map_masks

UNTRAINED = ("kaiming_normal", "signed_constant")


def density_aware(params: Any, masks: Any, layout: Layout | None = None, *, per_output: bool = False) -> Any:
    """Masked params whose variance is that of an initialiser with the fan-in that the mask leaves.

    w -> m w / √d, where d is the density of the leaf (of each stacked layer by itself), or with per_output the density
    of each output's own inputs: an initialiser of variance c / fan_in becomes one of variance c / (kept fan-in). Thus
    the sum over an output's inputs has the variance that it has in the dense net. An output that keeps no input is 0.

    Args:
      params: freshly initialised, dense params (scaling twice scales twice); leaves without a mask stay as they are.
      masks: boolean arrays of the params' shapes, or None, in the params' tree, as `get_masks` returns them.
      layout: `(path, array) -> (stacked_axes, in_axes, out_axes)`; None is Flax's.
      per_output: by each output's real number of inputs instead of the leaf's density.

    Returns:
      params, exactly 0 off the masks, each of its own dtype. Works under jit and vmap.

    Raises:
      ValueError: the trees do not fit, or the layout does not name each axis once.

    Example:
      >>> masks = {"kernel": jnp.array([[True, True], [True, False], [False, False], [False, False]])}
      >>> density_aware({"kernel": jnp.ones((4, 2))}, masks, per_output=True)["kernel"][0].tolist()
      [1.4142135381698608, 2.0]

    Source: Evci et al., Gradient Flow in Sparse Neural Networks and How Lottery Tickets Win (2022), for per_output; the
    mean over outputs is the same rule with equal fan-ins.
    """
    paths = jax.tree_util.tree_map_with_path(lambda path, _: leaf_path(path), params)

    def scaled(mask: jax.Array | None, leaf: jax.Array, path: str) -> jax.Array:
        if mask is None:
            return leaf
        axes = checked_axes(layout, path, leaf)
        over = axes.inputs if per_output else (*axes.inputs, *axes.outputs)
        density = jnp.mean(mask, axis=over, keepdims=True, dtype=jnp.float32)
        scale = 1 / jnp.sqrt(jnp.where(density > 0, density, 1.0))
        return jnp.where(mask, leaf * scale.astype(leaf.dtype), 0)

    return map_masks(scaled, masks, params, paths)


def untrained(
    params: Any,
    key: jax.Array,
    *,
    kind: str = "signed_constant",
    density: float = 1.0,
    where: Where | None = None,
    layout: Layout | None = None,
) -> Any:
    """Params with new weights for masks that are searched under weights that never train (edge-popup).

    With sigma = sqrt(2 / (density fan_in)): normal with deviation sigma, or +sigma and -sigma with equal chances.

    Args:
      params: whose shapes and dtypes count; leaves that are not sparsified stay as they are.
      key: a PRNG key; each leaf draws with its own, which follows from its path.
      kind: "kaiming_normal" or "signed_constant".
      density: in (0, 1]: the fraction of weights that a mask will keep, for the scaled variants of the paper.
      where: which leaves; None is the default predicate.
      layout: which axes are inputs; None is Flax's.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> untrained({"kernel": jnp.zeros((8, 4))}, jax.random.key(0))["kernel"][0].tolist()
      [0.5, 0.5, -0.5, -0.5]

    Source: Ramanujan et al. 2020, arXiv:1911.13299.
    """
    if kind not in UNTRAINED:
        raise ValueError(f"kind={kind!r}: 'kaiming_normal' or 'signed_constant'")
    if not 0 < density <= 1:
        raise ValueError(f"density={density} must be above 0 and at most 1")

    def one(path, leaf, chosen):
        if chosen is None:
            return leaf
        name = leaf_path(path)
        inputs = checked_axes(layout, name, leaf).inputs
        sigma = math.sqrt(2 / (density * max(1, math.prod(leaf.shape[axis] for axis in inputs))))
        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        draw = jax.random.normal if kind == "kaiming_normal" else jax.random.rademacher
        return (draw(own, leaf.shape, jnp.float32) * sigma).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, params, select_leaves(params, where), is_leaf=lambda x: x is None)

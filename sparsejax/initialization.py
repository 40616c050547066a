"""Initialisation for sparse nets: weights scaled up to the fan-in that their mask leaves."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.leaves import Layout, checked_axes, leaf_path
from sparsejax.masks import map_masks


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

"""Connections of each neuron: fan-in, fan-out, neurons without any, connections of each input pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.leaves import Layout, checked_axes
from sparsejax.masks import mask_leaves

PyTree = Any


def fan_in(masks: PyTree, layout: Layout | None = None) -> dict[str, jax.Array]:
    """How many kept weights lead into each neuron or output channel, by path of the leaf.

    Args:
      masks: mask tree.
      layout: tells inputs from outputs; None is Flax's.

    Returns:
      path -> int32 (neurons,), those of stacked layers one layer after another. Works under jit and vmap.

    Example:
      >>> fan_in({"kernel": jnp.array([[True, False], [True, True]])})["kernel"].tolist()
      [2, 1]
    """
    return {path: leaf_fans(path, mask, layout)[0] for path, mask in mask_leaves(masks).items()}


def fan_out(masks: PyTree, layout: Layout | None = None) -> dict[str, jax.Array]:
    """How many kept weights lead out of each input of a layer, by path of the leaf; as `fan_in`.

    The inputs of a layer are the places along its last input axis: of a convolution its channels, all taps together.

    Example:
      >>> fan_out({"kernel": jnp.array([[True, False], [True, True]])})["kernel"].tolist()
      [1, 2]
    """
    return {path: leaf_fans(path, mask, layout)[1] for path, mask in mask_leaves(masks).items()}


def leaf_fans(path: str, mask: jax.Array, layout: Layout | None = None) -> tuple[jax.Array, jax.Array]:
    """(fan-in, fan-out) of one leaf, int32 (neurons,) and (inputs,)."""
    axes = checked_axes(layout, path, mask)
    counted = lambda over: jnp.sum(mask, axis=over, dtype=jnp.int32).reshape(-1)
    return counted(axes.inputs), counted((*axes.inputs[:-1], *axes.outputs))


def histogram(counts: Any, bins: int = 24) -> tuple[list[int], list[int]]:
    """How many of the counts lie in each of equal bins of whole numbers: (edges, neurons between them).

    Bins hold their lower edge; there are as many as numbers from 0 to the largest count, but at most `bins`.

    Example:
      >>> histogram([0, 1, 1, 3])
      ([0, 1, 2, 3, 4], [1, 2, 0, 1])
    """
    counts = np.asarray(counts).reshape(-1)
    top = int(counts.max(initial=0)) + 1
    width = -(-top // bins)
    edges = np.arange(0, top + width, width)
    return edges.tolist(), np.histogram(counts, edges)[0].tolist()


def dead_neurons(masks: PyTree, layout: Layout | None = None) -> dict[str, tuple[float, float]]:
    """Shares of (outputs without any input, inputs without any output) of each masked leaf, by path.

    Example:
      >>> dead_neurons({"kernel": jnp.array([[True, False], [False, False], [True, False], [True, False]])})
      {'kernel': (0.5, 0.25)}

    Source: neuron ablation of SRigL, Lasby et al. 2023, arXiv:2305.02299.
    """
    share = lambda fans: float((np.asarray(fans) == 0).mean()) if fans.size else 0.0
    fans = {path: leaf_fans(path, mask, layout) for path, mask in mask_leaves(masks).items()}
    return {path: (share(into), share(out)) for path, (into, out) in fans.items()}


def input_map(mask: Any, shape: Sequence[int]) -> np.ndarray:
    """Connections of each place of the input: the first dense layer's fan-out, as an image.

    Args:
      mask: (inputs, outputs), bool, of the layer that sees the flattened input.
      shape: of the input, as (28, 28) or (28, 28, 1).

    Raises:
      ValueError: the shape has not as many places as the mask has inputs.

    Example:
      >>> input_map(jnp.array([[True, True], [False, False], [True, False], [False, False]]), (2, 2)).tolist()
      [[2, 0], [1, 0]]

    Source: SET, Mocanu et al. 2018, and Evci et al. 2020 (RigL), who draw it for MNIST.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or len(mask) != np.prod(shape, dtype=int):
        raise ValueError(f"shape: {tuple(shape)} has not the {mask.shape} mask's number of inputs")
    return mask.sum(axis=1).reshape(shape)


def collapsed(masks: PyTree) -> list[str]:
    """The paths of the leaves whose mask keeps nothing: layers through which no signal passes any more.

    Example:
      >>> collapsed({"a": jnp.array([[True, False]]), "b": jnp.array([[False, False]]), "c": None})
      ['b']

    Source: layer collapse, Tanaka et al. 2020, arXiv:2006.05467.
    """
    return [path for path, mask in mask_leaves(masks).items() if mask.size and not np.asarray(mask).any()]

"""Weights on a path from input to output, of nets whose layers follow each other: MLPs, LeNet, VGG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparsejax.leaves import Layout, checked_axes
from sparsejax.masks import mask_leaves

PyTree = Any


def chain_paths(masks: PyTree, order: Sequence[str], layout: Layout | None = None) -> dict[str, np.ndarray]:
    """The kept weights that lie on a path from the input to the output of a chain of layers.

    A weight is on a path where it is kept, its input is reached from the net's input and its output reaches the net's
    output. Convolutions are judged by channels, as every weight of theirs meets every position but at padded edges;
    where a dense layer follows one, its inputs are positions times channels, channels last.

    Args:
      masks: mask tree; leaves that are not in `order` must not be masked.
      order: paths of the layers from input to output. A path without a mask is no layer: leave it out only where its
        layer is dense and so connects everything.
      layout: tells inputs from outputs; None is Flax's.

    Returns:
      path -> bool array of the mask's shape.

    Raises:
      ValueError: `order` names no masked leaf or leaves one out, or the sizes of neighbours do not fit.

    Example:
      >>> masks = {"a": jnp.array([[True, True]]), "b": jnp.array([[True], [False]])}
      >>> {path: on.tolist() for path, on in chain_paths(masks, ["a", "b"]).items()}
      {'a': [[True, False]], 'b': [[True], [False]]}

    Source: effective sparsity, Vysogorets & Kempe 2021, arXiv:2107.02306.
    """
    by_path = {path: np.asarray(mask) for path, mask in mask_leaves(masks).items()}
    if odd := sorted(by_path.keys() ^ set(order)):
        raise ValueError(f"order: {', '.join(odd[:3])} must be both masked and in the order, {len(order)} layers")
    if len(set(order)) != len(order):
        raise ValueError("order: names a layer twice")
    flat = [_as_matrix(path, by_path[path], layout) for path in order]
    forward: list[np.ndarray] = [np.ones(len(flat[0]), bool)] if flat else []
    for path, layer, follower in zip(order, flat, [*flat[1:], None]):
        out: np.ndarray = np.any(layer & forward[-1][:, None], axis=0)
        forward.append(out if follower is None else _spread(path, out, len(follower)))
    backward: np.ndarray = np.ones(flat[-1].shape[1] if flat else 0, bool)
    on: dict[str, np.ndarray] = {}
    for index in reversed(range(len(flat))):
        layer = flat[index] & forward[index][:, None] & backward[None]
        on[order[index]] = _as_mask(order[index], layer, by_path[order[index]], layout)
        leads_on = (flat[index] & backward[None]).any(1)
        if index:
            backward = leads_on.reshape(-1, flat[index - 1].shape[1]).any(0)
    return {path: on[path] for path in order}


def effective_density(masks: PyTree, order: Sequence[str], layout: Layout | None = None) -> float:
    """The share of the masked leaves' weights that lie on a path from input to output; <= `density`.

    Arguments and errors as of `chain_paths`. For other nets, `density` of what `path_masks` gives.

    Example:
      >>> masks = {"a": jnp.array([[True, True]]), "b": jnp.array([[True], [False]])}
      >>> sparsejax.density(masks), effective_density(masks, ["a", "b"])
      (0.75, 0.5)

    Source: effective sparsity, Vysogorets & Kempe 2021, arXiv:2107.02306.
    """
    return density_of(chain_paths(masks, order, layout))


def density_of(on: Mapping[str, np.ndarray]) -> float:
    """The share of True over all arrays; 1.0 where there is none."""
    total = sum(mask.size for mask in on.values())
    return sum(int(mask.sum()) for mask in on.values()) / total if total else 1.0


def _order_of_axes(path: str, mask: np.ndarray, layout: Layout | None) -> tuple[int, int, list[int]]:
    """(number of taps, of inputs of each, the axes in the order taps, inputs, outputs)."""
    axes = checked_axes(layout, path, mask)
    if axes.stacked:
        raise ValueError(f"order: {path} holds stacked layers, which are no chain of leaves; use path_masks")
    taps = axes.inputs[:-1] if mask.ndim > 2 else ()
    inputs = axes.inputs[len(taps) :]
    sizes = lambda group: int(np.prod([mask.shape[axis] for axis in group], dtype=int))
    return sizes(taps), sizes(inputs), [*taps, *inputs, *axes.outputs]


def _as_matrix(path: str, mask: np.ndarray, layout: Layout | None) -> np.ndarray:
    """(inputs, outputs), taps of a convolution joined: whether any weight connects the two."""
    taps, inputs, axes = _order_of_axes(path, mask, layout)
    joined: np.ndarray = np.any(mask.transpose(axes).reshape(taps, inputs, -1), axis=0)
    return joined


def _as_mask(path: str, on: np.ndarray, mask: np.ndarray, layout: Layout | None) -> np.ndarray:
    """The mask where the connection of its input and output is on."""
    taps, _, axes = _order_of_axes(path, mask, layout)
    moved = [mask.shape[axis] for axis in axes]
    spread = np.broadcast_to(on, (taps, *on.shape)).reshape(moved)
    return mask & spread.transpose(np.argsort(axes))


def _spread(path: str, out: np.ndarray, inputs: int) -> np.ndarray:
    """Which inputs of the next layer are reached, by which outputs of this one are."""
    if inputs % len(out):
        raise ValueError(f"order: {path} has {len(out)} outputs, the layer after it {inputs} inputs")
    return np.tile(out, inputs // len(out))

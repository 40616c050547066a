"""Densities by the layers' shapes: uniform, Erdős-Rényi and Erdős-Rényi-Kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from sparsejax.distributions.base import checked_density, map_named
from sparsejax.leaves import Axes, Layout, checked_axes, named_leaves


class _Layer(NamedTuple):
    """The layers of one leaf: `slices` equal ones of `size` weights, densities proportional to `score`."""

    size: int
    slices: int
    score: float


def uniform(params: Any, density: float, layout: Layout | None = None) -> Any:
    """The same density for every layer.

    Args:
      params: tree of arrays or shapes, None where not sparsified.
      density: overall density, in (0, 1].
      layout: not read.

    Raises:
      ValueError: the density is outside (0, 1].

    Example:
      >>> uniform({"kernel": jax.ShapeDtypeStruct((4, 4), float)}, 0.25)
      {'kernel': 0.25}
    """
    del layout
    checked = checked_density(density, "density")
    return jax.tree.map(lambda _: checked, params)


def erk(params: Any, density: float, layout: Layout | None = None, *, power: float = 1.0) -> Any:
    """Erdős-Rényi-Kernel: the density of a layer is ε (Σ shape / Π shape)^power, at most 1.

    The shape is the leaf's, without stacked axes, axis by axis: an attention kernel (embed, heads, head size)
    is another layer for ERK than the same weights as (embed, heads * head size). ε solves the overall
    density; layers that would exceed 1 become dense, those of largest share first, and ε is solved again for
    the rest.

    Args:
      params: tree of arrays or shapes, None where not sparsified.
      density: overall density, in (0, 1].
      layout: `(path, array) -> (stacked_axes, in_axes, out_axes)`; None is Flax's.
      power: 1 is the paper's; 0 makes it uniform.

    Raises:
      ValueError: the density is outside (0, 1], or the power is negative or not finite.

    Example:
      >>> erk({"a": jax.ShapeDtypeStruct((8, 8), float), "b": jax.ShapeDtypeStruct((16, 16), float)}, 0.25)
      {'a': 0.4166666666666667, 'b': 0.20833333333333334}

    Source: Evci et al., Rigging the Lottery (2020), section 3, and its official code.
    """
    if not 0 <= power < math.inf:
        raise ValueError(f"power={power} must be finite and at least 0")

    def score(shape: tuple[int, ...], axes: Axes) -> float:
        sizes = [shape[axis] for axis in (*axes.inputs, *axes.outputs)]
        return (sum(sizes) / math.prod(sizes)) ** power

    return _in_proportion(params, density, layout, score)


def er(params: Any, density: float, layout: Layout | None = None) -> Any:
    """Erdős-Rényi: the density of a layer is ε (n_in + n_out) / (n_in n_out), at most 1; ε as in `erk`.

    n_out is the product of the output axes. n_in is the input axis next to them, which for a convolution is
    its input channels: kernel height and width do not count, which is all that tells `er` from `erk`.

    Args, errors: as `erk`, without power.

    Source: Mocanu et al., Scalable training of artificial neural networks with adaptive sparse connectivity
    (2018); for convolutions the official code of Evci et al. (2020).
    """

    def score(shape: tuple[int, ...], axes: Axes) -> float:
        n_in, n_out = fans(shape, axes)
        return (n_in + n_out) / (n_in * n_out)

    return _in_proportion(params, density, layout, score)


def fans(shape: tuple[int, ...], axes: Axes) -> tuple[int, int]:
    """n_in and n_out of `er`."""
    n_out = math.prod(shape[axis] for axis in axes.outputs)
    distance = {axis: min((abs(axis - out) for out in axes.outputs), default=0) for axis in axes.inputs}
    return shape[min(distance, key=distance.__getitem__)] if distance else 1, n_out


def _in_proportion(
    params: Any, density: float, layout: Layout | None, score: Callable[[tuple[int, ...], Axes], float]
) -> Any:
    """Densities ε score(shape, axes), at most 1, that meet the overall density."""
    density = checked_density(density, "density")
    layers = {}
    for path, leaf in named_leaves(params):
        axes = checked_axes(layout, path, leaf)
        slices = math.prod(leaf.shape[axis] for axis in axes.stacked)
        size = math.prod(leaf.shape[axis] for axis in (*axes.inputs, *axes.outputs))
        if size * slices:
            layers[path] = _Layer(size, slices, score(leaf.shape, axes))
    solved = _solve(layers, density)
    # A leaf without weights takes part in nothing; any density is right.
    return map_named(lambda path, leaf: solved.get(path, density), params)


def _solve(layers: Mapping[str, _Layer], density: float) -> dict[str, float]:
    """For every layer min(1, ε score), such that Σ density_l N_l is the number that uniform layers keep."""
    zeros = {path: math.floor((1.0 - density) * layer.size + 1e-6) for path, layer in layers.items()}
    budget = sum(layer.slices * (layer.size - zeros[path]) for path, layer in layers.items())
    free, scale = dict(layers), 1.0
    while free:
        scale = budget / sum(layer.slices * layer.size * layer.score for layer in free.values())
        largest = max(layer.score for layer in free.values())
        if scale * largest <= 1:
            break
        for path in [path for path, layer in free.items() if layer.score == largest]:
            layer = free.pop(path)
            budget -= layer.slices * layer.size
    return {path: scale * layer.score if path in free else 1.0 for path, layer in layers.items()}

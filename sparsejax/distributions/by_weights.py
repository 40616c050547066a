"""Densities that a rule fixes by itself: LAMP by the weights' values, SET's ε by the shapes."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from sparsejax.distributions.base import Distribution, checked_density, map_named
from sparsejax.distributions.erdos_renyi import fans
from sparsejax.leaves import Layout, checked_axes, named_leaves, output_layers

NEAR = 5e-4  # how far the density asked for may lie from ε's


def set_epsilon(epsilon: float = 20.0, *, head: bool = True) -> Distribution:
    """SET's distribution: the density of a layer is ε (n_in + n_out) / (n_in n_out), at most 1; ε is given, not solved.

    n_in and n_out are those of `er`. The density asked for must be the one that ε gives, to three digits.

    Args:
      epsilon: ε > 0; 20 is SET's for multilayer perceptrons, 13 QuickSelection's.
      head: whether the output layer (`leaves.output_layers`) is dense, as in SET.

    Raises:
      ValueError: ε is out of range; and, when called, the overall density is another, which the message tells.

    Example:
      >>> params = {"fc1": jnp.ones((784, 1000)), "head": jnp.ones((1000, 10))}
      >>> {name: round(density, 5) for name, density in set_epsilon(20)(params, 0.0576).items()}
      {'fc1': 0.04551, 'head': 1.0}

    Source: Mocanu et al. 2018, arXiv:1707.04780.
    """
    if not 0 < epsilon < math.inf:
        raise ValueError(f"set_epsilon: epsilon={epsilon} must be finite and above 0")

    def distribution(params: Any, density: float, layout: Layout | None = None) -> Any:
        density = checked_density(density, "density")
        dense = output_layers([path for path, _ in named_leaves(params)]) if head else []

        def of_layer(path: str, leaf: Any) -> float:
            n_in, n_out = fans(tuple(leaf.shape), checked_axes(layout, path, leaf))
            return 1.0 if path in dense else min(1.0, epsilon * (n_in + n_out) / max(n_in * n_out, 1))

        found = map_named(of_layer, params)
        sizes = [math.prod(leaf.shape) for _, leaf in named_leaves(params)]
        total = sum(sizes)
        held = sum(size * value for size, value in zip(sizes, jax.tree.leaves(found), strict=True))
        if abs(held - density * total) > max(NEAR * total, len(sizes)):
            raise ValueError(
                f"set_epsilon({epsilon:g}) gives these layers density {held / total:.5g}, not {density:.5g}; "
                f"ask for sparsity={1 - held / total:.5g}"
            )
        return found

    return distribution


def lamp(params: Any, density: float, layout: Layout | None = None) -> Any:
    """LAMP: the densities that one cut through the layers' scores w² / (Σ of all w² as large or larger) leaves.

    A layer's largest weight has score 1, so no layer is emptied. To rank by these scores while training, give
    `distribution="lamp"` to `one_shot` or `gmp`.

    Args:
      params: tree of arrays (their values are read: not under jit or vmap), None where not sparsified.
      density: overall density, in (0, 1].
      layout: `(path, array) -> (stacked_axes, in_axes, out_axes)`; stacked layers are scored apart.

    Raises:
      ValueError: the density is out of range or leaves less than a weight for each layer, or the params have no values.

    Example:
      >>> lamp({"a": jnp.array([[3.0, 1.0, 1.0, 1.0]]), "b": jnp.array([[1.0, 1.0, 1.0, 1.0]])}, 0.625)
      {'a': 0.25, 'b': 1.0}

    Source: Lee et al. 2021, arXiv:2010.07611.
    """
    density = checked_density(density, "density")
    leaves = named_leaves(params)
    if any(isinstance(leaf, jax.core.Tracer) or not hasattr(leaf, "__array__") for _, leaf in leaves):
        raise ValueError('lamp needs the weights\' values, outside of jit and vmap; or distribution="lamp" of gmp')
    scores = [_lamp_scores(np.asarray(leaf, np.float64), checked_axes(layout, path, leaf)) for path, leaf in leaves]
    flat = np.concatenate([score.ravel() for score in scores]) if scores else np.zeros(0)
    number = flat.size - math.floor((1 - density) * flat.size + 1e-6)
    if number < sum(score.size > 0 for score in scores):
        raise ValueError(f"lamp: density={density:g} of {flat.size} weights is {number}, less than one for each layer")
    kept = np.zeros(flat.size, bool)
    kept[np.argsort(-flat, kind="stable")[:number]] = True
    parts = np.split(kept, np.cumsum([score.size for score in scores])[:-1]) if scores else []
    found = {path: float(part.mean()) if part.size else density for (path, _), part in zip(leaves, parts, strict=True)}
    return map_named(lambda path, leaf: found[path], params)


def _lamp_scores(weight: np.ndarray, axes: Any) -> np.ndarray:
    """One row of scores for each stacked layer."""
    slices = math.prod(weight.shape[axis] for axis in axes.stacked)
    squares = np.moveaxis(weight, axes.stacked, range(len(axes.stacked))).reshape(max(slices, 1), -1) ** 2
    ordered = np.sort(squares, axis=1)
    sums = np.cumsum(ordered[:, ::-1], axis=1)[:, ::-1]  # of this one and all that are larger
    first = [np.searchsorted(row, wanted) for row, wanted in zip(ordered, squares, strict=True)]
    below = np.stack([row[places] for row, places in zip(sums, first, strict=True)]) if squares.size else squares
    return np.divide(squares, below, out=np.zeros_like(squares), where=below > 0)

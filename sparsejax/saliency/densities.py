"""Densities of layers, taken from masks or by the smart ratio: what is left of a score without its positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import numpy as np

from sparsejax.distributions import Distribution
from sparsejax.leaves import Layout, check_glob, checked_axes, named_leaves
from sparsejax.masks import mask_leaves

PyTree = Any


def ratios(masks: PyTree) -> PyTree:
    """The density of each leaf's mask; None where there is no mask.

    Example:
      >>> ratios({"a": jnp.array([[True, False]]), "b": None})
      {'a': 0.5, 'b': None}
    """
    return jax.tree.map(lambda mask: int(np.count_nonzero(np.asarray(mask))) / max(mask.size, 1), masks)


def distribution_of(masks: PyTree) -> Distribution:
    """A distribution with the layers' densities of given masks: SNIP-ratio, GraSP-ratio, "the ratios of" any masks.

    `static(sparsity=s, distribution=distribution_of(masks))` draws random positions at the densities that a score chose
    and keeps of each leaf as many weights as its mask does (of a stacked one, in each slice the same number).

    Args:
      masks: boolean arrays or None, as `masks_from_scores` returns them.

    Raises:
      ValueError: a mask is empty; and, when called, the masks do not belong to the params or to the overall density.

    Example:
      >>> distribution = distribution_of({"a": jnp.eye(4, dtype=bool), "b": jnp.ones((4, 3), bool)})
      >>> distribution({"a": jnp.ones((4, 4)), "b": jnp.ones((4, 3))}, 16 / 28)
      {'a': 0.25, 'b': 1.0}

    Source: Su et al. 2020, Sanity-Checking Pruning Methods, arXiv:2009.11094; Liu et al. 2022, arXiv:2202.02643.
    """
    shapes = {path: mask.shape for path, mask in mask_leaves(masks).items()}
    found = dict(named_leaves(ratios(masks)))
    for path, density in found.items():
        if not density:
            raise ValueError(f"masks: {path} keeps nothing; a distribution needs some of each layer")

    def distribution(params: PyTree, density: float, layout: Layout | None = None) -> PyTree:
        del layout
        leaves = named_leaves(params)
        if {path: tuple(leaf.shape) for path, leaf in leaves} != shapes:
            odd = sorted({path for path, _ in leaves} ^ set(shapes)) or list(shapes)
            raise ValueError(f"distribution: the masks are not those of these params, which differ in {odd[0]}")
        total = sum(math.prod(leaf.shape) for _, leaf in leaves)
        held = sum(found[path] * math.prod(leaf.shape) for path, leaf in leaves)
        if abs(held - density * total) > len(leaves):
            raise ValueError(
                f"distribution: the masks' density is {held / total:.6g} over all layers, not {density:.6g}"
            )
        return jax.tree.unflatten(jax.tree.structure(params), [found[path] for path, _ in leaves])

    return distribution


def smart_ratio(order: Sequence[str], *, linear: float = 0.3, vgg: bool = False) -> Distribution:
    """The smart ratio: sparser towards the output. Layer k from the output has a density in proportion to k² + k.

    With L convolutions, the l-th from the input (from 1) has k = L - l + 1. What a density would exceed 1 by goes, as a
    number of weights, to the next layer; from the last one on, to the first with room. Fully connected layers have a
    density of their own. The total is that of uniform layers.

    Args:
      order: globs over paths, one for each layer, from the input to the output (a tree's own order is alphabetical).
      linear: density of the layers without spatial axes, in (0, 1].
      vgg: whether the weight is (k² + k) / l², as for VGG nets.

    Raises:
      ValueError: `linear` is out of range; and, when called, `order` does not name each sparsified leaf once, or no
        density is left for the convolutions.

    Example:
      >>> shapes = {"in": jnp.ones((3, 3, 8, 8)), "mid": jnp.ones((3, 3, 8, 8)), "out": jnp.ones((8, 10))}
      >>> found = smart_ratio(["in", "mid", "out"])(shapes, 0.25)
      >>> {name: round(density, 4) for name, density in found.items()}
      {'in': 0.3698, 'mid': 0.1233, 'out': 0.3}

    Source: Su et al. 2020, arXiv:2009.11094, and its official code.
    """
    if not 0 < linear <= 1:
        raise ValueError(f"linear={linear} must be above 0 and at most 1")

    def distribution(params: PyTree, density: float, layout: Layout | None = None) -> PyTree:
        leaves = dict(named_leaves(params))
        paths = _in_order(order, list(leaves))
        inputs = {path: checked_axes(layout, path, leaf).inputs for path, leaf in leaves.items()}
        convolutions = [path for path in paths if len(inputs[path]) > 1]
        sizes = {path: math.prod(leaf.shape) for path, leaf in leaves.items()}
        found = {path: linear for path in paths if path not in convolutions}
        budget = density * sum(sizes.values()) - linear * sum(sizes[path] for path in found)
        if convolutions:
            found |= _shared(convolutions, sizes, budget, vgg)
        elif abs(budget) > len(leaves):
            raise ValueError(f"smart_ratio: only linear layers, of density {linear:g}, are there, not {density:g}")
        return jax.tree.unflatten(jax.tree.structure(params), [found[path] for path in leaves])

    return distribution


def _in_order(order: Sequence[str], paths: list[str]) -> list[str]:
    """The paths, in the order of the globs that match them."""
    for glob in order:
        check_glob(glob, paths, "order")
    found = [path for glob in order for path in paths if fnmatchcase(path, glob)]
    if sorted(found) != sorted(paths):
        odd = next(path for path in paths if found.count(path) != 1)
        raise ValueError(f"order: {odd} is matched by {found.count(odd)} globs; each sparsified leaf needs one")
    return found


def _shared(paths: list[str], sizes: dict[str, int], budget: float, vgg: bool) -> dict[str, float]:
    """Densities in proportion to the layers' weights that keep `budget` weights, none above 1."""
    if not 0 < budget <= sum(sizes[path] for path in paths) + 1e-6:
        raise ValueError(
            f"smart_ratio: {budget:.6g} weights are left for the convolutions; change linear or the sparsity"
        )
    depth = len(paths)
    share = {path: (depth - i) * (depth - i + 1) / ((i + 1) ** 2 if vgg else 1) for i, path in enumerate(paths)}
    scale = budget / sum(share[path] * sizes[path] for path in paths)
    kept, excess = dict.fromkeys(paths, 0.0), 0.0
    for path in paths:
        wanted = scale * share[path] * sizes[path] + excess
        kept[path] = min(wanted, float(sizes[path]))
        excess = wanted - kept[path]
    for path in paths:
        more = min(excess, sizes[path] - kept[path])
        kept[path], excess = kept[path] + more, excess - more
    return {path: kept[path] / sizes[path] for path in paths}

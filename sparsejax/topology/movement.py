"""How masks move: entries that differ (SAD), flip rates, what grew and what was dropped, what was ever active."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.masks import mask_leaves

PyTree = Any


def _pairs(a: PyTree, b: PyTree) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    one, other = mask_leaves(a), mask_leaves(b)
    if one.keys() != other.keys():
        odd = sorted(one.keys() ^ other.keys())
        raise ValueError(f"the two mask trees differ in their masked leaves: {', '.join(odd[:3])}")
    return {path: (np.asarray(one[path]), np.asarray(other[path])) for path in one}


def hamming(a: PyTree, b: PyTree) -> int:
    """SAD = |m_a - m_b|_1: how many mask entries differ between two mask trees.

    Example:
      >>> hamming({"w": jnp.array([True, False])}, {"w": jnp.array([False, False])})
      1

    Source: SR-STE, Zhou et al. 2021, arXiv:2102.04010.
    """
    return sum(layer_hamming(a, b).values())


def layer_hamming(a: PyTree, b: PyTree) -> dict[str, int]:
    """`hamming` of each masked leaf, by its path.

    Example:
      >>> layer_hamming({"w": jnp.array([True, False]), "b": None}, {"w": jnp.array([False, True]), "b": None})
      {'w': 2}
    """
    return {path: int((x ^ y).sum()) for path, (x, y) in _pairs(a, b).items()}


def flip_rate(a: PyTree, b: PyTree, *, of: str = "weights") -> float:
    """|m_a - m_b|_1 over the number of mask entries, or over how many `b` keeps; 0 where that is none.

    Args:
      a, b: mask trees with masks at the same leaves: of two steps, or of now and the start.
      of: "weights", all entries of the masked leaves; or "active", those that `b` keeps (SAD normalised).

    Raises:
      ValueError: the trees differ in their masked leaves, or `of` is neither.

    Example:
      >>> before, after = {"w": jnp.array([True, True, False, False])}, {"w": jnp.array([True, False, True, False])}
      >>> flip_rate(before, after), flip_rate(before, after, of="active")
      (0.5, 1.0)
    """
    if of not in ("weights", "active"):
        raise ValueError(f"of={of!r}: 'weights' or 'active'")
    pairs = _pairs(a, b).values()
    total = sum(y.size if of == "weights" else int(y.sum()) for _, y in pairs)
    return sum(int((x ^ y).sum()) for x, y in pairs) / total if total else 0.0


class Churn(NamedTuple):
    """What changed in one leaf: entries that became True and that became False."""

    grown: int
    dropped: int


def churn(before: PyTree, after: PyTree) -> dict[str, Churn]:
    """What grew and what was dropped from one mask tree to the next, by path of the leaf.

    Example:
      >>> churn({"w": jnp.array([True, True, False])}, {"w": jnp.array([False, False, True])})
      {'w': Churn(grown=1, dropped=2)}
    """
    return {path: Churn(int((y & ~x).sum()), int((x & ~y).sum())) for path, (x, y) in _pairs(before, after).items()}


def overlap(a: PyTree, b: PyTree) -> float:
    """Intersection over union (Jaccard) of the kept weights of two mask trees, in [0, 1]; 1.0 where neither keeps any.

    Example:
      >>> overlap({"w": jnp.array([True, True])}, {"w": jnp.array([True, False])})
      0.5
    """
    pairs = _pairs(a, b).values()
    union = sum(int((x | y).sum()) for x, y in pairs)
    return sum(int((x & y).sum()) for x, y in pairs) / union if union else 1.0


def overlaps(masks: dict[str, PyTree]) -> dict[tuple[str, str], float]:
    """`overlap` of each two of several masks: of seeds, or of methods.

    Example:
      >>> overlaps({"a": {"w": jnp.array([True, True])}, "b": {"w": jnp.array([True, False])}})
      {('a', 'b'): 0.5}
    """
    names = list(masks)
    every = [(one, other) for index, one in enumerate(names) for other in names[index + 1 :]]
    return {(one, other): overlap(masks[one], masks[other]) for one, other in every}


def explored(seen: PyTree, masks: PyTree) -> PyTree:
    """The weights active now or ever before: accumulate it from the initial masks on; works under jit."""
    return jax.tree.map(jnp.logical_or, seen, masks)


def exploration_rate(seen: PyTree) -> float:
    """R_s: the fraction of the masked leaves' weights that were ever active.

    Example:
      >>> exploration_rate({"w": jnp.array([True, True, False, False])})
      0.5

    Source: in-time over-parameterization, Liu et al. 2021, arXiv:2102.02887.
    """
    leaves = [np.asarray(mask) for mask in jax.tree.leaves(seen)]
    total = sum(mask.size for mask in leaves)
    return sum(int(mask.sum()) for mask in leaves) / total if total else 1.0


def layer_exploration(seen: PyTree) -> dict[str, float]:
    """`exploration_rate` of each masked leaf, by its path.

    Example:
      >>> layer_exploration({"w": jnp.array([True, False])})
      {'w': 0.5}
    """
    return {path: exploration_rate(mask) for path, mask in mask_leaves(seen).items()}

"""What masks look like and how they move: per-layer summary, overlap, Hamming distance (SAD), exploration rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.leaves import Where, named_leaves, why_dense
from sparsejax.masks import mask_leaves

PyTree = Any


def _pairs(a: PyTree, b: PyTree) -> list[tuple[np.ndarray, np.ndarray]]:
    one, other = mask_leaves(a), mask_leaves(b)
    if one.keys() != other.keys():
        odd = sorted(one.keys() ^ other.keys())
        raise ValueError(f"the two mask trees differ in their masked leaves: {', '.join(odd[:3])}")
    return [(np.asarray(one[path]), np.asarray(other[path])) for path in one]


def hamming(a: PyTree, b: PyTree) -> int:
    """SAD = |m_a - m_b|_1: how many mask entries differ between two mask trees.

    Example:
      >>> hamming({"w": jnp.array([True, False])}, {"w": jnp.array([False, False])})
      1

    Source: SR-STE, Zhou et al. 2021, arXiv:2102.04010.
    """
    return sum(int((x ^ y).sum()) for x, y in _pairs(a, b))


def overlap(a: PyTree, b: PyTree) -> float:
    """Intersection over union of the kept weights of two mask trees, in [0, 1]; 1.0 where neither keeps any.

    Example:
      >>> overlap({"w": jnp.array([True, True])}, {"w": jnp.array([True, False])})
      0.5
    """
    pairs = _pairs(a, b)
    union = sum(int((x | y).sum()) for x, y in pairs)
    return sum(int((x & y).sum()) for x, y in pairs) / union if union else 1.0


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


def collapsed(masks: PyTree) -> list[str]:
    """The paths of the leaves whose mask keeps nothing: layers through which no signal passes any more.

    Example:
      >>> collapsed({"a": jnp.array([[True, False]]), "b": jnp.array([[False, False]]), "c": None})
      ['b']

    Source: layer collapse, Tanaka et al. 2020, arXiv:2006.05467.
    """
    return [path for path, mask in mask_leaves(masks).items() if mask.size and not np.asarray(mask).any()]


def summary(params: PyTree, masks: PyTree, where: Where | None = None) -> str:
    """A table of each layer: shape, weights, kept, sparsity; and of what is dense, why.

    Args:
      params: the parameters.
      masks: their masks.
      where: the predicate that chose the leaves, so that the reasons are its own; None is the default.

    Example:
      >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> print(summary(params, {"kernel": jnp.eye(2, dtype=bool), "bias": None}))
      layer    shape   weights    kept    sparsity
      kernel   2 x 2         4       2       50.0%
      bias     2             2       2    dense: 1 axes; at least 2 are needed
      masked                 4       2       50.0%
      all                    6       4       33.3%
    """
    by_path = mask_leaves(masks)
    reasons = why_dense(params, where)
    rows = [("layer", "shape", "weights", "kept", "sparsity")]
    masked = masked_kept = dense = 0
    for path, leaf in sorted(named_leaves(params), key=lambda item: item[0] not in by_path):
        shape = " x ".join(map(str, leaf.shape)) or "scalar"
        if path in by_path:
            kept = int(np.asarray(by_path[path]).sum())
            masked, masked_kept = masked + leaf.size, masked_kept + kept
            rows.append((path, shape, f"{leaf.size:,}", f"{kept:,}", f"{1 - kept / max(leaf.size, 1):.1%}"))
        else:
            dense += leaf.size
            rows.append((path, shape, f"{leaf.size:,}", f"{leaf.size:,}", f"dense: {reasons.get(path, 'no mask')}"))
    for name, size, kept in (("masked", masked, masked_kept), ("all", masked + dense, masked_kept + dense)):
        rows.append((name, "", f"{size:,}", f"{kept:,}", f"{1 - kept / max(size, 1):.1%}"))
    return _aligned(rows)


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    last = max(len(row[4]) for row in rows if not row[4].startswith("dense"))
    lines = []
    for name, shape, weights, kept, note in rows:
        note = note if note.startswith("dense") else note.rjust(last)
        left = f"{name:<{widths[0]}}   {shape:<{widths[1]}}"
        lines.append(f"{left}   {weights:>{widths[2]}}    {kept:>{widths[3]}}    {note}".rstrip())
    return "\n".join(lines)

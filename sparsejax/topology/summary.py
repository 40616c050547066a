"""A table of what a tree of masks keeps, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsejax.leaves import Where, named_leaves, why_dense
from sparsejax.masks import mask_leaves

PyTree = Any


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

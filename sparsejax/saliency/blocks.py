"""The layer lottery: whole residual blocks are dropped before training."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.leaves import check_glob, named_leaves

PyTree = Any


def layer_lottery(params: PyTree, scores: PyTree, blocks: Sequence[str], *, drop: int, mean: bool = True) -> PyTree:
    """Masks that drop the `drop` blocks of lowest score, all their weights, and keep everything else dense.

    In a dropped block every floating leaf is masked, biases and norms too: what is added to its skip connection is 0
    from then on. A block whose skip connection has weights of its own (where the shape changes) should not be a choice.

    Args:
      params: the parameters.
      scores: one for each weight, larger = keep, None where there is none: of `magnitude`, `snip`, ...
      blocks: globs over paths, one for each block that may go: `["stage1_block2/*", ...]`.
      drop: how many go, 0 <= drop <= len(blocks); of equal scores the last ones.
      mean: whether a block's score is the mean of its weights', or their sum.

    Returns:
      boolean arrays, all False in the dropped blocks, all True at the other leaves that have scores, else None.

    Raises:
      ValueError: `drop` is out of range, a glob matches no scored leaf, or a score is not finite.

    Example:
      >>> params = {"a": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "b": {"kernel": jnp.zeros((2, 2))}}
      >>> masks = layer_lottery(params, sparsejax.saliency.magnitude(params), ["a/*", "b/*"], drop=1)
      >>> masks["a"]["bias"], bool(masks["a"]["kernel"].all()), bool(masks["b"]["kernel"].any())
      (None, True, False)
    """
    if not isinstance(drop, int) or not 0 <= drop <= len(blocks):
        raise ValueError(f"drop={drop!r} must be an integer from 0 to the number of blocks, {len(blocks)}")
    scored = {path: np.asarray(score, np.float64) for path, score in named_leaves(scores)}
    worth = []
    for glob in blocks:
        check_glob(glob, list(scored), "blocks")
        inside = [score for path, score in scored.items() if fnmatchcase(path, glob)]
        total = sum(score.sum() for score in inside)
        worth.append(float(total / sum(score.size for score in inside)) if mean else float(total))
    if not np.isfinite(worth).all():
        raise ValueError(f"scores: the block {blocks[int(np.argmin(np.isfinite(worth)))]!r} holds NaN or infinity")
    ranked = sorted(range(len(blocks)), key=lambda i: (worth[i], -i))
    gone = [blocks[i] for i in ranked[:drop]]

    def mask(path: str, leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jnp.floating) and any(fnmatchcase(path, glob) for glob in gone):
            return jnp.zeros(leaf.shape, bool)
        return jnp.ones(leaf.shape, bool) if path in scored else None

    return jax.tree.unflatten(jax.tree.structure(params), [mask(*each) for each in named_leaves(params)])

"""Random positions: shuffling masks inside their layers, and the best of several random masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.distributions import Distribution, erk
from sparsejax.leaves import Layout, Where, checked_axes, named_leaves
from sparsejax.patterns import pattern_of
from sparsejax.saliency.ranking import masks_from_scores
from sparsejax.saliency.scores import random
from sparsejax.selection import Request, answered, count_true
from sparsejax.selection.lots import lots
from sparsejax.transforms.start import Patterns, leaf_key

PyTree = Any


def shuffled(key: jax.Array, masks: PyTree, *, pattern: Patterns = None, layout: Layout | None = None) -> PyTree:
    """The masks with their positions drawn anew inside each layer, the counts as they are.

    Args:
      key: a PRNG key.
      masks: boolean arrays, or None.
      pattern: of the masks: then positions are drawn inside each of its groups, so that N:M stays N:M.
      layout: which axes are stacked, inputs and outputs; None is Flax's. Each stacked slice is a layer.

    Returns:
      masks; of each leaf they hang on its path, its counts and the key. Works under jit and vmap.

    Example:
      >>> masks = shuffled(jax.random.key(0), {"w": jnp.array([[True, True], [False, False], [False, False]])})
      >>> int(masks["w"].sum())
      2

    Source: Frankle et al. 2021, Pruning Neural Networks at Initialization: Why Are We Missing the Mark?,
    arXiv:2009.08576; Su et al. 2020, arXiv:2009.11094.
    """
    data = jax.random.key_data(key)
    leaves, requests, expand = named_leaves(masks), [], []
    for path, mask in leaves:
        axes, of = checked_axes(layout, path, mask), pattern_of(pattern, path)
        units = of.units(mask.astype(jnp.float32), axes) > 0
        group = of.group_axes(mask.shape, axes)
        drawn = lots(leaf_key(data, path), units.shape)
        requests.append(Request(drawn, count_true([units], group)[0], group))
        expand.append((of, mask.shape, axes))
    found = zip(answered(requests), expand, strict=True)
    drawn_masks = [of.expand(chosen.mask, shape, axes) for chosen, (of, shape, axes) in found]
    return jax.tree.unflatten(jax.tree.structure(masks), drawn_masks)


def best_of(
    k: int,
    key: jax.Array,
    params: PyTree,
    score: Callable[[PyTree], Any],
    *,
    sparsity: float | None = None,
    distribution: Distribution | None = None,
    pattern: Patterns = None,
    where: Where | None = None,
    layout: Layout | None = None,
) -> tuple[PyTree, list[float]]:
    """The best of k random masks by the user's score: random search.

    Args:
      k: how many are drawn, >= 1.
      key: a PRNG key.
      params: the parameters, or their shapes.
      score: masks -> a number, larger = better: minus the loss of the masked net, at init or after a short run.
      sparsity: fraction of zeros in [0, 1); may be left out where `pattern` is N:M.
      distribution: of the sparsity over layers; None is ERK, as in `static`.
      pattern, layout: as `masks_from_scores`.
      where: which leaves are pruned; None is the default predicate.

    Returns:
      the masks, and the scores of all k; of equal ones the first wins.

    Raises:
      ValueError: k is no positive integer, another argument is out of range, or a score is NaN.

    Example:
      >>> params = {"w": jnp.arange(16.0).reshape(4, 4)}
      >>> kept = lambda masks: sparsejax.apply_masks(params, masks)["w"].sum()
      >>> masks, scores = best_of(5, jax.random.key(0), params, kept, sparsity=0.5)
      >>> float(kept(masks)) == max(scores)
      True
    """
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise ValueError(f"k={k!r} must be an integer >= 1")
    if distribution is None and pattern is None:
        distribution = erk
    found, best, most = [], None, float("-inf")
    for index in range(k):
        drawn = random(jax.random.fold_in(key, index), params, where=where)
        masks = masks_from_scores(drawn, sparsity, distribution=distribution, pattern=pattern, layout=layout)
        found.append(float(score(masks)))
        if found[-1] != found[-1]:
            raise ValueError(f"score: NaN for the masks of draw {index}")
        if best is None or found[-1] > most:
            best, most = masks, found[-1]
    return best, found

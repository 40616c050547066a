"""Scores of the initial weights, larger = keep: trees of the params' structure with None where nothing is pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.leaves import Where, named_leaves
from sparsejax.saliency.part import Part, as_batches, mean_over, part_of, wide
from sparsejax.selection.lots import lots
from sparsejax.transforms.start import leaf_key

PyTree = Any
Loss = Callable[..., jax.Array]


def magnitude(params: PyTree, *, where: Where | None = None) -> PyTree:
    """|w|: the baseline of pruning at initialisation.

    Args:
      params: the parameters.
      where: which leaves are pruned, `(path, array) -> bool`; None is the default predicate.

    Example:
      >>> magnitude({"kernel": jnp.array([[1.0, -2.0], [3.0, 0.0]]), "bias": jnp.ones(2)})["kernel"].tolist()
      [[1.0, 2.0], [3.0, 0.0]]

    Source: Tanaka et al. 2020, arXiv:2006.05467 (as a baseline).
    """
    part = part_of(params, where)
    return part.alone([jnp.abs(w) for w in part.leaves])


def random(key: jax.Array, params: PyTree, *, where: Where | None = None) -> PyTree:
    """Random integers: with a distribution over layers, masks of random positions.

    Args:
      key: a PRNG key.
      params: the parameters, or their shapes.
      where: which leaves are pruned; None is the default predicate.

    Returns:
      uint32 scores in [1, 2^32 - 2]; of each leaf they hang on its path, its shape and the key alone.

    Example:
      >>> scores = random(jax.random.key(0), {"kernel": jnp.ones((4, 4))})
      >>> int(sparsejax.saliency.masks_from_scores(scores, 0.75)["kernel"].sum())
      4

    Source: Liu et al. 2022, The Unreasonable Effectiveness of Random Pruning, arXiv:2202.02643.
    """
    part = part_of(params, where)
    data = jax.random.key_data(key)
    drawn = [lots(leaf_key(data, path), leaf.shape) for path, leaf in named_leaves(part.alone(part.leaves))]
    return part.alone([each.keys(*each.operands) for each in drawn])


def snip(
    loss: Loss,
    params: PyTree,
    *batch: Any,
    batches: Iterable[tuple[Any, ...]] | None = None,
    stacked: bool = False,
    normalized: bool = True,
    where: Where | None = None,
) -> PyTree:
    """SNIP, the sensitivity of the loss to each connection: |w ∂L/∂w| / Σ |w ∂L/∂w|.

    ∂L/∂c at c = 1 of the loss with weights c ⊙ w is w ∂L/∂w. The gradients of several batches are averaged, sign and
    all, before the absolute value is taken.

    Args:
      loss: `(params, *batch) -> scalar`. What else the model needs (BatchNorm's statistics, a key for dropout) it holds
        itself or takes from the batch.
      params: initial parameters, any pytree.
      batch: what the loss takes besides: one mini-batch is the paper's.
      batches: instead, several batches: an iterable of tuples. Under jit each is compiled into the program.
      stacked: whether every array of a batch has a leading axis of batches, to be run one after another by one loop.
      normalized: whether the scores add up to 1 over all leaves, which changes no ranking.
      where: which leaves are pruned; None is the default predicate.

    Returns:
      float32 scores (float64 of float64 weights); None at leaves that are not pruned. Works under jit and vmap.

    Raises:
      ValueError: a batch and batches are given, or `where` matches nothing.

    Example:
      >>> loss = lambda params, x, y: jnp.mean((x @ params["kernel"] - y) ** 2)
      >>> params = {"kernel": jnp.array([[1.0, 2.0], [0.0, 1.0]])}
      >>> print(snip(loss, params, jnp.array([[1.0, 1.0]]), jnp.zeros((1, 2)))["kernel"].round(1))
      [[0.1 0.6]
       [0.  0.3]]

    Source: Lee et al. 2019, arXiv:1810.02340. Implementations that rank by |∂L/∂w| differ from it by mistake.
    """
    part = part_of(params, where)
    mean = mean_over(_gradient(loss, part), as_batches(batch, batches), stacked)
    scores = [jnp.abs(wide(w) * g) for w, g in zip(part.leaves, mean, strict=True)]
    return part.alone(_shares(scores) if normalized else scores)


def grasp(
    loss: Loss,
    params: PyTree,
    *batch: Any,
    batches: Iterable[tuple[Any, ...]] | None = None,
    stacked: bool = False,
    temperature: float | None = None,
    normalized: bool = False,
    where: Where | None = None,
) -> PyTree:
    """GraSP, what a weight adds to the gradient's norm after pruning: w ⊙ (H g), of which the largest are kept.

    The paper removes the weights with the highest -w ⊙ (H g); g = ∂L/∂w, H = ∂²L/∂w². Both are of the pruned leaves
    alone, and means over the batches: g over all of them, then H g over all of them.

    Args:
      loss, params, batch, batches, stacked, where: as `snip`; the loss is differentiated twice.
      temperature: is handed to the loss as a keyword, `loss(params, *batch, temperature=temperature)`, by which it
        divides its logits; None: the loss is called without. The official code has 200.
      normalized: whether the scores are divided by |Σ score|, as in the official code; no ranking changes.

    Returns:
      as `snip`; scores may be negative.

    Raises:
      ValueError: as `snip`.

    Example:
      >>> loss = lambda params: jnp.sum(params["kernel"] ** 4) / 4
      >>> grasp(loss, {"kernel": jnp.array([[1.0, 2.0], [3.0, 0.0]])})["kernel"].tolist()
      [[3.0, 192.0], [2187.0, 0.0]]

    Source: Wang et al. 2020, arXiv:2002.07376, and its official code.
    """
    part, given = part_of(params, where), as_batches(batch, batches)
    keywords = {} if temperature is None else {"temperature": temperature}
    gradient = _gradient(loss, part, **keywords)
    mean = mean_over(gradient, given, stacked)
    along = [g.astype(w.dtype) for w, g in zip(part.leaves, mean, strict=True)]

    def product(*each):
        return jax.jvp(
            lambda leaves: _gradient(loss, part._replace(leaves=leaves), **keywords)(*each), (part.leaves,), (along,)
        )[1]

    products = mean_over(product, given, stacked)
    scores = [wide(w) * h for w, h in zip(part.leaves, products, strict=True)]
    return part.alone(_shares(scores) if normalized else scores)


def _gradient(loss: Loss, part: Part, **keywords: Any) -> Callable[..., list[jax.Array]]:
    """`(*batch) -> gradients` of the chosen leaves."""

    def gradient(*batch):
        return jax.grad(lambda leaves: loss(part.filled(leaves), *batch, **keywords))(part.leaves)

    return gradient


def _shares(scores: list[jax.Array]) -> list[jax.Array]:
    """The scores over |their sum|; as they are where that is 0."""
    total = jnp.abs(sum(score.sum() for score in scores))
    return [score / jnp.where(total > 0, total, 1) for score in scores]

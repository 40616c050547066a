"""SynFlow: pruning without data by what each weight adds to the flow through the net of absolute weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.distributions import Distribution
from sparsejax.leaves import Layout, Where, named_leaves
from sparsejax.saliency.part import part_of, wide
from sparsejax.saliency.rounds import in_rounds
from sparsejax.transforms.start import Patterns

PyTree = Any
Forward = Callable[[PyTree, jax.Array], PyTree]


def synflow_scores(
    forward: Forward,
    params: PyTree,
    x: Any,
    *,
    biases: bool = True,
    scale: float = 1.0,
    where: Where | None = None,
) -> PyTree:
    """|w ∂R/∂w| of R = 1ᵀ f(1; |params|), the sum of the outputs of the net with absolute params for an input of ones.

    Of a net of linear layers with ReLU, R = 1ᵀ (Π |W|) 1: the scores of each layer then add up to R.

    Args:
      forward: `(params, x) -> outputs` as in evaluation, so that BatchNorm uses the statistics that it holds.
      params: parameters; all floating ones are taken absolute, those of BatchNorm and the biases too.
      x: a batch of one input, or its shape and dtype; its values are not read.
      biases: whether R has the biases, as in the official code; False takes leaves named *bias* as 0, as the formula
        has none. Biases that start at 0 make no difference.
      scale: of the ones at both ends of the net. A power of two changes the range of what is computed and, where there
        are no biases, nothing else; for deep nets, in which R overflows.
      where: which leaves are pruned; None is the default predicate.

    Returns:
      float32 scores, >= 0; None at leaves that are not pruned. Works under jit and vmap.

    Raises:
      ValueError: `where` matches nothing.

    Example:
      >>> forward = lambda params, x: x @ params["kernel"]
      >>> params = {"kernel": jnp.array([[1.0, -2.0], [3.0, 0.0]])}
      >>> synflow_scores(forward, params, jnp.zeros((1, 2)))["kernel"].tolist()
      [[1.0, 2.0], [3.0, 0.0]]

    Source: Tanaka et al. 2020, arXiv:2006.05467, and its official code.
    """

    def linear(path: str, leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return jnp.zeros_like(leaf) if not biases and "bias" in path.rsplit("/", 1)[-1] else jnp.abs(leaf)

    leaves = [linear(path, leaf) for path, leaf in named_leaves(params)]
    part = part_of(jax.tree.unflatten(jax.tree.structure(params), leaves), where)
    ones = jnp.full(x.shape, scale, x.dtype)

    def flow(leaves):
        outputs = jax.tree.leaves(forward(part.filled(leaves), ones))
        return sum(jnp.sum(wide(output) * scale) for output in outputs)

    gradients = jax.grad(flow)(part.leaves)
    return part.alone([wide(w) * wide(g) for w, g in zip(part.leaves, gradients, strict=True)])


def synflow(
    forward: Forward,
    params: PyTree,
    x: Any,
    *,
    sparsity: float | None = None,
    iterations: int = 100,
    schedule: str = "exponential",
    biases: bool = True,
    scale: float = 1.0,
    distribution: Distribution | str | None = None,
    pattern: Patterns = None,
    where: Where | None = None,
    layout: Layout | None = None,
    ties: str = "index",
    key: jax.Array | None = None,
) -> PyTree:
    """SynFlow's masks: n rounds of `synflow_scores`, one cut over all layers, density d^(k/n) after round k.

    In one round the smallest scores may be a whole layer; in a hundred no layer is emptied before the others.

    Args:
      forward, params, x, biases, scale, where: as `synflow_scores`.
      sparsity, iterations, schedule, distribution, pattern, layout, ties, key: as `in_rounds`.

    Returns:
      masks for `static(masks=...)`. Works under jit.

    Raises:
      ValueError: an argument is out of range, or R overflows: a smaller `scale` helps.

    Example:
      >>> forward = lambda params, x: jax.nn.relu(x @ params["a"]["kernel"]) @ params["b"]["kernel"]
      >>> keys = jax.random.split(jax.random.key(0))
      >>> params = {n: {"kernel": jax.random.normal(k, (8, 8))} for n, k in zip("ab", keys)}
      >>> masks = synflow(forward, params, jnp.ones((1, 8)), sparsity=0.875)
      >>> sparsejax.density(masks)
      0.125

    Source: Tanaka et al. 2020, arXiv:2006.05467, and its official code.
    """

    def scores_of(masked: PyTree) -> PyTree:
        return synflow_scores(forward, masked, x, biases=biases, scale=scale, where=where)

    return in_rounds(
        scores_of,
        params,
        sparsity=sparsity,
        iterations=iterations,
        schedule=schedule,
        distribution=distribution,
        pattern=pattern,
        layout=layout,
        ties=ties,
        key=key,
    )

"""edge-popup: a mask is found by trained scores; the weights under it are never trained."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import optax

from sparsejax.leaves import Layout, Where
from sparsejax.transforms.hard_steps import by_score, hard
from sparsejax.transforms.proposals import Leaf
from sparsejax.transforms.reparametrized import ALWAYS, reparametrized
from sparsejax.transforms.start import Distribution, Patterns


def edge_popup(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    by: str = "magnitude",
    distribution: Distribution | str | None = None,
    pattern: Patterns = None,
    where: Where | None = None,
    layout: Layout | None = None,
    ties: str = "index",
    seed: int | jax.Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """edge-popup: trains a score for each weight and keeps the best; the weights stay as they were at init.

    w~ = m w with m the mask of the k largest |s| of each layer, at every step. The mask passes its gradient on to |s|:
    dL/ds = sign(s) w dL/dw~, for each weight, kept or not. The inner optimizer trains the scores (with its weight
    decay) and the leaves without a mask. s starts uniform in ±1 / sqrt(fan_in) (Kaiming, a = sqrt 5), drawn with the
    seed. `sparsejax.initialization.untrained` gives the paper's weights. Weights and moments off the mask (clauses 3
    and 4 of the contract) are beside the point here: no weight of a masked leaf moves, and masks change at every step.

    Args:
      inner: optimizer of the scores and of the leaves without a mask (the paper: SGD, momentum 0.9, cosine, and nets
        that have no other params: no biases, normalisation without scale; freeze them by `optax.partition`).
      sparsity: fraction of weights left out, in [0, 1).
      by: "magnitude": the largest |s| (official code); "score": the largest s, and dL/ds = w dL/dw~ (the paper's text).
      distribution: None is uniform (the paper's k %); "global" ranks the scores of all layers together.
      pattern, where, layout, ties, seed: see `sparse_wrapper`.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> tx = edge_popup(optax.sgd(0.1, momentum=0.9), sparsity=0.5)
      >>> params = {"kernel": jnp.ones((4, 4))}
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> sorted(set(optax.apply_updates(params, updates)["kernel"].ravel().tolist()))  # kept as they are, or 0
      [0.0, 1.0]

    Source: Ramanujan et al. 2020, arXiv:1911.13299.
    """
    if by not in ("magnitude", "score"):
        raise ValueError(f"by={by!r}: 'magnitude' or 'score'")
    score = partial(_score, by)
    return reparametrized(
        inner,
        lambda leaf: leaf.weight * hard(leaf.mask, score(leaf)),
        _kaiming_uniform,
        **by_score(score, distribution == "global"),
        moves="none",
        plan=ALWAYS,
        sparsity=sparsity,
        distribution=distribution,
        pattern=pattern,
        where=where,
        layout=layout,
        ties=ties,
        seed=seed,
    )


def _score(by: str, leaf: Leaf) -> jax.Array:
    return jnp.abs(leaf.extra) if by == "magnitude" else leaf.extra


def _kaiming_uniform(leaf: Leaf) -> jax.Array:
    bound = 1 / math.sqrt(max(1, math.prod(leaf.weight.shape[axis] for axis in leaf.axes.inputs)))
    return jax.random.uniform(leaf.key, leaf.weight.shape, jnp.float32, -bound, bound)

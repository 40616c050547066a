"""Pruning in many small rounds, each with the scores of the net that the last one left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.distributions import Distribution
from sparsejax.leaves import Layout
from sparsejax.masks import apply_masks
from sparsejax.saliency.ranking import best, budget_of, check_finite, count_table, picked, placed, tie_key
from sparsejax.transforms.start import Patterns

PyTree = Any
SCHEDULES = ("exponential", "linear")


def in_rounds(
    scores_of: Callable[[PyTree], PyTree],
    params: PyTree,
    *,
    sparsity: float | None = None,
    iterations: int = 100,
    schedule: str = "exponential",
    distribution: Distribution | str | None = None,
    pattern: Patterns = None,
    layout: Layout | None = None,
    ties: str = "index",
    key: jax.Array | None = None,
) -> PyTree:
    """Masks of n rounds: score the masked net, keep the best of what is still active, fewer each time.

    After round k of n the density is d^(k/n), and exactly the target's count after the last; what is pruned stays so.

    Args:
      scores_of: masked params -> scores, None where nothing is pruned; one of this package, with its other arguments.
      params: initial parameters.
      sparsity: fraction of zeros in [0, 1) after the last round; may be left out where `pattern` is N:M.
      iterations: n, rounds.
      schedule: "exponential", or "linear": the sparsity after round k is s k / n.
      distribution, pattern, layout, ties, key: as `masks_from_scores`; each layer has its own density d then.

    Returns:
      masks, as `masks_from_scores`. Works under jit; compiles one round.

    Raises:
      ValueError: an argument is out of range, or a score of a round is not finite.

    Example:
      >>> params = {"kernel": jnp.arange(16.0).reshape(4, 4)}
      >>> masks = in_rounds(sparsejax.saliency.magnitude, params, sparsity=0.75, iterations=3)
      >>> masks["kernel"].astype(int).tolist()
      [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]

    Source: Tanaka et al. 2020, arXiv:2006.05467, algorithm 1, and its official code for the linear schedule.
    """
    if not isinstance(iterations, int) or isinstance(iterations, bool) or iterations < 1:
        raise ValueError(f"iterations={iterations!r} must be an integer >= 1")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r}: 'exponential' or 'linear'")
    like = jax.eval_shape(scores_of, params)
    budget = budget_of(like, sparsity, distribution, pattern, layout)
    table, tie = count_table(budget, iterations, schedule), tie_key(ties, key)

    def one_round(k, carry):
        active, finite = carry
        scores = picked(budget, scores_of(apply_masks(params, placed(budget, like, active))))
        masks, fine = best(budget, scores, active, table[k], tie)
        return masks, finite & fine

    start = [jnp.ones(shape.shape, bool) for shape in picked(budget, like)], jnp.ones(len(budget.specs), bool)
    masks, finite = lax.fori_loop(0, iterations, one_round, start)
    check_finite(budget, finite)
    return placed(budget, like, masks)

"""Sparsity-informed adaptive pruning (SAP): the PQ index of the weights says how many of them go."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax.leaves import Axes, Layout, Where, checked_axes, named_leaves
from sparsejax.masks import flat_masks, map_masks, mask_tree, unpacked
from sparsejax.schedules import Phase, check_steps, dense
from sparsejax.selection import Count, Request, Scores, answered, answered_together, order_key
from sparsejax.transforms.core import sparse_wrapper
from sparsejax.transforms.lockstep import Together
from sparsejax.transforms.pq import PQ, checked_pq, global_index, kept_after, local_index, ranked_axes
from sparsejax.transforms.proposals import Leaf
from sparsejax.transforms.rules import among

PyTree = Any


def sap(
    inner: optax.GradientTransformation,
    *,
    update_start: int = 0,
    update_end: int | None = None,
    update_every: int = 1_000,
    scope: str = "layer",
    p: float = 0.5,
    q: float = 1.0,
    gamma: float = 1.0,
    eta: float = 0.0,
    beta: float = 0.9,
    where: Where | None = None,
    layout: Layout | None = None,
    ties: str = "index",
    seed: int | jax.Array = 0,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """SAP: prunes, again and again, as many of the smallest |w| as their PQ index says are not needed.

    Of the d weights that a scope keeps, with the PQ index I = 1 - (mean |w|^p)^(1/p) / (mean |w|^q)^(1/q) and the bound
    m = ceil(d (1 + eta)^(-q / (q - p)) (1 - I)^(q p / (q - p))), floor(d min(gamma (1 - m / d), beta)) are pruned, and
    stay pruned. The weights say how sparse it gets: there is no argument `sparsity`. Means are taken in 65,535ths of
    the largest value, so that counts are the same on any number of devices.

    Args:
      inner: the optimizer.
      update_start, update_end: prunes after the first and below the second step; None: for ever.
      update_every: steps from one pruning to the next. (The paper trains to the end and rewinds in between, 15 to 30
        times: `sap_masks`.)
      scope: what is pruned by one index and ranked together: the weights into a "neuron", of a "layer", or "global".
      p, q: 0 < p < q, p <= 1.
      gamma: how much more than the bound says goes (sample runs of the official code: 1.2).
      eta: how much less, from the slack of the bound (sample runs: 0.001).
      beta: the largest share that goes at once, in [0, 1).
      where, layout, ties, seed, packed: see `sparse_wrapper`.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> tx = sap(optax.adam(1e-3), update_every=1_000, update_end=15_001)

    Source: Diao et al. 2023, arXiv:2302.05601.
    """
    check_steps(0, update_start=update_start)
    check_steps(1, update_every=update_every)
    if update_end is not None:
        check_steps(update_start, update_end=update_end)
    numbers = checked_pq(scope, p, q, gamma, eta, beta)
    across = scope == "global"
    return sparse_wrapper(
        inner,
        None if across else partial(_prune, scope, numbers),
        new_masks=partial(_prune_globally, numbers) if across else None,
        plan=(dense(update_start), Phase(update_end, update_every)),
        sparsity=0.0,
        where=where,
        layout=layout,
        ties=ties,
        seed=seed,
        packed=packed,
    )


def sap_masks(
    params: PyTree,
    masks: PyTree,
    *,
    scope: str = "layer",
    p: float = 0.5,
    q: float = 1.0,
    gamma: float = 1.0,
    eta: float = 0.0,
    beta: float = 0.9,
    layout: Layout | None = None,
) -> PyTree:
    """The masks after one pruning by the rule of `sap`: for rounds of training, pruning and rewinding.

    Args:
      params: trained weights.
      masks: the masks that they were trained under; None at dense leaves.
      others: as `sap`.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> params = {"kernel": jnp.array([[9.0, 1.0, 1.0, 1.0]])}
      >>> sap_masks(params, {"kernel": jnp.ones((1, 4), bool)})["kernel"].tolist()
      [[True, True, True, False]]
    """
    numbers = checked_pq(scope, p, q, gamma, eta, beta)
    kept = unpacked(flat_masks(params, masks), jax.tree.leaves(params))
    chosen = map_masks(lambda m, w: None if m is None else w, masks, params)
    active = [mask for mask in kept if mask is not None]
    parts = [
        (leaf, mask, checked_axes(layout, path, leaf))
        for (path, leaf), mask in zip(named_leaves(chosen), active, strict=True)
    ]
    if not parts:
        return masks
    if scope == "global":
        together = _all_of(parts, [None] * len(parts), numbers)
        found = answered_together(together.requests, together.keep)
    else:
        found = answered([_one(*part, None, scope, numbers) for part in parts])
    new = iter([each.mask for each in found])
    return mask_tree(params, [None if mask is None else next(new) for mask in kept])


def _prune(scope: str, numbers: PQ, leaf: Leaf) -> Generator[Any, Any, jax.Array]:
    chosen = yield _one(leaf.weight, leaf.mask, leaf.axes, leaf.ties, scope, numbers)
    return chosen.mask


def _prune_globally(numbers: PQ, leaves: list[Leaf]) -> Generator[Any, Any, list[jax.Array]]:
    parts = [(leaf.weight, leaf.mask, leaf.axes) for leaf in leaves]
    chosen = yield _all_of(parts, [leaf.ties for leaf in leaves], numbers)
    return [each.mask for each in chosen]


def _one(weight: jax.Array, mask: jax.Array, axes: Axes, ties: Any, scope: str, numbers: PQ) -> Request:
    """What is asked for of one leaf, whose neurons or layers have counts of their own."""
    keep = kept_after(*local_index(weight, mask, axes, scope, numbers), numbers)
    return Request(among(_magnitude(weight), mask), keep, ranked_axes(axes, scope), ties)


def _all_of(parts: list[tuple[jax.Array, jax.Array, Axes]], ties: list[Any], numbers: PQ) -> Together:
    """What is asked for of all leaves, which have one count."""
    keep = Count(*(word[0] for word in kept_after(*global_index(parts, numbers), numbers)))
    dtype = jnp.result_type(*(weight for weight, _, _ in parts))
    requests = [
        Request(among(_magnitude(weight.astype(dtype)), mask), keep, tuple(range(mask.ndim)), tie)
        for (weight, mask, _), tie in zip(parts, ties, strict=True)
    ]
    return Together(requests, keep)


def _magnitude(weight: jax.Array) -> Scores:
    return Scores(lambda w: order_key(jnp.abs(w)), (weight,))

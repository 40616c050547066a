"""From scores to masks: how many weights stay in all and in each layer, and which."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsejax.distributions import Distribution
from sparsejax.leaves import Layout, named_leaves
from sparsejax.patterns import check_pattern_globs, kept_units
from sparsejax.selection import Count, Request, Scores, answered, answered_together, order_key
from sparsejax.transforms.proposals import NEVER
from sparsejax.transforms.rules import among, keep_best_globally
from sparsejax.transforms.start import Patterns, Spec, checked_choice, layer_densities, leaf_key, specs_of

PyTree = Any


class Budget(NamedTuple):
    """How much stays of what.

    Attributes:
      specs: of the leaves that get masks.
      sizes: how many units are ranked together: in each group of each spec's leaf, or, `together`, in all leaves.
      sparsities: the fraction of zeros of each of these.
      together: whether one cut goes through all leaves.
    """

    specs: tuple[Spec, ...]
    sizes: tuple[int, ...]
    sparsities: tuple[float, ...]
    together: bool


def masks_from_scores(
    scores: PyTree,
    sparsity: float | None = None,
    *,
    distribution: Distribution | str | None = None,
    pattern: Patterns = None,
    layout: Layout | None = None,
    active: PyTree = None,
    ties: str = "index",
    key: jax.Array | None = None,
) -> PyTree:
    """Masks that keep the largest scores: exactly N - floor(s N) of the N weights that are ranked together.

    Args:
      scores: one for each weight, larger = keep; None at the leaves that are not pruned.
      sparsity: fraction of zeros in [0, 1); may be left out where `pattern` is N:M.
      distribution: of the sparsity over layers; None or "global" ranks all layers together, which may leave one empty
        (see `sparsejax.topology.collapsed`); with a pattern None is uniform, as one cut ranks single weights.
      pattern: None (single weights), `nm`, `fan_in`, `block`, `channel`, or a dict of globs to patterns.
      layout: which axes are inputs and outputs; None is Flax's.
      active: masks; what is off them is kept last.
      ties: "index": among equal scores the lowest index of the first leaf is kept; "random": at random, by `key`.
      key: a PRNG key.

    Returns:
      boolean arrays in the scores' tree, for `static(masks=...)`; None also where N:M skips a leaf.

    Raises:
      ValueError: an argument is out of range, or a score is not finite (under jit such scores are kept last).

    Example:
      >>> masks = masks_from_scores({"a": jnp.array([[1.0, 5.0]]), "b": jnp.array([[4.0, 3.0]])}, 0.5)
      >>> masks["a"].tolist(), masks["b"].tolist()
      ([[False, True]], [[True, False]])

    Source: one cut over all layers: Lee et al. 2019, arXiv:1810.02340.
    """
    budget = budget_of(scores, sparsity, distribution, pattern, layout)
    kept = jnp.asarray([_words(counts_at(budget, 1.0))], jnp.uint32).reshape(-1, 2)
    flat = picked(budget, scores)
    allowed = None if active is None else picked(budget, _beside(scores, active))
    masks, finite = best(budget, flat, allowed, kept, tie_key(ties, key))
    check_finite(budget, finite)
    return placed(budget, scores, masks)


def budget_of(
    scores: PyTree, sparsity: float | None, distribution: Any, pattern: Patterns, layout: Layout | None
) -> Budget:
    """The budget of trees like `scores` (arrays or shapes); errors as `masks_from_scores`."""
    together = pattern is None and distribution in (None, "global")
    choice = checked_choice(
        sparsity,
        "global" if together else distribution,
        pattern,
        None,
        layout,
        "dense",
        NEVER,
        None,
        keep_best_globally,
    )
    leaves = jax.tree.leaves(scores)
    check_pattern_globs(pattern, [path for path, _ in named_leaves(scores)])
    specs = specs_of(scores, leaves, pattern, layout)
    specs = [spec for spec in specs if spec.pattern.check(spec.path, leaves[spec.position].shape, spec.axes)]
    if together:
        total = sum(leaves[spec.position].size for spec in specs)
        return Budget(tuple(specs), (total,), (choice.sparsity,), True)
    sizes = [spec.pattern.group_size(leaves[spec.position].shape, spec.axes) for spec in specs]
    sparsities = [1 - density for density in layer_densities(scores, specs, choice)]
    return Budget(tuple(specs), tuple(sizes), tuple(sparsities), False)


def counts_at(budget: Budget, share: float, schedule: str = "exponential") -> list[int]:
    """Units kept at a share of the way: of density d, d^share ("exponential") or 1 - share (1 - d) ("linear")."""

    def sparsity_at(final: float) -> float:
        if share == 1:
            return final
        return 1 - (1 - final) ** share if schedule == "exponential" else share * final

    return [kept_units(size, sparsity_at(s)) for size, s in zip(budget.sizes, budget.sparsities, strict=True)]


def _words(counts: Sequence[int]) -> list[list[int]]:
    return [[count >> 16, count & 0xFFFF] for count in counts]


def count_table(budget: Budget, rounds: int, schedule: str) -> jax.Array:
    """uint32 (rounds, budget's sizes, 2): units kept after each round, in the two words of a Count."""
    rows = [_words(counts_at(budget, k / rounds, schedule)) for k in range(1, rounds + 1)]
    return jnp.asarray(rows, jnp.uint32).reshape(rounds, -1, 2)


def picked(budget: Budget, tree: PyTree) -> list[jax.Array]:
    """The leaves of a tree like the scores that the budget is for."""
    leaves = jax.tree.leaves(tree)
    return [leaves[spec.position] for spec in budget.specs]


def placed(budget: Budget, scores: PyTree, masks: Sequence[jax.Array]) -> PyTree:
    """The masks in the scores' tree."""
    structure: Any = jax.tree.structure(scores)
    flat: list[Any] = [None] * structure.num_leaves
    for spec, mask in zip(budget.specs, masks, strict=True):
        flat[spec.position] = mask
    return structure.unflatten(flat)


def _beside(scores: PyTree, masks: PyTree) -> PyTree:
    """The masks at the scores' leaves, True where they have none."""
    structure: Any = jax.tree.structure(scores)
    flat = structure.flatten_up_to(masks)
    filled = [jnp.ones(s.shape, bool) if m is None else m for s, m in zip(jax.tree.leaves(scores), flat, strict=True)]
    return structure.unflatten(filled)


@partial(jax.jit, static_argnums=0)
def best(
    budget: Budget,
    scores: Sequence[jax.Array],
    active: Sequence[jax.Array] | None,
    kept: jax.Array,
    ties: jax.Array | None,
) -> tuple[list[jax.Array], jax.Array]:
    """The masks of the best units of each spec's leaf, and whether its scores are finite.

    Args:
      budget: says what is ranked together.
      scores, active: of each spec's leaf.
      kept: uint32 (budget's sizes, 2), a row of `count_table`.
      ties: PRNG key, or None.
    """
    dtype = jnp.result_type(*scores) if budget.together and scores else None
    requests = []
    for i, (spec, score) in enumerate(zip(budget.specs, scores, strict=True)):
        units = spec.pattern.units(score if dtype is None else score.astype(dtype), spec.axes)
        ranked = Scores(order_key, (units,))
        if active is not None:
            ranked = among(ranked, spec.pattern.units(active[i].astype(jnp.float32), spec.axes) > 0)
        count = Count(*kept[0 if budget.together else i])
        tie = None if ties is None else leaf_key(jax.random.key_data(ties), spec.path)
        over = tuple(range(score.ndim)) if budget.together else spec.pattern.group_axes(score.shape, spec.axes)
        requests.append(Request(ranked, count, over, tie))
    if budget.together:
        chosen = answered_together(requests, Count(*kept[0])) if requests else []
    else:
        chosen = answered(requests)
    each = zip(chosen, budget.specs, scores, strict=True)
    masks = [spec.pattern.expand(found.mask, score.shape, spec.axes) for found, spec, score in each]
    return masks, jnp.asarray([jnp.isfinite(score).all() for score in scores], bool)


def tie_key(ties: str, key: jax.Array | None) -> jax.Array | None:
    """The key that breaks ties, or None for the lowest index."""
    if ties not in ("index", "random"):
        raise ValueError(f"ties={ties!r}: 'index' or 'random'")
    if ties == "random" and key is None:
        raise ValueError("ties='random' needs key=, a PRNG key")
    return key if ties == "random" else None


def check_finite(budget: Budget, finite: jax.Array) -> None:
    """Raises ValueError, naming the leaves, where scores are not finite and known."""
    if isinstance(finite, jax.core.Tracer):
        return
    bad = [spec.path for spec, fine in zip(budget.specs, finite.tolist(), strict=True) if not fine]
    if bad:
        raise ValueError(
            f"scores: {', '.join(bad[:3])}{' ...' if len(bad) > 3 else ''} holds NaN or infinity; "
            "the weights, the loss or its gradient overflowed or were not finite"
        )

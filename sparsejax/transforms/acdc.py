"""AC/DC: phases of compressed and of decompressed training, in turn."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import optax

from sparsejax.leaves import Layout, Where
from sparsejax.schedules import check_steps, levels
from sparsejax.transforms.core import sparse_wrapper
from sparsejax.transforms.rules import keep_best, keep_best_globally
from sparsejax.transforms.start import Distribution, Patterns

# (sparse starts, dense starts), epochs of how many: the paper's runs.
_PUBLISHED = {
    "cifar": ((10, 50, 90, 130, 170), (30, 70, 110, 150), 200),
    "imagenet": ((10, 20, 30, 40, 50, 60, 70, 85), (15, 25, 35, 45, 55, 65, 75), 100),
}


def acdc(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    sparse_starts: Sequence[int] | None = None,
    dense_starts: Sequence[int] | None = None,
    update_start: int = 1_000,
    update_every: int = 1_000,
    update_end: int = 10_000,
    last_dense: int | None = None,
    reset_moments: bool = False,
    distribution: Distribution | str | None = None,
    pattern: Patterns = None,
    where: Where | None = None,
    layout: Layout | None = None,
    ties: str = "index",
    seed: int | jax.Array = 0,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """AC/DC: trains compressed (the largest |w|, under fixed masks) and decompressed (all weights) in turn.

    Each compressed phase begins with the mask of the largest |w| of all weights. A decompressed phase has a full mask:
    weights that were zero train again, from 0. Training is dense before the first phase, and ends compressed.

    In the dense phases no weight is promised to be 0, and `get_masks` gives full masks: there `sparsity` does not hold.

    Args:
      inner: the optimizer.
      sparsity: fraction of zeros in [0, 1) in the compressed phases; may be left out where `pattern` is N:M.
      sparse_starts, dense_starts: the steps at which compressed and decompressed phases begin, in turn, a compressed
        one first and last; `acdc_phases` gives the paper's. Without them the next four say when:
      update_start: length of the dense warm-up, in steps.
      update_every: length of a phase, in steps.
      update_end: the step at which the last compressed phase begins.
      last_dense: length of the decompressed phase before it, at least; None: `update_every`.
      reset_moments: whether moments start afresh at each change of phase (those of all params; counters go on).
      distribution: None or "global" ranks all layers together; a function keeps each layer's own share.
      pattern: needs a distribution of its own. where, layout, ties, seed, packed: see `sparse_wrapper`.

    Raises:
      ValueError: an argument is out of range, or the phases do not alternate.

    Example:
      >>> tx = acdc(optax.sgd(0.1), sparsity=0.9, **acdc_phases(78_200, "cifar"))

    Source: Peste et al. 2021, arXiv:2106.12379.
    """
    sparse, dense = phases_of(sparse_starts, dense_starts, update_start, update_every, update_end, last_dense)
    if not isinstance(reset_moments, bool):
        raise ValueError(f"reset_moments={reset_moments!r}: True or False")
    if distribution is None and pattern is None:
        distribution = "global"
    across = distribution == "global"
    return sparse_wrapper(
        inner,
        None if across else keep_best,
        new_masks=keep_best_globally if across else None,
        plan=(levels(*sorted([*((step, 1.0) for step in sparse), *((step, 0.0) for step in dense)])),),
        sparsity=sparsity,
        reset_moments=reset_moments,
        distribution=distribution,
        pattern=pattern,
        where=where,
        layout=layout,
        ties=ties,
        seed=seed,
        packed=packed,
    )


def acdc_phases(total: int, published: str = "cifar") -> dict[str, tuple[int, ...]]:
    """The paper's phases, stretched to `total` steps, as the arguments `sparse_starts` and `dense_starts` of `acdc`.

    Args:
      total: steps of the whole training.
      published: "cifar": warm-up of 5 %, phases of 10 %, the last compressed one 15 %; "imagenet": warm-up of 10 %,
        phases of 5 %, the last dense one 10 %, the last compressed one 15 %.

    Raises:
      ValueError: an argument is out of range, or the phases are shorter than a step.

    Example:
      >>> acdc_phases(200)
      {'sparse_starts': (10, 50, 90, 130, 170), 'dense_starts': (30, 70, 110, 150)}
    """
    if published not in _PUBLISHED:
        raise ValueError(f"published={published!r}: one of {', '.join(_PUBLISHED)}")
    check_steps(1, total=total)
    sparse, dense, epochs = _PUBLISHED[published]
    at = lambda starts: tuple(start * total // epochs for start in starts)
    phases_of(at(sparse), at(dense))
    return {"sparse_starts": at(sparse), "dense_starts": at(dense)}


def phases_of(
    sparse_starts: Sequence[int] | None = None,
    dense_starts: Sequence[int] | None = None,
    update_start: int = 1_000,
    update_every: int = 1_000,
    update_end: int = 10_000,
    last_dense: int | None = None,
) -> tuple[list[int], list[int]]:
    """The steps at which compressed and decompressed phases begin; arguments and errors as of `acdc`."""
    if (sparse_starts is None) != (dense_starts is None):
        raise ValueError("sparse_starts and dense_starts: give both, or neither")
    if sparse_starts is not None and dense_starts is not None:
        sparse, dense = list(sparse_starts), list(dense_starts)
        for name, steps in (("sparse_starts", sparse), ("dense_starts", dense)):
            for step in steps:
                check_steps(0, **{name: step})
    else:
        check_steps(0, update_start=update_start, update_end=update_end)
        check_steps(1, update_every=update_every, last_dense=update_every if last_dense is None else last_dense)
        if update_end < update_start:
            raise ValueError(f"update_end={update_end} must be at least update_start={update_start}")
        latest = update_end - (update_every if last_dense is None else last_dense)
        sparse = [*range(update_start, latest, 2 * update_every)]
        dense = [min(step + update_every, latest) for step in sparse]
        sparse.append(update_end)
        if len(dense) > 1 and latest - sparse[-2] < update_every:  # too short a phase: the dense one goes on
            del sparse[-2], dense[-1]
    flips = sorted([*sparse, *dense])
    if not sparse or len(set(flips)) < len(flips) or sorted(sparse) != flips[::2] or len(sparse) != len(dense) + 1:
        raise ValueError(
            f"compressed phases from {tuple(sparse)} and dense ones from {tuple(dense)} must alternate, "
            "a compressed one first and last"
        )
    return sparse, dense

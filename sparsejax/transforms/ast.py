"""AST: masks chosen anew every few steps, straight-through gradients, and a decay of masked weights inside Adam."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax import criteria
from sparsejax.criteria import Criterion
from sparsejax.leaves import Layout, Where
from sparsejax.schedules import check_steps
from sparsejax.transforms.proposals import Leaf
from sparsejax.transforms.rules import Rule, choose_best
from sparsejax.transforms.start import Distribution, Patterns
from sparsejax.transforms.ste import default_pattern
from sparsejax.transforms.straight_through import every_step, straight_through


def ast(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    update_every: int = 10,
    update_end: int | None = None,
    criterion: Criterion | None = None,
    norms: Mapping[str, jax.Array] | None = None,
    wants_masks: bool | None = None,
    dense_dtype: Any = None,
    distribution: Distribution | None = None,
    pattern: Patterns = None,
    where: Where | None = None,
    layout: Layout | None = None,
    ties: str = "index",
    seed: int | jax.Array = 0,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """AST: STE with masks chosen every 10 steps, around an Adam that decays masked weights: `ast_adam`.

    v_t+1 = v_t + step of `inner`, given dL/dw at w_t and the masks; w = mask v; mask = top(score(v)), by default 2 of
    every 4 largest |v| along the input axis. The decay, λ (1 - mask) v, is a part of Adam's update and not of the
    gradient, so that it is the optimizer's: `ast(ast_adam(lr))` is the paper's method, and so is `method=ast` of a
    config. Around another optimizer this is STE with seldom masks. In the paper the loss is 0.33 task + 0.67 KL to the
    dense model (a config's `distill`: alpha 0.67, temperature 1), and some layers have a low-rank add-on
    (`models.slorb`).

    Args:
      inner: the optimizer, `ast_adam`.
      sparsity: fraction of zeros in [0, 1), at every step; may be left out where `pattern` is N:M.
      update_every: steps between choices of masks.
      update_end: the last step that chooses them; None: all.
      criterion: of the scores, element by element; None is |v|.
      norms: given, the scores are Wanda's, |v_ij| ‖x_i‖: for each sparsified leaf, by path, the norms (C,) of what
        enters it, C the size of its last input axis. They may be traced: norms of this step's batch go into a
        transformation that is made inside the step.
      wants_masks: whether inner's update takes `masks=`; None: told by its signature, which `optax.chain` hides.
      dense_dtype: of the dense weights; see `straight_through`.
      distribution: None is uniform.
      pattern: None is `nm(2, 4)`, or single weights where `sparsity` is given.
      where, layout, ties, seed, packed: see `sparse_wrapper`.

    Raises:
      ValueError: an argument is out of range; when masks are chosen: norms that do not fit the leaves.

    Example:
      >>> tx = ast(sparsejax.ast_adam(2e-4, masked_decay=1e-4), pattern=sparsejax.nm(2, 4))

    Source: Huang et al. 2024, Pruning Large Language Models with Semi-Structural Adaptive Sparse Training,
    arXiv:2407.20584; Wanda: Sun et al. 2023, arXiv:2306.11695.
    """
    check_steps(1, update_every=update_every)
    if criterion is not None and norms is not None:
        raise ValueError("ast takes either criterion or norms")
    rule = partial(choose_best, criterion=criterion or criteria.magnitude)
    return straight_through(
        inner,
        rule if norms is None else partial(_by_norms, norms),
        plan=every_step(update_end, every=update_every),
        wants_masks=wants_masks,
        dense_dtype=dense_dtype,
        sparsity=sparsity,
        distribution=distribution,
        pattern=default_pattern(pattern, sparsity),
        where=where,
        layout=layout,
        ties=ties,
        seed=seed,
        packed=packed,
    )


def _by_norms(norms: Mapping[str, jax.Array], leaf: Leaf) -> Rule:
    """The mask of the best |w_ij| ‖x_i‖; the norms stand where the rule looks for the gradient."""
    axis, given = leaf.axes.inputs[-1], norms.get(leaf.path)
    if given is None or jnp.shape(given) != leaf.weight.shape[axis : axis + 1]:
        wrong = "missing" if given is None else f"of shape {jnp.shape(given)}"
        raise ValueError(f"norms: {leaf.path}: {wrong}; {leaf.weight.shape[axis]} are needed, one for each input")
    places = [-1 if a == axis else 1 for a in range(leaf.weight.ndim)]
    spread = jnp.broadcast_to(jnp.reshape(given, places), leaf.weight.shape).astype(leaf.weight.dtype)
    return choose_best(leaf._replace(grad=spread), lambda each: jnp.abs(each.weight) * each.grad)

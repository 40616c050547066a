"""BDWP: one N:M mask for the forward pass, another for the backward pass, dense weights until the end."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax import schedules
from sparsejax.leaves import Layout, Where
from sparsejax.masks import apply_masks, flat_masks, with_masks
from sparsejax.patterns import NM, nm
from sparsejax.state import SparseState
from sparsejax.transforms.core import sparse_wrapper
from sparsejax.transforms.inner import reset_off
from sparsejax.transforms.known import known_masks, laid_on
from sparsejax.transforms.start import specs_of

PyTree = Any


def bdwp(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    pattern: NM | None = None,
    update_end: int | None = None,
    where: Where | None = None,
    layout: Layout | None = None,
    seed: int | jax.Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """Bidirectional weight pruning (BDWP): forward and backward pass each see the weights through an N:M mask.

    y = x (w ⊙ M_in), dL/dx = dL/dy (w ⊙ M_out)ᵀ, dL/dw = xᵀ dL/dy; M_in keeps the N largest |w| of every M along the
    inputs, M_out along the outputs. That is the model's work: give its layers `bidirectional.bdwp_dot_general(n, m)`
    and `bdwp_conv(n, m)` (configs do, with `method=bdwp`). This transformation keeps the books. The params in the loop
    are **dense**, the inner optimizer sees every weight and every gradient, and the masks of the state are the M_in of
    the params that the step leaves (before the first step: all True, so that `apply_masks` spoils nothing). At step
    `update_end`, M_in is laid on the params; from then on they are exactly sparse and the masks stay, so that the same
    model, or one without these functions, computes y with them. Not promised before: that params are sparse.

    Bi-Mask (Zhang et al. 2023, arXiv:2302.06058) is a relative that permutes rows so that more of M_in can serve
    backward; transposable masks (Hubara et al. 2021, arXiv:2102.08124) are one mask that is N:M along both axes.

    Args:
      inner: the optimizer.
      sparsity: implied by the pattern; given, it must agree.
      pattern: `nm(n, m)` along the inputs; None is nm(2, 8).
      update_end: the step from which the params are sparse; None: never, `apply_masks` does it after the loop.
      where, layout: see `sparse_wrapper`. The paper leaves the first convolution and the classifier dense.
      seed: nothing is random.

    Raises:
      ValueError: the pattern is not N:M along the inputs, or an argument is out of range.

    Example:
      >>> tx = bdwp(optax.sgd(0.1), pattern=nm(1, 2), update_end=100)
      >>> params = {"kernel": jnp.array([[1.0, 3.0], [-2.0, 0.0]])}
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> state.masks["kernel"].tolist()
      [[False, True], [True, False]]

    Source: Fang et al. 2023, Efficient N:M Sparse DNN Training Using Algorithm, Architecture, and Dataflow Co-Design,
    arXiv:2309.13015; the axes from memory of it.
    """
    pattern = along_inputs(pattern)
    if update_end is not None:
        schedules.check_steps(1, update_end=update_end)
    begin = sparse_wrapper(inner, sparsity=sparsity, pattern=pattern, where=where, layout=layout, seed=seed)
    inner = optax.with_extra_args_support(inner)

    def update_fn(updates: PyTree, state: SparseState, params: PyTree = None, **extra_args: Any):
        if params is None:
            raise ValueError("a sparse transformation needs params: tx.update(grads, opt_state, params)")
        structure: Any = jax.tree.structure(params)
        old = flat_masks(params, state.masks)
        laid = old
        if update_end is None:
            step, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        else:
            is_sparse = state.count >= update_end
            laid = [None if mask is None else mask | ~is_sparse for mask in old]
            masks = structure.unflatten(laid)
            inner_state = reset_off(inner, state.inner_state, params, laid)
            seen = apply_masks(updates, masks), inner_state, apply_masks(params, masks)
            step, inner_state = inner.update(*seen, **extra_args)
            step = structure.unflatten(map(laid_on, structure.flatten_up_to(step), jax.tree.leaves(params), laid))
        count = optax.safe_increment(state.count)
        due = jnp.array(True) if update_end is None else state.count < update_end
        specs = specs_of(params, old, pattern, layout)
        after = jax.tree.leaves(optax.apply_updates(params, step))
        new, refused = known_masks(due, old, after, structure.flatten_up_to(updates), specs, pattern)
        masks = with_masks(state.masks, new)
        return step, SparseState(count, state.key, masks, inner_state, state.skipped + refused, ())

    return optax.GradientTransformationExtraArgs(begin.init, update_fn)


def along_inputs(pattern: Any) -> NM:
    """The pattern, nm(2, 8) for None; ValueError where it is not N:M along the inputs."""
    pattern = nm(2, 8) if pattern is None else pattern
    if not isinstance(pattern, NM) or pattern.axis is not None or pattern.tile != 1:
        raise ValueError(f"pattern={pattern!r}: bdwp needs nm(n, m), without axis or tile")
    return pattern

"""SCL: connections are learned by a number each, whose sign says whether the connection is there."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax.leaves import Layout, Where, checked_axes, leaf_path
from sparsejax.transforms.hard_steps import hard
from sparsejax.transforms.reparametrized import reparametrized


def scl(
    inner: optax.GradientTransformation,
    *,
    penalty: float = 0.01,
    mask_init: float = 1.0,
    normalise: bool = True,
    aux_inner: optax.GradientTransformation | None = None,
    dense_dtype: Any = None,
    where: Where | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Sparse connectivity learning: a trained number for each weight is above 0 or not; each connection costs lambda.

    w~ = w H(m), H(m) = 1 where m > 0, else 0. The step passes its gradient straight through to m: g = w dL/dw~, divided
    by its root mean square over the inputs of each feature (output), plus lambda, the gradient of lambda times the
    number of connections. No sparsity is asked for: it follows from lambda. A weight off the mask holds its value. The
    abstract fixes neither norm, lambda nor start: these are ours. Contract: no layer has a promised count, what returns
    has its old value, masks change at every step.

    Args:
      inner: optimizer of the weights, and of m.
      penalty: lambda >= 0, in units of a feature's root mean square gradient.
      mask_init: m at the start, above 0: all connections are there.
      normalise: whether g is divided.
      aux_inner: another optimizer of m.
      dense_dtype: of the dense weights in the state; None: the params'.
      where, layout: see `sparse_wrapper`.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> tx = scl(optax.sgd(0.1), penalty=0.02)

    Source: Tang et al., Automatic Sparse Connectivity Learning for Neural Networks (2022), from its abstract.
    """
    if isinstance(penalty, bool) or not 0 <= penalty < float("inf"):
        raise ValueError(f"penalty={penalty} must be a finite number of at least 0")
    if isinstance(mask_init, bool) or not 0 < mask_init < float("inf"):
        raise ValueError(f"mask_init={mask_init} must be a finite number above 0")
    cost = optax.stateless(partial(_priced, penalty, normalise, layout))
    return reparametrized(
        inner,
        lambda leaf: leaf.weight * hard(leaf.mask, leaf.extra),
        lambda leaf: jnp.full_like(leaf.weight, mask_init, jnp.float32),
        aux_inner=optax.chain(cost, aux_inner or inner),
        new_mask=lambda leaf: leaf.extra > 0,
        moves="kept",
        dense_dtype=dense_dtype,
        where=where,
        layout=layout,
    )


def _priced(penalty: float, normalise: bool, layout: Layout | None, grads: Any, params: Any = None) -> Any:
    """The gradients of m, by feature, and of the number of connections."""
    del params

    def one(path, grad):
        if normalise:
            axes = checked_axes(layout, leaf_path(path), grad)
            size = jnp.sqrt(jnp.mean(grad * grad, axes.inputs, keepdims=True))
            grad = grad / jnp.where(size > 0, size, 1.0)
        return grad + penalty

    return jax.tree_util.tree_map_with_path(one, grads)

"""STR: soft thresholds that are learned, one for each layer."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax.leaves import Layout, Where
from sparsejax.transforms.proposals import Leaf
from sparsejax.transforms.reparametrized import reparametrized


def str_(
    inner: optax.GradientTransformation,
    *,
    threshold_init: float = -3200.0,
    aux_inner: optax.GradientTransformation | None = None,
    dense_dtype: Any = None,
    where: Where | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """STR: each layer learns the threshold below which its weights are zero; no sparsity is asked for.

    w~ = sign(w) max(|w| - sigmoid(tau_l), 0). The optimizer trains w and tau_l alike, with its weight decay on both: as
    that draws tau_l to 0, the threshold rises to 1/2, and the loss holds against it. How sparse the net ends follows
    from weight decay, learning rate, `threshold_init` and the number of steps. The latent weights are the truth: a
    change of the params by hand is undone. Clauses of the contract that cannot hold: no layer has a promised count, the
    moments and steps are those of dense weights, and masks change at every step.

    Args:
      inner: optimizer, with weight decay (the paper: SGD, 2.25e-5 for 90 % of ResNet-50).
      threshold_init: tau at the start. At the paper's -3200 (100 epochs of ImageNet) the threshold is exactly 0 and
        gets no gradient until decay has raised it; short runs take -10 to -5.
      aux_inner: another optimizer of the thresholds.
      dense_dtype: of the dense weights in the state; None: the params'.
      where, layout: see `sparse_wrapper`; each slice of a stacked leaf has a threshold of its own.

    Raises:
      ValueError: threshold_init is not a number.

    Example:
      >>> tx = str_(optax.adamw(1e-2, weight_decay=1e-3), threshold_init=0.0)
      >>> state = tx.init({"kernel": jnp.array([[0.75, 0.25], [-0.25, -0.75]])})
      >>> sparsejax.get_masks(state)["kernel"].ravel().tolist()  # sigmoid(0) is 0.5
      [True, False, False, True]

    Source: Kusupati et al. 2020, arXiv:2002.03231.
    """
    if isinstance(threshold_init, bool) or not abs(float(threshold_init)) < float("inf"):
        raise ValueError(f"threshold_init={threshold_init} must be a finite number")
    return reparametrized(
        inner,
        _shrunk,
        partial(_start, threshold_init),
        aux_inner=aux_inner,
        soft=True,
        dense_dtype=dense_dtype,
        where=where,
        layout=layout,
    )


def _start(threshold_init: float, leaf: Leaf) -> jax.Array:
    shape = tuple(size if axis in leaf.axes.stacked else 1 for axis, size in enumerate(leaf.weight.shape))
    return jnp.full(shape, threshold_init, jnp.float32)


def _shrunk(leaf: Leaf) -> jax.Array:
    return jnp.sign(leaf.weight) * jax.nn.relu(jnp.abs(leaf.weight) - jax.nn.sigmoid(leaf.extra))

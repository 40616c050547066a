"""Weights on a path from input to output, of any net: its forward pass with 0 and 1 in place of numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.jaxpr_walk import jaxprs
from sparsejax.leaves import named_leaves
from sparsejax.masks import map_masks
from sparsejax.topology.signals import DATA, PARAM, Signal, propagate

PyTree = Any


def path_masks(forward: Callable[[PyTree, Any], PyTree], params: PyTree, masks: PyTree, x: Any) -> PyTree:
    """The kept weights through which a path leads from the input to the output, of any net: residual, attention, ...

    A weight counts where dR/dm > 0, R being the sum of the outputs of the net in which weights are their masks (1
    where there is none), inputs are 1, sums are "any" in both directions, and what has no part in connections is
    passed through: biases, norms, activations, pooling. So nothing overflows or cancels. A matrix of data times one of
    data (attention) connects both with the result. A statistic that is only put back onto what it was taken from (the
    mean in LayerNorm, the sum in softmax) is no connection.

    Args:
      forward: `(params, x) -> outputs`, as in evaluation; traced, never run.
      params: arrays or shapes; their values are not read.
      masks: mask tree; leaves without a mask are taken to be dense.
      x: a batch of one input, or its shape and dtype.

    Returns:
      the masks' tree, bool. Works under jit and vmap.

    Raises:
      ValueError: the pass holds an operation that cannot be followed (a while loop, a Pallas kernel).

    Example:
      >>> forward = lambda params, x: jax.nn.relu(x @ params["a"]) @ params["b"]
      >>> masks = {"a": jnp.array([[True, True]]), "b": jnp.array([[True], [False]])}
      >>> on = path_masks(forward, masks, masks, jnp.ones((1, 1)))
      >>> on["a"].tolist(), on["b"].tolist(), sparsejax.density(on)
      ([[True, False]], [[True], [False]], 0.5)

    Source: effective sparsity, Vysogorets & Kempe 2021, arXiv:2107.02306; R as in SynFlow, arXiv:2006.05467.
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, _floating(leaf.dtype)), params)
    closed = jax.make_jaxpr(forward)(shapes, jax.ShapeDtypeStruct(x.shape, x.dtype))
    (jaxpr,) = jaxprs([closed])
    flat: list[Any] = []
    map_masks(lambda mask, leaf: flat.append(mask), masks, shapes)
    leaves = [leaf for _, leaf in named_leaves(shapes)]

    def flow(kept):
        given = iter(kept)
        values: list[Any] = [
            jnp.ones(leaf.shape, leaf.dtype) if mask is None else Signal(next(given), PARAM, 0)
            for mask, leaf in zip(flat, leaves, strict=True)
        ]
        outputs = propagate(jaxpr, closed.consts, [*values, Signal(jnp.ones(x.shape), DATA, 0)])
        return sum(jnp.sum(out.on) for out in outputs if isinstance(out, Signal))

    kept = [mask.astype(jnp.float32) for mask in flat if mask is not None]
    gradients = iter(jax.grad(flow)(kept))
    return map_masks(lambda mask, _: None if mask is None else mask & (next(gradients) > 0), masks, shapes)


def _floating(dtype: Any) -> Any:
    return jnp.float32 if jnp.issubdtype(dtype, jnp.floating) else dtype

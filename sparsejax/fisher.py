"""The inverse of the empirical Fisher information, block by block, from one gradient after another.

F = damp I + (1 / m) Σ g gᵀ over m gradients, inside blocks of consecutive weights. By Woodbury's identity each gradient
changes the inverse by a matrix of rank 1: P <- P - P g gᵀ P / (m + gᵀ P g), from P = I / damp. What is kept is a root R
with R Rᵀ = P, for which the same step is R <- R - R φ φᵀ / (s + sqrt(m s)), φ = Rᵀ g, s = m + φᵀ φ: in float32 P itself
loses its small eigenvalues, and may end with negative ones, where gradients are large beside the damp of 1e-7.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.leaves import Axes
from sparsejax.packing import whole


def in_blocks(x: jax.Array, axes: Axes, size: int) -> jax.Array:
    """(blocks, size) float32: the weights of each output after one another, cut into blocks; zeros fill the last.

    Args:
      x: a leaf.
      axes: its axes.
      size: of a block; a leaf with fewer weights is one block of its own size.
    """
    moved = jnp.transpose(whole(x), _order(axes)).astype(jnp.float32).ravel()
    size = min(size, max(moved.size, 1))
    return jnp.pad(moved, (0, -moved.size % size)).reshape(-1, size)


def from_blocks(blocks: jax.Array, shape: tuple[int, ...], axes: Axes) -> jax.Array:
    """What `in_blocks` cut, as the leaf again."""
    order = _order(axes)
    flat = blocks.ravel()[: math.prod(shape)].reshape([shape[axis] for axis in order])
    return jnp.transpose(flat, [order.index(axis) for axis in range(len(shape))])


def _order(axes: Axes) -> tuple[int, ...]:
    return (*axes.stacked, *axes.outputs, *axes.inputs)


def with_gradient(root: jax.Array, grad: jax.Array, m: int) -> jax.Array:
    """The root of the inverse after one more gradient, of m.

    Args:
      root: (blocks, size, size).
      grad: (blocks, size).
    """
    seen = jnp.einsum("bij,bi->bj", root, grad)
    total = m + jnp.sum(seen**2, axis=-1)
    factor = 1 / (total + jnp.sqrt(m * total))
    moved = jnp.einsum("bij,bj->bi", root, seen) * factor[:, None]
    return root - moved[:, :, None] * seen[:, None, :]


def inverse_roots(gradients: Callable[[jax.Array], list[jax.Array]], m: int, damp: float) -> list[jax.Array]:
    """Roots R of the inverse Fisher blocks of several leaves, R Rᵀ = (damp I + (1 / m) Σ g gᵀ)⁻¹.

    Args:
      gradients: i (traced, 0 to m - 1) -> the i-th gradient of each leaf, `in_blocks`.
      m: how many.
      damp: above 0.

    Returns:
      (blocks, size, size) float32 for each leaf.

    Example:
      >>> (root,) = inverse_roots(lambda i: [jnp.array([[1.0, 0.0]])], 4, 1.0)
      >>> print((root @ root.mT).round(3))  # of F = [[2, 0], [0, 1]]
      [[[0.5 0. ]
        [0.  1. ]]]

    Source: Singh & Alistarh 2020, WoodFisher, arXiv:2004.14340; Kurtic et al. 2022, arXiv:2203.07259. The step of the
    root: Potter's, of 1963.
    """

    def add(i, roots):
        return [with_gradient(root, grad, m) for root, grad in zip(roots, gradients(i), strict=True)]

    shapes = jax.eval_shape(lambda: gradients(jnp.int32(0)))
    start = [
        jnp.broadcast_to(jnp.eye(each.shape[1]) / math.sqrt(damp), (each.shape[0], each.shape[1], each.shape[1]))
        for each in shapes
    ]
    return lax.fori_loop(0, m, add, start)


def diagonal(root: jax.Array) -> jax.Array:
    """(blocks, size): the diagonal of the inverse."""
    return jnp.sum(root**2, axis=-1)


def compensated(root: jax.Array, weight: jax.Array, pruned: jax.Array) -> jax.Array:
    """The weights after the optimal change for the pruned ones: w - Σ over pruned i of (w_i / [P]_ii) P e_i.

    Args:
      root: (blocks, size, size), of P.
      weight: (blocks, size).
      pruned: (blocks, size) bool; these entries of the result are to be masked.
    """
    share = jnp.where(pruned, weight / diagonal(root), 0.0)
    return weight - jnp.einsum("bij,bj->bi", root, jnp.einsum("bij,bi->bj", root, share))

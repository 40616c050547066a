"""Two weights in one layer: the forward pass masked along the inputs, the gradient of its input along the outputs.

Functions to hand to Flax layers (`dot_general=`, `conv_general_dilated=`). The masks are those of the largest |w|, and
are chosen anew whenever the layer computes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.leaves import Axes
from sparsejax.patterns import NM, nm, pattern_mask

Weigh = Callable[[jax.Array], jax.Array]


def two_weights(apply: Callable[[jax.Array, jax.Array], jax.Array], forward: Weigh, backward: Weigh) -> Callable:
    """A bilinear y = apply(x, w) that computes with three weights.

    y = apply(x, forward(w)); dL/dx is that of apply(x, backward(w)); dL/dw that of apply(x, w), for every weight.

    Args:
      apply: linear in x and in w.
      forward, backward: w -> a weight of w's shape and dtype.

    Example:
      >>> f = two_weights(jnp.multiply, lambda w: 2 * w, lambda w: 3 * w)
      >>> y, pull = jax.vjp(f, jnp.float32(5), jnp.float32(1))
      >>> float(y), *map(float, pull(jnp.float32(1)))
      (10.0, 3.0, 5.0)
    """

    @jax.custom_vjp
    def compute(x, w):
        return apply(x, forward(w))

    def compute_fwd(x, w):
        return compute(x, w), (x, w)

    def compute_bwd(kept, cotangent):
        x, w = kept
        weight = backward(w)
        _, pull_x = jax.vjp(lambda x: apply(x, weight), x)
        _, pull_w = jax.vjp(lambda w: apply(x, w), w)
        return *pull_x(cotangent), *pull_w(cotangent)

    compute.defvjp(compute_fwd, compute_bwd)
    return compute


def largest(weight: jax.Array, pattern: NM, axes: Axes, path: str = "kernel") -> jax.Array:
    """The weight with zeros off its N largest |w| of every M; as it is where the pattern skips the shape.

    Example:
      >>> largest(jnp.array([[1.0], [-2.0]]), nm(1, 2), Axes((), (0,), (1,))).ravel().tolist()
      [0.0, -2.0]
    """
    if not pattern.check(path, weight.shape, axes):
        return weight
    mask = pattern_mask(pattern, jnp.abs(lax.stop_gradient(weight)), pattern.n, axes)
    return jnp.where(mask, weight, jnp.zeros_like(weight))


def bdwp_dot_general(
    n: int = 2,
    m: int = 8,
    indivisible: str = "raise",
    path: str = "kernel",
    dot: Callable[..., Any] = lax.dot_general,
) -> Callable[..., Any]:
    """`lax.dot_general` of activations and a kernel as BDWP computes it, for `dot_general=` of Dense and DenseGeneral.

    y = x (w ⊙ M_in), dL/dx = dL/dy (w ⊙ M_out)ᵀ, dL/dw = xᵀ dL/dy: M_in keeps the N largest |w| of every M along the
    last contracted axis of the kernel, M_out along its last other axis; batch axes hold separate kernels.

    Args:
      n, m: N weights kept of every M consecutive ones.
      indivisible: "raise", or "skip" (that pass sees the dense weight) where M does not divide the axis.
      path: what an error calls the kernel.
      dot: what computes each of the three products.

    Raises:
      ValueError: n, m or indivisible out of range; when computing: an axis that M does not divide.

    Example:
      >>> import flax.linen as nn
      >>> layer = nn.Dense(8, dot_general=bdwp_dot_general(2, 8))
      >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.ones((1, 8)))[0].shape
      (1, 8)

    Source: Fang et al. 2023, Efficient N:M Sparse DNN Training Using Algorithm, Architecture, and Dataflow Co-Design,
    arXiv:2309.13015.
    """
    along_inputs = nm(n, m, indivisible=indivisible)

    def dot_general(lhs: jax.Array, rhs: jax.Array, dimension_numbers: Any, *args: Any, **kwargs: Any) -> jax.Array:
        (_, contracted), (_, batch) = dimension_numbers
        rest = (axis for axis in range(rhs.ndim) if axis not in (*contracted, *batch))
        axes = Axes(tuple(sorted(batch)), tuple(sorted(contracted)), tuple(rest))
        along_outputs = nm(n, m, axes.outputs[-1] if axes.outputs else None, indivisible)
        computed = two_weights(
            lambda x, w: dot(x, w, dimension_numbers, *args, **kwargs),
            lambda w: largest(w, along_inputs, axes, path),
            lambda w: largest(w, along_outputs, axes, path),
        )
        return computed(lhs, rhs)

    return dot_general


def bdwp_conv(
    n: int = 2,
    m: int = 8,
    indivisible: str = "raise",
    path: str = "kernel",
    conv: Callable[..., Any] = lax.conv_general_dilated,
) -> Callable[..., Any]:
    """`lax.conv_general_dilated` as BDWP computes it, for `conv_general_dilated=` of Flax's Conv.

    The rule of `bdwp_dot_general`, with the kernel's input channels and output channels for its two axes; of a grouped
    convolution the output channels of one group.

    Args:
      n, m, indivisible, path: see `bdwp_dot_general`.
      conv: what computes each of the three products.

    Raises:
      ValueError: n, m or indivisible out of range; when computing: channels that M does not divide.

    Example:
      >>> import flax.linen as nn
      >>> layer = nn.Conv(8, (3, 3), conv_general_dilated=bdwp_conv(2, 8))
      >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.ones((1, 5, 5, 8)))[0].shape
      (1, 5, 5, 8)
    """
    along_inputs = nm(n, m, indivisible=indivisible)

    def conv_general_dilated(lhs: jax.Array, rhs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, kwargs.get("dimension_numbers"))
        out, channels, *space = numbers.rhs_spec
        axes = Axes((), (*space, channels), (out,))
        groups = kwargs.get("feature_group_count", 1)
        along_outputs = nm(n, m, out, indivisible)
        whole = list(rhs.shape)
        whole[out] //= groups

        def backward(w):
            return largest(w, along_outputs, axes, path) if along_outputs.check(path, tuple(whole), axes) else w

        computed = two_weights(
            lambda x, w: conv(x, w, *args, **kwargs),
            lambda w: largest(w, along_inputs, axes, path),
            backward,
        )
        return computed(lhs, rhs)

    return conv_general_dilated

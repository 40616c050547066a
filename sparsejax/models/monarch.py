"""Monarch matrices: products of two block-diagonal ones, with a fixed permutation after each."""

from __future__ import annotations

from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.models.fields import check_form

Model = TypeVar("Model", bound=nn.Module)


def monarch(model: Model, nblocks: int = 4) -> Model:
    """The model with Monarch layers in place of its dense ones: a GPT's feed-forward halves, an MLP's hidden layers.

    Raises:
      ValueError: the model has no such form, or nblocks is not an integer >= 1; when it is applied: a layer is too
        small for as many blocks.

    Example:
      >>> from sparsejax.models import MLP
      >>> model = monarch(MLP(10, features=(300, 100)))
      >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 784)))["params"]
      >>> shapes["Dense_0"]["kernel_in"].shape, shapes["Dense_0"]["kernel_out"].shape
      ((4, 196, 75), (4, 75, 75))
    """
    check_form(model, "monarch", "MLP, GPT")
    if not isinstance(nblocks, int) or isinstance(nblocks, bool) or nblocks < 1:
        raise ValueError(f"monarch: {nblocks!r} is not an integer >= 1")
    return model.clone(monarch=nblocks)


def sizes(inputs: int, outputs: int, nblocks: int) -> tuple[int, int, int]:
    """(p, q, s): inputs of a block of the first factor, outputs of it and inputs of one of the second, outputs of that.

    p = ⌈inputs / nblocks⌉, s = ⌈outputs / nblocks⌉, q = min(p, s): where blocks do not divide a side, it is padded by
    zeros. The factors have nblocks q (p + s) weights together.

    Raises:
      ValueError: q is below nblocks, so that some blocks would not reach all others.

    Example:
      >>> sizes(128, 512, 4)
      (32, 32, 128)
    """
    p, s = -(-inputs // nblocks), -(-outputs // nblocks)
    if min(p, s) < nblocks:
        raise ValueError(f"monarch: {nblocks} blocks are too many for a layer of {inputs} inputs, {outputs} outputs")
    return p, min(p, s), s


def multiply(x: jax.Array, first_KxPxQ: jax.Array, second_KxQxS: jax.Array, outputs: int) -> jax.Array:
    """x (..., inputs) times the Monarch matrix of these factors: (..., outputs).

    The k-th block of x, times the k-th block of the first factor; the results in a row, dealt out in turn to the
    blocks of the second factor; the outputs of its blocks taken in turn. Padding is cut off.
    """
    (blocks, p, q), lead = first_KxPxQ.shape, x.shape[:-1]
    x = jnp.pad(x, [(0, 0)] * len(lead) + [(0, blocks * p - x.shape[-1])]).reshape(*lead, blocks, p)
    y = jnp.einsum("...kp,kpq->...kq", x, first_KxPxQ)
    y = jnp.swapaxes(y.reshape(*lead, q, blocks), -1, -2)
    y = jnp.einsum("...kq,kqs->...ks", y, second_KxQxS)
    return jnp.swapaxes(y, -1, -2).reshape(*lead, -1)[..., :outputs]


def to_dense(factors: tuple[jax.Array, jax.Array], inputs: int, outputs: int) -> jax.Array:
    """The dense kernel (inputs, outputs) of a Monarch layer, for training on without its structure.

    Example:
      >>> to_dense((jnp.ones((2, 2, 2)), jnp.ones((2, 2, 2))), 4, 4).shape
      (4, 4)
    """
    return multiply(jnp.eye(inputs, dtype=factors[0].dtype), *factors, outputs)


def project(kernel_IxO: jax.Array, nblocks: int = 4) -> tuple[jax.Array, jax.Array]:
    """The factors of the Monarch matrix nearest to a dense kernel, in the sum of squared differences.

    The k-th block of inputs meets every nblocks-th output in a submatrix that no other pair of blocks touches, and
    that may have any rank up to its share of the q middle units: its truncated SVD is the best. With nblocks = √n that
    share is 1, the paper's rank-1 SVD. A kernel that is a Monarch matrix of as many blocks is recovered exactly.

    Args:
      kernel_IxO: inputs first, as in Flax.
      nblocks: blocks of each factor.

    Returns:
      (first (nblocks, p, q), second (nblocks, q, s)), see `sizes`; the singular values are split evenly.

    Raises:
      ValueError: the kernel is no matrix, or too small for as many blocks.

    Example:
      >>> first, second = project(jnp.ones((8, 6)), nblocks=2)
      >>> bool(jnp.allclose(to_dense((first, second), 8, 6), 1, atol=1e-5))
      True

    Source: Dao et al., Monarch: Expressive Structured Matrices for Efficient and Accurate Training (2022), and its
    official code.
    """
    if kernel_IxO.ndim != 2:
        raise ValueError(f"kernel: shape {kernel_IxO.shape} is not (inputs, outputs)")
    (inputs, outputs), blocks = kernel_IxO.shape, nblocks
    p, q, s = sizes(inputs, outputs, blocks)
    padded = jnp.pad(kernel_IxO, ((0, blocks * p - inputs), (0, blocks * s - outputs)))
    pairs_KxLxPxS = padded.reshape(blocks, p, s, blocks).transpose(0, 3, 1, 2)
    left, values, right = jnp.linalg.svd(pairs_KxLxPxS, full_matrices=False)
    root = jnp.sqrt(values)
    left, right = left * root[..., None, :], right * root[..., None]
    # The i-th middle unit of block k is number k q + i of all, and the i // nblocks-th that its pair has.
    block, unit = np.indices((blocks, q))
    place, to_block = np.divmod(block * q + unit, blocks)
    first = left[block, to_block, :, unit // blocks].transpose(0, 2, 1)
    second = jnp.zeros((blocks, q, s), right.dtype)
    return first, second.at[to_block, place].set(right[block, to_block, unit // blocks])


class MonarchDense(nn.Module):
    """A dense layer whose matrix is a Monarch matrix: nblocks q (p + s) weights and as many multiplications a row.

    Params: `kernel_in` (nblocks, p, q), `kernel_out` (nblocks, q, s), see `sizes`; `bias`. The default `where` takes
    both factors.

    Attributes:
      features: outputs.
      variance: of the weights of the dense layer that it stands for. Each factor starts normally, with
        nblocks / inputs and variance inputs / q, so that the outputs start with the dense layer's variance.
      nblocks: blocks of each factor.
      use_bias: whether a bias, from 0, is added.
      dtype: of the computation.

    Raises:
      ValueError: the layer is too small for as many blocks.

    Example:
      >>> layer = MonarchDense(512, variance=1 / 128)
      >>> shapes = jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((1, 128)))["params"]
      >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
      20992

    Source: Dao et al., Monarch (2022).
    """

    features: int
    variance: float
    nblocks: int = 4
    use_bias: bool = True
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x (..., inputs) -> (..., features)."""
        inputs = x.shape[-1]
        p, q, s = sizes(inputs, self.features, self.nblocks)
        normal = lambda variance: nn.initializers.normal(variance**0.5)
        first = self.param("kernel_in", normal(self.nblocks / inputs), (self.nblocks, p, q))
        second = self.param("kernel_out", normal(self.variance * inputs / q), (self.nblocks, q, s))
        dtype = jnp.dtype(self.dtype)
        y = multiply(x.astype(dtype), first.astype(dtype), second.astype(dtype), self.features)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(dtype)
        return y + bias.reshape((1,) * (y.ndim - 1) + (-1,))

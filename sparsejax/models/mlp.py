"""Multi-layer perceptrons: LeNet-300-100, the MLP of SET, and any other widths."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sparsejax.models.layers import batch_norm, chosen, float_dtype, initializer, variance
from sparsejax.models.monarch import MonarchDense
from sparsejax.models.roast import Roast, with_shared
from sparsejax.models.sparse_ift import SparseIFT, Where, transformed


class SReLU(nn.Module):
    """S-shaped ReLU with four learned numbers per unit.

    f(x) = t_r + a_r (x - t_r) for x >= t_r; x for t_l < x < t_r; t_l + a_l (x - t_l) for x <= t_l, where
    t_r = t_l + |t_right|. Params (D,): `t_left` (starts at 0), `a_left` (uniform on [0, 1)), `t_right` (uniform on
    [0, 5)), `a_right` (1).

    Source: Jin et al., Deep Learning with S-shaped Rectified Linear Activation Units (2016); starting values of
    keras-contrib, which SET's code uses.
    """

    dtype: Any = "float32"

    @nn.compact
    def __call__(self, x_BxD: jax.Array) -> jax.Array:
        """Activations of the input's shape."""
        starts: dict[str, Callable[..., jax.Array]] = {
            "t_left": nn.initializers.zeros, "a_left": nn.initializers.uniform(1.0),
            "t_right": nn.initializers.uniform(5.0), "a_right": nn.initializers.ones,
        }  # fmt: skip
        made = [self.param(name, start, x_BxD.shape[-1:]) for name, start in starts.items()]
        left, slope_left, gap, slope_right = (jnp.asarray(p, float_dtype(self.dtype))[None] for p in made)
        right = left + jnp.abs(gap)
        middle = jnp.clip(x_BxD, left, right)
        return middle + slope_left * jnp.minimum(x_BxD - left, 0) + slope_right * jnp.maximum(x_BxD - right, 0)


ACTIVATIONS = {"gelu": nn.gelu, "relu": nn.relu, "srelu": None, "tanh": nn.tanh}


class MLP(nn.Module):
    """Multi-layer perceptron with ReLU; features=(300, 100) is LeNet-300-100.

    Params: `Dense_0/kernel` (inputs, features[0]), `Dense_0/bias`, ..., the last layer has `classes` outputs;
    `SReLU_0/t_left`, ... with activation="srelu".

    Attributes:
      classes: number of outputs.
      features: widths of the hidden layers.
      activation: relu, srelu, tanh or gelu.
      dropout: rate after each hidden layer, in training (rng "dropout").
      initializer: of the kernels, see `layers.initializer`; biases start at 0.
      dtype: of activations; the last layer is float32.
      sparse_ift, monarch, roast: other layers in place of these, from the functions of these names in `models`.

    Source: LeNet-300-100, Y. LeCun et al., Gradient-based learning applied to document recognition, 1998.
    """

    classes: int
    features: Sequence[int] = (300, 100)
    activation: str = "relu"
    dropout: float = 0.0
    initializer: str = "lecun_normal"
    dtype: Any = "float32"
    sparse_ift: SparseIFT | None = None
    monarch: int | None = None
    roast: Roast | None = None

    @property
    def where(self) -> Where | None:
        """The leaves to sparsify; None: the default's."""
        return self.sparse_ift.where("Dense_0", f"Dense_{len(self.features)}") if self.sparse_ift else None

    @nn.compact
    def __call__(self, x_BxP: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits (B, classes) of a batch (B, ...), whose other axes are flattened."""
        return with_shared(self, lambda model, x: model._logits(x, train), lambda path: self.initializer, x_BxP)

    def _logits(self, x_BxP: jax.Array, train: bool) -> jax.Array:
        dtype, init = float_dtype(self.dtype), initializer(self.initializer)
        activation = chosen("activation", self.activation, ACTIVATIONS)
        x_BxD = x_BxP.reshape(x_BxP.shape[0], -1).astype(dtype)
        for index, width in enumerate(self.features):
            x_BxD = self._hidden(x_BxD, index, width, train)
            x_BxD = activation(x_BxD) if activation else SReLU(dtype)(x_BxD)
            x_BxD = nn.Dropout(self.dropout, deterministic=not train)(x_BxD) if self.dropout else x_BxD
        last = nn.Dense(self.classes, kernel_init=init, name=f"Dense_{len(self.features)}")
        return last(x_BxD.astype(jnp.float32))

    def _hidden(self, x_BxD: jax.Array, index: int, width: int, train: bool) -> jax.Array:
        """The index-th layer, in whatever form."""
        dtype, init, name, ift = float_dtype(self.dtype), initializer(self.initializer), f"Dense_{index}", None
        if self.monarch is not None:
            dense_variance = variance(self.initializer, (x_BxD.shape[-1], width))
            return MonarchDense(width, dense_variance, self.monarch, dtype=dtype, name=name)(x_BxD)
        if self.sparse_ift is not None:
            width, ift = self.sparse_ift.width(width), self.sparse_ift if index else None  # the first layer stays
        dense = lambda width, name, bias: nn.Dense(width, use_bias=bias, dtype=dtype, kernel_init=init, name=name)
        return transformed(ift, x_BxD, width, 1, name, dense, dense, lambda name: batch_norm(train, dtype, name))


def lenet_300_100(
    classes: int, *, dropout: float = 0.0, initializer: str = "glorot_normal", dtype: Any = "float32"
) -> MLP:
    """LeNet-300-100: an MLP of widths 300 and 100 with ReLU, for 28 x 28 images.

    Kernels start as in the lottery ticket paper: truncated normal of variance 2 / (fan_in + fan_out).

    Source: LeCun et al. (1998); Frankle & Carbin, The Lottery Ticket Hypothesis (2019).
    """
    return MLP(classes, (300, 100), dropout=dropout, initializer=initializer, dtype=dtype)


def set_mlp(
    classes: int,
    *,
    features: Sequence[int] = (4000, 1000, 4000),
    activation: str = "srelu",
    dropout: float = 0.3,
    initializer: str = "glorot_uniform",
    dtype: Any = "float32",
) -> MLP:
    """The MLP of SET: widths 4000-1000-4000, SReLU, dropout 0.3.

    The paper leaves the output layer dense: `where=sparsejax.except_("Dense_3/*")`. Kernels start at Keras' default,
    Glorot uniform.

    Source: Mocanu et al., Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity (2018),
    and its official code for CIFAR-10.
    """
    return MLP(classes, tuple(features), activation, dropout, initializer, dtype)

"""Multi-layer perceptron."""

from collections.abc import Sequence

import flax.linen as nn
import jax


class MLP(nn.Module):
    """Multi-layer perceptron with ReLU; features=(300, 100) is LeNet-300-100.

    Params: `Dense_0/kernel` (inputs, features[0]), `Dense_0/bias`, ..., the last layer has `classes` outputs.

    Attributes:
      classes: number of outputs.
      features: widths of the hidden layers.

    Source: LeNet-300-100, Y. LeCun et al., Gradient-based learning applied to document recognition, 1998.
    """

    classes: int
    features: Sequence[int] = (300, 100)

    @nn.compact
    def __call__(self, x_BxP: jax.Array) -> jax.Array:
        """Logits (B, classes) of a batch (B, ...), whose other axes are flattened."""
        x_BxD = x_BxP.reshape(x_BxP.shape[0], -1)
        for width in self.features:
            x_BxD = nn.relu(nn.Dense(width)(x_BxD))
        return nn.Dense(self.classes)(x_BxD)

"""LeNet-5: two convolutions, then dense layers."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from sparsejax.models.layers import as_images, batch_norm, float_dtype, head, initializer
from sparsejax.models.roast import Roast, with_shared
from sparsejax.models.sparse_ift import SparseIFT, Where, transformed


class LeNet5(nn.Module):
    """LeNet-5: two unpadded 5x5 convolutions (6, 16 channels) with 2x2 max pooling, then 120-84; for 28 x 28 images.

    Every layer but the last has ReLU. channels=(20, 50), features=(500,) are the sizes of Caffe's form, which SNIP and
    many other pruning papers use.
    Params: `conv1/kernel` (5, 5, C, 6), `conv2/kernel`, `fc1/kernel` (256, 120), `fc2/kernel`, `head/kernel`, biases.

    Attributes:
      classes: number of outputs.
      channels: of the two convolutions.
      features: widths of the hidden dense layers.
      initializer: of the kernels, see `layers.initializer`; biases start at 0.
      dtype: of activations; the head is float32.
      sparse_ift, roast: other layers in place of these, from `models.sparse_ift.sparse_ift`, `models.roast.roast`.

    Source: LeCun et al., Gradient-based learning applied to document recognition (1998), with the sizes of RigL's
    MNIST code; starting values: SNIP's (Glorot, variance 2 / (fan_in + fan_out)).
    """

    classes: int
    channels: Sequence[int] = (6, 16)
    features: Sequence[int] = (120, 84)
    initializer: str = "glorot_normal"
    dtype: Any = "float32"
    sparse_ift: SparseIFT | None = None
    roast: Roast | None = None

    @property
    def where(self) -> Where | None:
        """The leaves to sparsify; None: the default's."""
        return self.sparse_ift.where("conv1", "head") if self.sparse_ift else None

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits (B, classes) of images (B, H, W, C) or (B, H, W), at least 16 x 16."""
        return with_shared(self, lambda model, x: model._logits(x, train), lambda path: self.initializer, x_BxHxWxC)

    def _logits(self, x_BxHxWxC: jax.Array, train: bool) -> jax.Array:
        x = as_images(x_BxHxWxC, self.dtype)
        if min(x.shape[1:3]) < 16:
            raise ValueError(f"x: images of {x.shape[1]} x {x.shape[2]} are too small for LeNet-5: at least 16 x 16")
        options: dict[str, Any] = {"dtype": float_dtype(self.dtype), "kernel_init": initializer(self.initializer)}
        ift, wide = self.sparse_ift, self.sparse_ift.width if self.sparse_ift else int

        def conv(side: int) -> Callable[[int, str, bool], nn.Module]:
            return lambda width, name, bias: nn.Conv(
                width, (side, side), padding="VALID", use_bias=bias, name=name, **options
            )

        dense = lambda width, name, bias: nn.Dense(width, use_bias=bias, name=name, **options)
        norm = lambda name: batch_norm(train, self.dtype, name)
        for index, width in enumerate(self.channels, start=1):
            form = ift if index > 1 else None  # the first layer stays
            x = nn.relu(transformed(form, x, wide(width), 25, f"conv{index}", conv(5), conv(1), norm))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for index, width in enumerate(self.features, start=1):
            x = nn.relu(transformed(ift, x, wide(width), 1, f"fc{index}", dense, dense, norm))
        return head(x, self.classes, self.initializer)

"""Wide residual networks."""

from typing import Any

import flax.linen as nn
import jax

from sparsejax.models.layers import as_images, batch_norm, conv, head
from sparsejax.models.named_size import named_size
from sparsejax.models.roast import Roast, with_shared
from sparsejax.models.sparse_ift import SparseIFT, Where, square_conv


class WideBlock(nn.Module):
    """Norm and ReLU before each of two 3x3 convolutions; a 1x1 convolution as shortcut where the width changes.

    Params: `norm1/...`, `conv1/kernel`, `norm2/...`, `conv2/kernel`, and perhaps `shortcut/kernel`.
    """

    width: int
    stride: int
    dropout: float
    initializer: str
    dtype: Any
    sparse_ift: SparseIFT | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Images (B, H / stride, W / stride, width)."""
        ift = self.sparse_ift
        options: dict[str, Any] = {"init": self.initializer, "dtype": self.dtype, "train": train}
        y = nn.relu(batch_norm(train, self.dtype, "norm1")(x))
        if x.shape[-1] != self.width:
            x = square_conv(ift, y, self.width, 1, self.stride, name="shortcut", **options)
        y = square_conv(ift, y, self.width, 3, self.stride, name="conv1", **options)
        y = nn.relu(batch_norm(train, self.dtype, "norm2")(y))
        y = nn.Dropout(self.dropout, deterministic=not train)(y) if self.dropout else y
        return x + square_conv(ift, y, self.width, 3, name="conv2", **options)


class WideResNet(nn.Module):
    """Wide ResNet (pre-activation) for CIFAR: a stem of 16 channels, three stages of widths 16 k, 32 k and 64 k.

    Params: `stem/kernel`, `stage1_block1/conv1/kernel`, ..., `head_norm/...`, `head/kernel`, `head/bias`. Kernels start
    from N(0, 2 / fan_in), the head's too, as in the official PyTorch code.

    Attributes:
      classes: number of outputs.
      depth: number of convolutions in depth, 6 n + 4 for n blocks a stage.
      width: widening factor k.
      dropout: rate between the two convolutions of a block, in training (rng "dropout").
      initializer: of the kernels, see `layers.initializer`; biases start at 0.
      dtype: of activations; the head is float32.
      sparse_ift, roast: other layers in place of these, from `models.sparse_ift.sparse_ift`, `models.roast.roast`.

    Source: Zagoruyko & Komodakis, Wide Residual Networks (2016).
    """

    classes: int
    depth: int = 22
    width: int = 2
    dropout: float = 0.0
    initializer: str = "kaiming_fan_in"
    dtype: Any = "float32"
    sparse_ift: SparseIFT | None = None
    roast: Roast | None = None

    @property
    def where(self) -> Where | None:
        """The leaves to sparsify; None: the default's."""
        return self.sparse_ift.where("stem", "head") if self.sparse_ift else None

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits (B, classes) of images (B, H, W, C) or (B, H, W)."""
        return with_shared(self, lambda model, x: model._logits(x, train), lambda path: self.initializer, x_BxHxWxC)

    def _logits(self, x_BxHxWxC: jax.Array, train: bool) -> jax.Array:
        ift = self.sparse_ift
        wide = ift.width if ift else int
        x = as_images(x_BxHxWxC, self.dtype)
        x = conv(wide(16), 3, init=self.initializer, dtype=self.dtype, name="stem")(x)
        for stage in range(3):
            for index in range((self.depth - 4) // 6):
                stride = 2 if stage and not index else 1
                width, name = wide(16 * self.width * 2**stage), f"stage{stage + 1}_block{index + 1}"
                x = WideBlock(width, stride, self.dropout, self.initializer, self.dtype, ift, name=name)(x, train)
        x = nn.relu(batch_norm(train, self.dtype, "head_norm")(x))
        return head(x.mean((1, 2)), self.classes, self.initializer)


def wrn(
    classes: int,
    *,
    depth: int = 22,
    width: int = 2,
    dropout: float = 0.0,
    initializer: str = "kaiming_fan_in",
    dtype: Any = "float32",
) -> WideResNet:
    """Wide ResNet for CIFAR of any depth 6 n + 4 and widening factor; see `WideResNet`.

    Raises:
      ValueError: the depth is not 6 n + 4.

    Example:
      >>> wrn(10, depth=40, width=4).depth
      40
    """
    if depth < 10 or depth % 6 != 4:
        raise ValueError(f"depth: {depth} is not 10, 16, 22, 28, ... (6 n + 4)")
    return WideResNet(classes, depth, width, dropout, initializer, dtype)


wrn22_2 = named_size(wrn, "WRN-22-2 for CIFAR, the network of RigL's CIFAR-10 table.", depth=22, width=2)
wrn28_10 = named_size(wrn, "WRN-28-10 for CIFAR, 36.5 M weights.", depth=28, width=10)
wrn16_8 = named_size(wrn, "WRN-16-8 for CIFAR, one of SNIP's networks.", depth=16, width=8)

"""VGG with batch norm, in its form for CIFAR: one dense layer after the convolutions."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from sparsejax.models.layers import as_images, batch_norm, conv, head
from sparsejax.models.named_size import named_size


class VGG(nn.Module):
    """VGG with batch norm: five stages of 3x3 convolutions, 2x2 max pooling between them, a mean, one dense layer.

    Params: `stage1_conv1/kernel`, `stage1_norm1/...`, ..., `head/kernel`, `head/bias`; no biases in convolutions.
    Kernels start from N(0, 2 / fan_out), the head's from N(0, 0.01²), as in GraSP's code.

    Attributes:
      classes: number of outputs.
      convs: number of convolutions of each stage.
      width: channels of the first stage; they double from stage to stage up to eight times as many.
      initializer: of the convolutions, see `layers.initializer`; biases start at 0.
      dtype: of activations; the head is float32.

    Source: Simonyan & Zisserman, Very Deep Convolutional Networks (2015); for CIFAR, the codes of GraSP and open_lth.
    """

    classes: int
    convs: Sequence[int] = (2, 2, 3, 3, 3)
    width: int = 64
    initializer: str = "kaiming_fan_out"
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits (B, classes) of images (B, H, W, C) or (B, H, W)."""
        x = as_images(x_BxHxWxC, self.dtype)
        for stage, count in enumerate(self.convs, start=1):
            width = self.width * 2 ** min(stage - 1, 3)
            # SAME: images smaller than 16 x 16 shrink to one pixel and stay there.
            x = nn.max_pool(x, (2, 2), (2, 2), padding="SAME") if stage > 1 else x
            for index in range(1, count + 1):
                name = f"stage{stage}_conv{index}"
                x = conv(width, 3, init=self.initializer, dtype=self.dtype, name=name)(x)
                x = nn.relu(batch_norm(train, self.dtype, f"stage{stage}_norm{index}")(x))
        return head(x.mean((1, 2)), self.classes, "normal_0.01")


vgg11 = named_size(VGG, "VGG-11 with batch norm, for CIFAR.", convs=(1, 1, 2, 2, 2))
vgg16 = named_size(VGG, "VGG-16 with batch norm, for CIFAR.", convs=(2, 2, 3, 3, 3))
vgg19 = named_size(VGG, "VGG-19 with batch norm, for CIFAR.", convs=(2, 2, 4, 4, 4))

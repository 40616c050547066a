"""MobileNet-v1: depthwise convolutions, each followed by a 1x1 convolution."""

from typing import Any

import flax.linen as nn
import jax

from sparsejax.models.layers import as_images, batch_norm, conv, head

# channels at width 1 and stride of each block
_BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)),
    *((512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1)),
)  # fmt: skip


class MobileNetV1(nn.Module):
    """MobileNet-v1: a 3x3 stem of stride 2, 13 pairs of depthwise 3x3 and pointwise 1x1 convolutions, a head.

    Params: `stem/kernel` (3, 3, C, 32), `block1_depthwise/kernel` (3, 3, 1, 32), `block1_pointwise/kernel`
    (1, 1, 32, 64), their norms, ..., `head/kernel`, `head/bias`. RigL leaves the stem and the depthwise kernels dense:
    `where=sparsejax.except_("stem/*", "*_depthwise/*")`; the default takes them, too. Kernels start as in RigL's
    code, truncated normal of variance 1 / fan_in, the depthwise ones Glorot uniform.

    Attributes:
      classes: number of outputs.
      width: multiplier of all channels (1, 0.75, 0.5 and 0.25 in the paper).
      initializer: of the kernels that are not depthwise, see `layers.initializer`; biases start at 0.
      dtype: of activations; the head is float32.

    Source: Howard et al., MobileNets (2017).
    """

    classes: int
    width: float = 1.0
    initializer: str = "lecun_normal"
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits (B, classes) of images (B, H, W, C) or (B, H, W)."""

        def layer(x, name, width, kernel, stride=1, groups=1, init=self.initializer):
            x = conv(width, kernel, stride, init=init, dtype=self.dtype, name=name, groups=groups)(x)
            return nn.relu(batch_norm(train, self.dtype, f"{name}_norm")(x))

        x = layer(as_images(x_BxHxWxC, self.dtype), "stem", _channels(32, self.width), 3, 2)
        for index, (width, stride) in enumerate(_BLOCKS, start=1):
            before = x.shape[-1]
            x = layer(x, f"block{index}_depthwise", before, 3, stride, before, "glorot_uniform")
            x = layer(x, f"block{index}_pointwise", _channels(width, self.width), 1)
        return head(x.mean((1, 2)), self.classes, self.initializer)


def _channels(width: int, multiplier: float) -> int:
    """Channels at a width multiplier, at least 1."""
    return max(1, int(width * multiplier))

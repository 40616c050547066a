"""Residual networks: the CIFAR form of depth 6 n + 2, and ResNet-18 and -50 for ImageNet or CIFAR."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sparsejax.models.layers import as_images, batch_norm, chosen, conv, head
from sparsejax.models.named_size import named_size
from sparsejax.models.roast import Roast, with_shared
from sparsejax.models.sparse_ift import SparseIFT, Where, square_conv

STEMS = {"cifar": (3, 1), "imagenet": (7, 2)}  # kernel and stride
SHORTCUTS = {"projection": False, "pad": True}


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or 1x1, 3x3 (with the stride), 1x1 to four times the width.

    Params: `conv1/kernel`, `norm1/scale`, `norm1/bias`, ...; `shortcut/kernel`, `shortcut_norm/...` where the shape
    changes and the shortcut is a projection. With parallel branches, each has its norm, and there is no other.
    """

    width: int
    stride: int
    bottleneck: bool
    pad: bool
    last_scale: float
    initializer: str
    dtype: Any
    sparse_ift: SparseIFT | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Images (B, H / stride, W / stride, width or 4 width)."""
        ift, branched = self.sparse_ift, self.sparse_ift is not None and self.sparse_ift.branches > 1
        options: dict[str, Any] = {"init": self.initializer, "dtype": self.dtype, "train": train}
        plan = [(self.width, 3, self.stride), (self.width, 3, 1)]
        if self.bottleneck:
            plan = [(self.width, 1, 1), (self.width, 3, self.stride), (4 * self.width, 1, 1)]
        y = x
        for index, (width, kernel, stride) in enumerate(plan, start=1):
            last = index == len(plan)
            scale = self.last_scale if last else 1.0
            y = square_conv(ift, y, width, kernel, stride, name=f"conv{index}", scale=scale, **options)
            y = y if branched else batch_norm(train, self.dtype, f"norm{index}", scale)(y)
            y = y if last else nn.relu(y)
        if x.shape == y.shape:
            return nn.relu(x + y)
        if self.pad:
            extra = y.shape[-1] - x.shape[-1]
            x = x[:, :: self.stride, :: self.stride]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))
        else:
            x = square_conv(ift, x, y.shape[-1], 1, self.stride, name="shortcut", **options)
            x = x if branched else batch_norm(train, self.dtype, "shortcut_norm")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Residual network (post-activation): a stem, stages of blocks that double the width and halve the image, a head.

    Params: `stem/kernel`, `stem_norm/...`, `stage1_block1/conv1/kernel`, ..., `head/kernel`, `head/bias`. The default
    `where` takes every convolution and the head. Uniform sparsity in the papers leaves the stem dense:
    `where=except_("stem/*")`.

    Attributes:
      classes: number of outputs.
      blocks: number of blocks of each stage.
      width: channels of the first stage (of the stem, too); each stage doubles them.
      bottleneck: blocks of 1x1, 3x3, 1x1 convolutions with four times the width at their ends.
      stem: "imagenet" (7x7, stride 2, then 3x3 max pooling with stride 2) or "cifar" (3x3, stride 1).
      shortcut: where the shape changes: "projection" (1x1 convolution and norm) or "pad" (option A: every second
        pixel, zeros for the new channels; no params).
      zero_init: starts the last norm of each block at 0, so that it begins as the identity. Then most gradients are 0
        at the first step: not for pruning at initialisation.
      initializer, head_initializer: of the kernels, see `layers.initializer`; biases start at 0.
      dtype: of activations; the head is float32.
      sparse_ift, roast: other layers in place of these, from `models.sparse_ift.sparse_ift`, `models.roast.roast`.

    Example:
      >>> model = ResNet(10, blocks=(1, 1), width=4)
      >>> jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8, 8)))["params"]["stem"]["kernel"].shape
      (3, 3, 1, 4)

    Source: He et al., Deep Residual Learning for Image Recognition (2016).
    """

    classes: int
    blocks: Sequence[int]
    width: int
    bottleneck: bool = False
    stem: str = "cifar"
    shortcut: str = "projection"
    zero_init: bool = False
    initializer: str = "kaiming_fan_in"
    head_initializer: str = "kaiming_fan_in"
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
        init_of = lambda path: self.head_initializer if path.startswith("head") else self.initializer
        return with_shared(self, lambda model, x: model._logits(x, train), init_of, x_BxHxWxC)

    def _logits(self, x_BxHxWxC: jax.Array, train: bool) -> jax.Array:
        kernel, stride = chosen("stem", self.stem, STEMS)
        pad = chosen("shortcut", self.shortcut, SHORTCUTS)
        x = as_images(x_BxHxWxC, self.dtype)
        wide = self.sparse_ift.width(self.width) if self.sparse_ift else self.width
        x = conv(wide, kernel, stride, init=self.initializer, dtype=self.dtype, name="stem")(x)
        x = nn.relu(batch_norm(train, self.dtype, "stem_norm")(x))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, count in enumerate(self.blocks):
            for index in range(count):
                stride = 2 if stage and not index else 1
                block = Block(
                    wide * 2**stage, stride, self.bottleneck, pad, 0.0 if self.zero_init else 1.0, self.initializer,
                    self.dtype, self.sparse_ift, name=f"stage{stage + 1}_block{index + 1}",
                )  # fmt: skip
                x = block(x, train)
        return head(x.mean((1, 2)), self.classes, self.head_initializer)


def resnet_cifar(
    classes: int,
    *,
    depth: int = 20,
    width: int = 16,
    shortcut: str = "projection",
    initializer: str = "kaiming_fan_in",
    dtype: Any = "float32",
) -> ResNet:
    """ResNet for CIFAR of depth 6 n + 2: three stages of n blocks, widths 16-32-64.

    He et al. pad the shortcuts (`shortcut="pad"`, option A); most sparsity codes (open_lth) project. Kernels, the
    head's too, start from N(0, 2 / fan_in), as open_lth's do.

    Raises:
      ValueError: the depth is not 6 n + 2.

    Example:
      >>> resnet_cifar(10, depth=44).blocks
      (7, 7, 7)

    Source: He et al. (2016), section 4.2; the official code of Frankle et al., Linear Mode Connectivity (2020).
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth: {depth} is not 8, 14, 20, ... (6 n + 2)")
    blocks = (depth // 6,) * 3
    return ResNet(
        classes, blocks, width, shortcut=shortcut, initializer=initializer, head_initializer=initializer, dtype=dtype
    )


def _imagenet(
    classes: int,
    *,
    blocks: Sequence[int],
    bottleneck: bool,
    stem: str = "imagenet",
    width: int = 64,
    zero_init: bool = False,
    initializer: str = "kaiming_fan_out",
    dtype: Any = "float32",
) -> ResNet:
    return ResNet(
        classes, blocks, width, bottleneck, stem, zero_init=zero_init, initializer=initializer,
        head_initializer="torch_default", dtype=dtype,
    )  # fmt: skip


resnet20 = named_size(resnet_cifar, "ResNet-20 for CIFAR, see `resnet_cifar`.", depth=20)
resnet32 = named_size(resnet_cifar, "ResNet-32 for CIFAR, see `resnet_cifar`.", depth=32)
resnet56 = named_size(resnet_cifar, "ResNet-56 for CIFAR, see `resnet_cifar`.", depth=56)
resnet110 = named_size(resnet_cifar, "ResNet-110 for CIFAR, see `resnet_cifar`.", depth=110)
resnet18 = named_size(
    _imagenet,
    """ResNet-18 for ImageNet, or with stem="cifar" for CIFAR.

    Kernels start from N(0, 2 / fan_out), the head uniform on ±1 / √fan_in, as in torchvision.
    """,
    blocks=(2, 2, 2, 2),
    bottleneck=False,
)
resnet50 = named_size(
    _imagenet,
    """ResNet-50 v1.5 for ImageNet, or with stem="cifar" for CIFAR.

    v1.5: the stride is in the 3x3 convolution. Starting values as `resnet18`.
    """,
    blocks=(3, 4, 6, 3),
    bottleneck=True,
)

"""Vision transformers."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.leaves import Layout, flax_layout, stacked
from sparsejax.models.layers import as_images, chosen, float_dtype, head, initializer
from sparsejax.models.named_size import named_size
from sparsejax.models.vit_block import TransformerBlock

POSITIONS = {"learned": True, "sincos": False}
POOLS = {"token": True, "gap": False}


class ViT(nn.Module):
    """Vision transformer of any size: patch embedding, pre-norm transformer blocks, a norm, a class token or a mean.

    Params: `patch_embed/kernel` (P, P, C, D), `cls_token` (1, 1, D), `pos_embed` (1, L, D), `block_0/attention/
    query/kernel` (D, D), ..., `final_norm/...`, `head/kernel`. With scan, in place of `block_0`, `block_1`, ..., one
    `blocks` with a leading axis of `depth`: pass `layout=model.layout` to the method, so that each layer is ranked by
    itself. `stack_blocks` and `unstack_blocks` convert.

    The default `where` takes attention, MLP and head kernels, not the patch embedding. `except_("*/attention/*",
    "head/*")` leaves the MLPs.

    All kernels, positions and the class token start from N(0, 0.02²), the patch embedding uniform on ±1 / √fan_in,
    biases at 0, as in DeiT's code.

    Attributes:
      classes: number of outputs.
      width, depth, heads: D, number of blocks, attention heads; the heads divide the width.
      mlp_width: hidden width of the MLPs; None is 4 width.
      patch: side of a patch; it divides the image's sides.
      positions: "learned" (for the class token, too) or "sincos" (fixed, over rows and columns).
      pool: "token" (class token) or "gap" (mean of the patches).
      dropout: rate after the embedding and each branch, in training (rng "dropout").
      stochastic_depth: probability that a sample skips the last block's branches, in training (rng "dropout"); the
        first block's is 0, those between rise linearly.
      activation: "gelu" (exact), "gelu_tanh" or "relu".
      qkv_bias: biases of queries, keys and values.
      norm_epsilon: of the layer norms.
      scan: blocks as one scan: compiles faster, params are stacked.
      remat: recompute each block's activations in the backward pass.
      dtype: of activations; the head is float32.

    Example:
      >>> model = vit_ti(10, patch=4, scan=True)
      >>> params = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))["params"]
      >>> params["blocks"]["attention"]["query"]["kernel"].shape
      (12, 192, 192)

    Source: Dosovitskiy et al., An Image is Worth 16x16 Words (2021); Touvron et al., Training data-efficient image
    transformers (2021); mean and fixed positions as in Beyer et al., Better plain ViT baselines for ImageNet-1k (2022).
    """

    classes: int
    width: int = 192
    depth: int = 12
    heads: int = 3
    mlp_width: int | None = None
    patch: int = 16
    positions: str = "learned"
    pool: str = "token"
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    activation: str = "gelu"
    qkv_bias: bool = True
    norm_epsilon: float = 1e-6
    scan: bool = False
    remat: bool = False
    dtype: Any = "float32"

    @property
    def layout(self) -> Layout:
        """The layout for sparse methods: which axes of the leaves are inputs, outputs and stacked layers."""
        return stacked("blocks/*") if self.scan else flax_layout

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits (B, classes) of images (B, H, W, C) or (B, H, W)."""
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} do not divide the width {self.width}")
        if not 0 <= self.stochastic_depth < 1:
            raise ValueError(f"stochastic_depth: {self.stochastic_depth} is not in [0, 1)")
        token = chosen("pool", self.pool, POOLS)
        x_BxLxD = self._embedded(as_images(x_BxHxWxC, self.dtype), token)
        if self.dropout:
            x_BxLxD = nn.Dropout(self.dropout, deterministic=not train)(x_BxLxD)
        x_BxLxD = self._transformed(x_BxLxD, train)
        x_BxLxD = nn.LayerNorm(self.norm_epsilon, dtype=float_dtype(self.dtype), name="final_norm")(x_BxLxD)
        return head(x_BxLxD[:, 0] if token else x_BxLxD.mean(1), self.classes, "normal_0.02")

    def _embedded(self, x_BxHxWxC: jax.Array, token: bool) -> jax.Array:
        """Patches as tokens (B, L, D) with their positions, the class token first."""
        batch, height, width, _ = x_BxHxWxC.shape
        if height % self.patch or width % self.patch:
            raise ValueError(f"patch: {self.patch} does not divide the sides of images of {height} x {width}")
        dtype, patch = float_dtype(self.dtype), (self.patch, self.patch)
        embed = nn.Conv(
            self.width, patch, patch, padding="VALID", dtype=dtype, kernel_init=initializer("torch_default"),
            name="patch_embed",
        )  # fmt: skip
        x_BxLxD = embed(x_BxHxWxC).reshape(batch, -1, self.width)
        learned = chosen("positions", self.positions, POSITIONS)
        if not learned:
            grid = (height // self.patch, width // self.patch)
            x_BxLxD = x_BxLxD + jnp.asarray(sincos_positions(*grid, self.width), dtype)[None]
        start = initializer("normal_0.02")
        if token:
            cls_1x1xD = self.param("cls_token", start, (1, 1, self.width)).astype(dtype)
            x_BxLxD = jnp.concatenate([jnp.broadcast_to(cls_1x1xD, (batch, 1, self.width)), x_BxLxD], axis=1)
        if learned:
            x_BxLxD = x_BxLxD + self.param("pos_embed", start, (1, *x_BxLxD.shape[1:])).astype(dtype)
        return x_BxLxD

    def _transformed(self, x_BxLxD: jax.Array, train: bool) -> jax.Array:
        """Tokens after all blocks."""
        block = nn.remat(TransformerBlock, prevent_cse=not self.scan) if self.remat else TransformerBlock
        options: dict[str, Any] = dict(
            heads=self.heads, mlp_width=self.mlp_width or 4 * self.width, dropout=self.dropout,
            drops_paths=self.stochastic_depth > 0, activation=self.activation, qkv_bias=self.qkv_bias,
            norm_epsilon=self.norm_epsilon, train=train, dtype=float_dtype(self.dtype),
        )  # fmt: skip
        rates = jnp.linspace(0.0, self.stochastic_depth, self.depth)
        if self.scan:
            rngs: dict[Any, bool] = {"params": True, "dropout": True}
            blocks = nn.scan(block, variable_axes={"params": 0}, split_rngs=rngs, in_axes=0, length=self.depth)
            return blocks(**options, name="blocks")(x_BxLxD, rates)[0]
        for index in range(self.depth):
            x_BxLxD, _ = block(**options, name=f"block_{index}")(x_BxLxD, rates[index])
        return x_BxLxD


def sincos_positions(rows: int, columns: int, width: int) -> np.ndarray:
    """Fixed positions (rows columns, width) of a grid, row after row: sin x ω, cos x ω, sin y ω, cos y ω.

    ω = 10000^(-k / (K - 1)) for k = 0, ..., K - 1, where K = width / 4.

    Raises:
      ValueError: 4 does not divide the width, or it is below 8.

    Example:
      >>> sincos_positions(1, 2, 8)[0].tolist()
      [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]

    Source: Beyer et al. (2022), and its code in big_vision.
    """
    if width < 8 or width % 4:
        raise ValueError(f"width: {width} is not 8, 12, 16, ...; positions='sincos' needs a multiple of 4")
    omega = 10000.0 ** -np.linspace(0, 1, width // 4)
    y, x = (np.outer(axis.ravel(), omega) for axis in np.mgrid[:rows, :columns])
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)


vit_ti = named_size(ViT, "ViT-Ti: width 192, 12 blocks, 3 heads.", width=192, depth=12, heads=3)
vit_s = named_size(ViT, "ViT-S: width 384, 12 blocks, 6 heads.", width=384, depth=12, heads=6)
vit_b = named_size(ViT, "ViT-B: width 768, 12 blocks, 12 heads.", width=768, depth=12, heads=12)

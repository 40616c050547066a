"""The blocks of a vision transformer."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sparsejax.models.layers import chosen, initializer

ACTIVATIONS = {"gelu": lambda x: nn.gelu(x, approximate=False), "gelu_tanh": nn.gelu, "relu": nn.relu}


class Attention(nn.Module):
    """Multi-head self-attention; params `query/kernel`, `key/kernel`, `value/kernel`, `out/kernel`, each (D, D)."""

    heads: int
    qkv_bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        """Mixed tokens (B, L, D)."""
        width = x_BxLxD.shape[-1]
        options: dict[str, Any] = {"dtype": self.dtype, "kernel_init": initializer("normal_0.02")}

        def project(name):
            x = nn.Dense(width, use_bias=self.qkv_bias, name=name, **options)(x_BxLxD)
            return x.reshape(*x.shape[:2], self.heads, width // self.heads)

        mixed_BxLxHxE = jax.nn.dot_product_attention(project("query"), project("key"), project("value"))
        return nn.Dense(width, name="out", **options)(mixed_BxLxHxE.reshape(x_BxLxD.shape))


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Params: `norm1/...`, `attention/...`, `norm2/...`, `mlp_in/kernel` (D, M), `mlp_out/kernel` (M, D), biases.
    """

    heads: int
    mlp_width: int
    dropout: float
    drops_paths: bool
    activation: str
    qkv_bias: bool
    norm_epsilon: float
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, drop_rate: jax.Array) -> tuple[jax.Array, None]:
        """Tokens (B, L, D), and None: the form that `nn.scan` needs. Whole branches drop with probability drop_rate."""
        options: dict[str, Any] = {"dtype": self.dtype, "kernel_init": initializer("normal_0.02")}
        norm = lambda name: nn.LayerNorm(self.norm_epsilon, dtype=self.dtype, name=name)
        y = Attention(self.heads, self.qkv_bias, self.dtype, name="attention")(norm("norm1")(x_BxLxD))
        x_BxLxD = x_BxLxD + self._regularized(y, drop_rate)
        y = nn.Dense(self.mlp_width, name="mlp_in", **options)(norm("norm2")(x_BxLxD))
        y = chosen("activation", self.activation, ACTIVATIONS)(y)
        y = nn.Dense(x_BxLxD.shape[-1], name="mlp_out", **options)(y)
        return x_BxLxD + self._regularized(y, drop_rate), None

    def _regularized(self, branch_BxLxD: jax.Array, drop_rate: jax.Array) -> jax.Array:
        """Dropout, and stochastic depth: a sample's whole branch is 0, or scaled up."""
        if not self.train:
            return branch_BxLxD
        if self.dropout:
            branch_BxLxD = nn.Dropout(self.dropout, deterministic=False)(branch_BxLxD)
        if self.drops_paths:
            shape = (branch_BxLxD.shape[0], 1, 1)
            kept_Bx1x1 = jax.random.bernoulli(self.make_rng("dropout"), 1 - drop_rate, shape)
            branch_BxLxD = jnp.where(kept_Bx1x1, branch_BxLxD / (1 - drop_rate).astype(branch_BxLxD.dtype), 0)
        return branch_BxLxD

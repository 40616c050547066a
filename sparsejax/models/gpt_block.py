"""The block of a GPT: causal self-attention and a feed-forward half, each behind a norm."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.models import attention as attentions
from sparsejax.models.monarch import MonarchDense

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_new": partial(nn.gelu, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
}


class Spec(NamedTuple):
    """What all blocks of a GPT share; the fields of `GPT`, resolved."""

    width: int
    heads: int
    kv_heads: int
    mlp_width: int
    context: int
    rotary: bool
    attention: attentions.Attention
    activation: str
    bias: bool
    dropout: float
    norm_epsilon: float
    residual_std: float
    dtype: Any
    train: bool
    decode: bool
    monarch: int | None = None

    def dense(self, features: int, name: str, std: float = 0.02) -> nn.Dense:
        """A linear layer, initialised normally."""
        init = nn.initializers.normal(std)
        return nn.Dense(features, use_bias=self.bias, dtype=self.dtype, kernel_init=init, name=name)

    def wide(self, features: int, name: str, std: float = 0.02) -> nn.Module:
        """A linear layer of the feed-forward half: dense, or of Monarch matrices."""
        if self.monarch is None:
            return self.dense(features, name, std)
        return MonarchDense(features, std**2, self.monarch, self.bias, self.dtype, name=name)

    def norm(self, name: str) -> nn.LayerNorm:
        """A layer norm; its statistics are float32."""
        return nn.LayerNorm(self.norm_epsilon, self.dtype, use_bias=self.bias, name=name)

    def drop(self) -> nn.Dropout:
        """Dropout, in training alone."""
        return nn.Dropout(self.dropout, deterministic=not self.train)


class SelfAttention(nn.Module):
    """Causal self-attention with separate kernels `query`, `key`, `value` (inputs first) and `out`."""

    spec: Spec

    @nn.compact
    def __call__(self, x_BxLxE: jax.Array, offset: int | jax.Array) -> jax.Array:
        """x_BxLxE of positions offset, offset + 1, ..."""
        spec, (batch, length, _) = self.spec, x_BxLxE.shape
        size = spec.width // spec.heads

        def heads(count: int, name: str) -> jax.Array:
            return spec.dense(count * size, name)(x_BxLxE).reshape(batch, length, count, size)

        q_BxLxHxD, k_BxLxKxD = heads(spec.heads, "query"), heads(spec.kv_heads, "key")
        v_BxLxKxD = heads(spec.kv_heads, "value")
        if spec.rotary:
            q_BxLxHxD = attentions.rotary(q_BxLxHxD, offset=offset)
            k_BxLxKxD = attentions.rotary(k_BxLxKxD, offset=offset)
        if spec.decode:
            k_BxMxKxD = self._remembered("keys", k_BxLxKxD, offset)
            v_BxMxKxD = self._remembered("values", v_BxLxKxD, offset)
            out_BxLxHxD = attentions.over_cache(spec.attention, q_BxLxHxD, k_BxMxKxD, v_BxMxKxD, offset)
        elif spec.attention is attentions.dense:
            out_BxLxHxD = attentions.dense(q_BxLxHxD, k_BxLxKxD, v_BxLxKxD, drop=spec.drop())
        else:
            out_BxLxHxD = spec.attention(q_BxLxHxD, k_BxLxKxD, v_BxLxKxD)
        out_BxLxE = out_BxLxHxD.reshape(batch, length, spec.width)
        return spec.drop()(spec.dense(spec.width, "out", spec.residual_std)(out_BxLxE))

    def _remembered(self, name: str, new_BxLxKxD: jax.Array, offset: int | jax.Array) -> jax.Array:
        """What the cache holds, of all positions, after the new ones are written to it."""
        batch, _, heads, size = new_BxLxKxD.shape
        cached = self.variable("cache", name, jnp.zeros, (batch, self.spec.context, heads, size), new_BxLxKxD.dtype)
        cached.value = lax.dynamic_update_slice_in_dim(cached.value, new_BxLxKxD, offset, axis=1)
        return cached.value


class MLP(nn.Module):
    """The feed-forward half of a block: `up`, activation, `down`."""

    spec: Spec

    @nn.compact
    def __call__(self, x_BxLxE: jax.Array) -> jax.Array:
        """x_BxLxE -> x_BxLxE."""
        hidden_BxLxF = ACTIVATIONS[self.spec.activation](self.spec.wide(self.spec.mlp_width, "up")(x_BxLxE))
        return self.spec.drop()(self.spec.wide(self.spec.width, "down", self.spec.residual_std)(hidden_BxLxF))


class Block(nn.Module):
    """Attention, then feed-forward, each added to what went in, behind a norm."""

    spec: Spec

    @nn.compact
    def __call__(self, x_BxLxE: jax.Array, offset: int | jax.Array) -> jax.Array:
        """x_BxLxE of positions offset, offset + 1, ..."""
        normed_BxLxE = self.spec.norm("attention_norm")(x_BxLxE)
        x_BxLxE = x_BxLxE + SelfAttention(self.spec, name="attention")(normed_BxLxE, offset)
        return x_BxLxE + MLP(self.spec, name="mlp")(self.spec.norm("mlp_norm")(x_BxLxE))

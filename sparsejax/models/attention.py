"""Causal attention as one function (q, k, v) -> out: the dense one, names for configs, rotary positions, a cache.

B sequences, L queries, M keys, H query heads, K key heads (K divides H: a key head serves H / K query heads in a row),
D numbers in each.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

Attention = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def dense(
    q_BxLxHxD: jax.Array,
    k_BxMxKxD: jax.Array,
    v_BxMxKxD: jax.Array,
    *,
    offset: int | jax.Array = 0,
    drop: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Causal softmax attention: out_i = Σ_{j <= offset + i} softmax_j(q_i k_j / √D) v_j, in float32 up to the weights.

    Args:
      q_BxLxHxD: queries, of positions offset, offset + 1, ...
      k_BxMxKxD, v_BxMxKxD: keys and values of positions 0, 1, ...; K divides H.
      offset: position of the first query.
      drop: dropout of the weights (B, K, H / K, L, M); None is none.

    Returns:
      (B, L, H, D), in the dtype of v.

    Example:
      >>> q, k = jnp.ones((1, 5, 4, 8)), jnp.ones((1, 5, 2, 8))
      >>> dense(q, k, k).shape
      (1, 5, 4, 8)

    Source: Vaswani et al. 2017, arXiv:1706.03762; key heads shared by groups, Ainslie et al. 2023, arXiv:2305.13245.
    """
    batch, length, heads, width = q_BxLxHxD.shape
    keys, groups = k_BxMxKxD.shape[1:3]
    q_BxLxKxGxD = q_BxLxHxD.reshape(batch, length, groups, heads // groups, width)
    scores_BxKxGxLxM = jnp.einsum("blkgd,bmkd->bkglm", q_BxLxKxGxD, k_BxMxKxD, preferred_element_type=jnp.float32)
    seen_LxM = jnp.arange(keys)[None, :] <= jnp.arange(length)[:, None] + offset
    scores_BxKxGxLxM = jnp.where(seen_LxM[None, None, None], scores_BxKxGxLxM / math.sqrt(width), -jnp.inf)
    weights_BxKxGxLxM = jax.nn.softmax(scores_BxKxGxLxM).astype(v_BxMxKxD.dtype)
    if drop is not None:
        weights_BxKxGxLxM = drop(weights_BxKxGxLxM)
    out_BxLxKxGxD = jnp.einsum("bkglm,bmkd->blkgd", weights_BxKxGxLxM, v_BxMxKxD)
    return out_BxLxKxGxD.reshape(q_BxLxHxD.shape)


# name in a config -> causal attention of whole sequences
ATTENTIONS: dict[str, Attention] = {"dense": dense}


def named_attention(attention: str | Attention) -> Attention:
    """The function that a name stands for; functions as they are.

    Raises:
      ValueError: no attention has this name.

    Example:
      >>> named_attention("dense") is dense
      True
    """
    if callable(attention):
        return attention
    if not isinstance(attention, str) or attention not in ATTENTIONS:
        raise ValueError(f"attention: unknown {attention!r}; one of {', '.join(sorted(ATTENTIONS))}, or a function")
    return ATTENTIONS[attention]


def over_cache(
    attention: Attention, q_BxLxHxD: jax.Array, k_BxMxKxD: jax.Array, v_BxMxKxD: jax.Array, offset: int | jax.Array
) -> jax.Array:
    """Causal attention of the queries at positions offset, offset + 1, ... over keys and values of all M positions.

    `dense` computes these rows alone. Any other function sees M queries, zeros at the other positions, which change no
    row but their own; so a function that wants whole sequences works here too.
    """
    if attention is dense:
        return dense(q_BxLxHxD, k_BxMxKxD, v_BxMxKxD, offset=offset)
    batch, length, heads, width = q_BxLxHxD.shape
    zeros = jnp.zeros((batch, k_BxMxKxD.shape[1], heads, width), q_BxLxHxD.dtype)
    q_BxMxHxD = lax.dynamic_update_slice_in_dim(zeros, q_BxLxHxD, offset, axis=1)
    return lax.dynamic_slice_in_dim(attention(q_BxMxHxD, k_BxMxKxD, v_BxMxKxD), offset, length, axis=1)


def rotary(x_BxLxHxD: jax.Array, *, offset: int | jax.Array = 0, base: float = 10_000.0) -> jax.Array:
    """Turns each pair (x_d, x_{d + D/2}) of position p by the angle p base^(-2d/D), so that q k depends on p_q - p_k.

    Args:
      x_BxLxHxD: queries or keys, D even.
      offset: position of the first.
      base: sets the longest wavelength, 2π base.

    Example:
      >>> x = jnp.ones((1, 3, 1, 4))
      >>> bool(jnp.allclose(rotary(x)[:, 0], x[:, 0]))
      True

    Source: Su et al. 2021, arXiv:2104.09864, with the pairs half of D apart.
    """
    length, width = x_BxLxHxD.shape[1], x_BxLxHxD.shape[-1]
    rates = base ** (-2.0 / width * jnp.arange(width // 2))
    angles = ((jnp.arange(length) + offset)[:, None] * rates[None])[None, :, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x_BxLxHxD.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BxLxHxD.dtype)

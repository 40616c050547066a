"""Random keys, computed from the index where they are read, so that no random number is stored."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sparsejax.selection.keys import Scores
from sparsejax.selection.slices import index_words


def lots(key: jax.Array, shape: tuple[int, ...]) -> Scores:
    """Random uint32 keys in [1, 2^32 - 2], each from its flat index and the PRNG key alone.

    Args:
      key: a PRNG key.
      shape: of the keys.
    """
    words = key_words(key)

    def keys(zero, words):
        return drawn([index(zero) for index, _ in index_words(shape, tuple(range(len(shape))))], words)

    return Scores(keys, (jnp.uint32(0), words))


def key_words(key: jax.Array) -> jax.Array:
    """Two words of a PRNG key."""
    words = jax.random.key_data(key).reshape(-1).astype(jnp.uint32)
    return jnp.stack([words[0], words[-1]])


def drawn(index: list[jax.Array], words: jax.Array) -> jax.Array:
    """The keys at an index of one or two words (the leading one first).

    Rounds of a mixing function on 32-bit words, each a permutation, so that indices below 2^32 hardly ever tie.
    Multipliers and shifts: Wellons 2018, "Prospecting for hash functions".
    """
    mixed = words[0]
    for word in index:
        mixed = _mix(mixed ^ word)
    return jnp.clip(_mix(mixed + words[1]), jnp.uint32(1), jnp.uint32(2**32 - 2))


def _mix(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)

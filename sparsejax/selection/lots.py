"""Random keys, computed from the index where they are read, so that no random number is stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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


def drawn(index: Sequence[Any], words: Any) -> Any:
    """The keys at an index of one or two words (the leading one first), of JAX or of NumPy as they are.

    Rounds of a mixing function on 32-bit words, each a permutation, so that indices below 2^32 hardly ever tie.
    Multipliers and shifts: Wellons 2018, "Prospecting for hash functions".
    """
    mixed = words[0]
    for word in index:
        mixed = _mix(mixed ^ word)
    return _mix(mixed + words[1]).clip(np.uint32(1), np.uint32(2**32 - 2))


def _mix(x: Any) -> Any:
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))

"""Scores as unsigned integers in the same order, by their bit patterns."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


@dataclasses.dataclass(frozen=True)
class Scores:
    """Keys of one leaf, computed where they are read: `keys(*operands)` are unsigned integers, larger = keep.

    Attributes:
      keys: element-wise function of the operands.
      operands: arrays of one shape (or of one entry).
    """

    keys: Callable[..., jax.Array]
    operands: tuple[Any, ...]

    @functools.cached_property
    def example(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the keys."""
        return jax.eval_shape(self.keys, *self.operands)

    def of(self, operands: tuple[Any, ...]) -> Scores:
        """The same keys of other operands of the same shapes."""
        return Scores(self.keys, operands)


def order_key(x: jax.Array) -> jax.Array:
    """Unsigned integers in the order of `x`: NaN lowest, -0 equal to +0, subnormals ordered.

    Floating keys leave 0 and the largest value unused, so that a caller can rule entries out, or in.
    """
    width = x.dtype.itemsize * 8
    if x.dtype == jnp.bool_ or jnp.issubdtype(x.dtype, jnp.unsignedinteger):
        return x.astype(f"uint{width}")
    unsigned = jnp.dtype(f"uint{width}")
    sign = jnp.array(1 << (width - 1), unsigned)
    bits = lax.bitcast_convert_type(x, unsigned)
    if jnp.issubdtype(x.dtype, jnp.signedinteger):
        return bits ^ sign
    bits = jnp.where(bits == sign, 0, bits)
    infinity = lax.bitcast_convert_type(jnp.array(jnp.inf, x.dtype), unsigned)
    ordered = jnp.where(bits >= sign, ~bits, bits | sign)
    return jnp.where((bits & ~sign) > infinity, jnp.ones((), unsigned), ordered)


def magnitude_key(x: jax.Array) -> jax.Array:
    """`order_key(abs(x))` of finite floating x, by one operation: the bits of x with the sign set.

    Example:
      >>> bool((magnitude_key(jnp.array([-2.5, 0.0, -0.0])) == order_key(jnp.array([2.5, 0.0, 0.0]))).all())
      True
    """
    unsigned = jnp.dtype(f"uint{x.dtype.itemsize * 8}")
    return lax.bitcast_convert_type(x, unsigned) | jnp.array(1 << (x.dtype.itemsize * 8 - 1), unsigned)


def value_of(key: jax.Array, dtype: Any) -> jax.Array:
    """The score whose `order_key` is `key`."""
    unsigned, width = key.dtype, key.dtype.itemsize * 8
    sign = jnp.array(1 << (width - 1), unsigned)
    if dtype == jnp.bool_ or jnp.issubdtype(dtype, jnp.unsignedinteger):
        return key.astype(dtype)
    if jnp.issubdtype(dtype, jnp.signedinteger):
        return lax.bitcast_convert_type(key ^ sign, dtype)
    value = lax.bitcast_convert_type(jnp.where(key >= sign, key ^ sign, ~key), dtype)
    return jnp.where(key == 1, jnp.array(jnp.nan, dtype), value)


def highest(dtype: Any) -> jax.Array:
    """The largest key of an unsigned dtype, which no floating score has."""
    return jnp.array(jnp.iinfo(dtype).max, dtype)

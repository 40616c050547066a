"""Masks of one bit a weight: eight neighbours along one axis in a byte.

A step reads the masks wherever it reads weights or moments, and it is bound by memory. The axis is one whose neighbours
lie far apart, so that along a row in memory the bit to test is always the same one: then a compiler can read the bits
in the middle of a loop over weights, many at a time, and no mask of a byte a weight is ever stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

WASTE = 1 / 16  # bits of no weight, over those of weights, that an axis may cost rather than be the last one


@partial(jax.tree_util.register_dataclass, data_fields=["bits"], meta_fields=["axis", "length"])
@dataclass(frozen=True)
class Packed:
    """A mask of one bit a weight: a pytree node with one leaf.

    Attributes:
      bits: uint8, of the mask's shape but ceil(length / 8) along `axis`; bit i of byte b is entry 8 b + i.
      axis: counted from the end (-1 is the last), so that axes which vmap puts in front change nothing; 0: a scalar.
      length: the mask's, along `axis`.
    """

    bits: jax.Array
    axis: int
    length: int


def packed_axis(shape: tuple[int, ...]) -> int:
    """The axis along which a mask of this shape is packed, from the end.

    The hindmost but the last whose length 8 divides; else the hindmost but the last that wastes little; else the last.
    """
    others = range(-2, -len(shape) - 1, -1)
    whole = [axis for axis in others if shape[axis] % 8 == 0]
    nearly = [axis for axis in others if -shape[axis] % 8 <= WASTE * shape[axis]]
    return next(iter([*whole, *nearly]), -1 if shape else 0)


def pack(mask: jax.Array, axis: int | None = None) -> Packed:
    """The mask at one bit an entry.

    Args:
      mask: a bool array of any shape.
      axis: from the end; None chooses by the shape. A batched mask needs the axis of a single one.

    Example:
      >>> pack(jnp.array([True, False, True])).bits.tolist()
      [5]
    """
    axis = packed_axis(mask.shape) if axis is None else axis
    if axis == 0:
        return Packed(mask.astype(jnp.uint8), 0, 1)
    at, length = mask.ndim + axis, mask.shape[axis]
    if _lies_here(mask):  # NumPy compiles nothing for each shape
        return Packed(jnp.asarray(np.packbits(np.asarray(mask), axis=at, bitorder="little")), axis, length)
    mask = _divisible(mask, at)
    if not length % 8:
        return Packed(_bytes(mask, at), axis, length)
    # The last byte apart: padding the whole mask would put a branch into the loop over it, and slow it threefold.
    whole = length - length % 8
    fill = [(0, -length % 8 if each == at else 0) for each in range(mask.ndim)]
    bits = _bytes(jnp.pad(lax.slice_in_dim(mask, whole, length, axis=at), fill), at)
    if whole:
        shape = (*mask.shape[:at], -(-length // 8), *mask.shape[at + 1 :])
        body = _bytes(lax.slice_in_dim(mask, 0, whole, axis=at), at)
        found = lax.dynamic_update_slice_in_dim(jnp.zeros(shape, jnp.uint8), body, 0, axis=at)
        bits = lax.dynamic_update_slice_in_dim(found, bits, whole // 8, axis=at)
    return Packed(bits, axis, length)


def _bytes(mask: jax.Array, at: int) -> jax.Array:
    """Eight entries along an axis, whose length 8 divides, in each byte."""
    spread = mask.reshape(*mask.shape[:at], mask.shape[at] // 8, 8, *mask.shape[at + 1 :]).astype(jnp.uint8)
    return jnp.sum(spread << _places(spread, at + 1), axis=at + 1, dtype=jnp.uint8)


def unpack(packed: Packed, like: jax.Array | None = None) -> jax.Array:
    """The bool mask.

    Args:
      packed: a mask, or a batch of them along leading axes.
      like: an array of the mask's shape; on a mesh with explicit axes the mask is sharded as it is.

    Example:
      >>> unpack(pack(jnp.array([True, False, True]))).tolist()
      [True, False, True]
    """
    bits, length = packed.bits, packed.length
    if packed.axis == 0:
        return bits != 0
    at = bits.ndim + packed.axis
    spread = jnp.broadcast_to(jnp.expand_dims(bits, at + 1), (*bits.shape[: at + 1], 8, *bits.shape[at + 1 :]))
    tested = (spread & (jnp.uint8(1) << _places(spread, at + 1))) != 0
    whole = tested.reshape(*bits.shape[:at], 8 * bits.shape[at], *bits.shape[at + 1 :])
    mask = lax.slice_in_dim(whole, 0, length, axis=at) if length % 8 else whole
    return mask if like is None else sharded_as(mask, like)


def sharded_as(array: jax.Array, like: jax.Array) -> jax.Array:
    """The array on the explicit mesh axes of another: a device drops what it does not need, or gathers."""
    wanted, found = jax.typeof(like).sharding, jax.typeof(array).sharding
    return array if wanted.spec == found.spec else jax.sharding.reshard(array, wanted)


def whole(array: jax.Array) -> jax.Array:
    """The array without explicit mesh axes: every device gathers it."""
    sharding = jax.typeof(array).sharding
    if all(name is None for name in sharding.spec):
        return array
    return jax.sharding.reshard(array, jax.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec()))


def _places(spread: jax.Array, axis: int) -> jax.Array:
    """0 to 7 along an axis."""
    return lax.broadcasted_iota(jnp.uint8, tuple(8 if a == axis else 1 for a in range(spread.ndim)), axis)


def _lies_here(mask: Any) -> bool:
    """Whether an array has values, on one device."""
    return not isinstance(mask, jax.core.Tracer) and (isinstance(mask, np.ndarray) or len(mask.devices()) == 1)


def _divisible(mask: jax.Array, at: int) -> jax.Array:
    """The mask, gathered along an axis if explicit mesh axes shard it there and do not divide its bytes."""
    sharding = jax.typeof(mask).sharding
    names = sharding.spec[at]
    parts = math.prod(sharding.mesh.shape[name] for name in (names if isinstance(names, tuple) else (names,)) if name)
    if mask.shape[at] % (8 * parts) == 0 or parts == 1:
        return mask
    spec = jax.P(*(None if each == at else name for each, name in enumerate(sharding.spec)))
    return jax.sharding.reshard(mask, jax.NamedSharding(sharding.mesh, spec))

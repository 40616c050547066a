"""Random masks of many leaves with exact counts, on one device by one small program whatever the leaves' shapes."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.selection import Request, answered, arena, as_count, devices
from sparsejax.selection.counts import WORD
from sparsejax.selection.lots import drawn, key_words, lots


class Draw(NamedTuple):
    """One leaf's random mask.

    Attributes:
      salt: of the leaf, so that leaves differ.
      shape: of the mask.
      axes: drawn from together; the other axes are slices.
      keep: how many of each slice.
    """

    salt: int
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    keep: int

    @property
    def slices(self) -> tuple[int, int]:
        """How many slices, and the entries of one."""
        size = math.prod(self.shape[axis] for axis in self.axes)
        return math.prod(self.shape) // max(size, 1), size

    @property
    def leads(self) -> bool:
        """Whether slices follow one another in memory, so that a flat array of slices is the leaf."""
        return self.axes == tuple(range(len(self.shape) - len(self.axes), len(self.shape)))


def drawn_masks(key: jax.Array, draws: Sequence[Draw]) -> list[jax.Array]:
    """The masks of `draws`; `key` is PRNG key data. On any number of devices they are the same."""
    together = [draw for draw in draws if draw.leads and arena.holds(*draw.slices)]
    found = iter(_in_arena(key, together))
    return [next(found) if draw in together else _alone(key, draw) for draw in draws]


def _alone(key: jax.Array, draw: Draw) -> jax.Array:
    if not isinstance(key, jax.core.Tracer) and devices.on_one_device() and 0 < math.prod(draw.shape) < WORD // 2:
        return jnp.asarray(_by_numpy(np.asarray(key_words(_leaf_key(key, draw.salt))), draw))
    scores = lots(_leaf_key(key, draw.salt), draw.shape)
    return answered([Request(scores, as_count(draw.keep), draw.axes)])[0].mask


def _by_numpy(words: np.ndarray, draw: Draw) -> np.ndarray:
    """The same mask without a program for each shape: those for many slices, as neurons' inputs are, compile slowly."""
    size = draw.slices[1]
    if not 0 < draw.keep < size:
        return np.full(draw.shape, draw.keep >= size)
    outer = [axis for axis in range(len(draw.shape)) if axis not in draw.axes]
    order = (*outer, *draw.axes)
    lots = drawn([np.arange(math.prod(draw.shape), dtype=np.uint32)], words[:, None]).reshape(draw.shape)
    rows = np.ascontiguousarray(lots.transpose(order)).reshape(-1, size)
    cut = np.partition(rows, size - draw.keep, axis=1)[:, size - draw.keep, None]
    mask, tied = rows > cut, rows == cut
    mask |= tied & (np.cumsum(tied, axis=1) <= draw.keep - mask.sum(1, keepdims=True))
    laid = mask.reshape([draw.shape[axis] for axis in order])
    return np.ascontiguousarray(laid.transpose(np.argsort(order)))


def _in_arena(key: jax.Array, draws: Sequence[Draw]) -> list[jax.Array]:
    if not draws:
        return []
    slices = tuple(draw.slices for draw in draws)
    salts = np.array([draw.salt for draw in draws], np.uint32)
    keeps = np.array([(draw.keep >> 16, draw.keep & 0xFFFF) for draw in draws], np.uint32)
    blocks = _program(slices)(key, salts, keeps)
    # Outside of jit the masks are cut out by NumPy, which compiles nothing for each of their shapes.
    source = blocks if isinstance(blocks, jax.core.Tracer) else np.asarray(blocks)
    plan = arena.planned(slices)
    masks = []
    for i, (draw, (number, size)) in enumerate(zip(draws, slices, strict=True)):
        length = number * -(-size // plan.block)
        rows = source[plan.row[i], plan.at[i] : plan.at[i] + length].reshape(number, -1)
        masks.append(jnp.asarray(rows[:, :size].reshape(draw.shape)))
    return masks


@functools.cache
def _program(slices: tuple[tuple[int, int], ...]) -> Any:
    """The program for leaves of these sizes, compiled once."""

    def masks(key, salts, keeps):
        words = jax.vmap(lambda salt: key_words(_leaf_key(key, salt)))(salts)
        return arena.select_drawn(words, keeps, slices)

    return jax.jit(masks)


def _leaf_key(key: jax.Array, salt: Any) -> jax.Array:
    return jax.random.fold_in(jax.random.wrap_key_data(key), salt)

"""Which weights may be zero together: single ones, N of every M, as many for each neuron, blocks, whole channels.

A pattern turns scores into *units* (weights, blocks, channels) and says which units are ranked together (a *group*).
Its mask keeps exactly `count` units in every group, for every shape. Patterns are NamedTuples, so they can stand in
configs and be compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from sparsejax.leaves import Axes, check_glob, flax_layout
from sparsejax.selection import Count, Scores, order_key, select

Shape = tuple[int, ...]


class Pattern(Protocol):
    """What a pattern provides; `shape` is the leaf's, `axes` its `Axes`."""

    def check(self, path: str, shape: Shape, axes: Axes) -> bool: ...
    def units(self, x: jax.Array, axes: Axes) -> jax.Array: ...
    def expand(self, mask: jax.Array, shape: Shape, axes: Axes) -> jax.Array: ...
    def group_axes(self, shape: Shape, axes: Axes) -> tuple[int, ...]: ...
    def slice_axes(self, shape: Shape, axes: Axes) -> tuple[int, ...]: ...
    def group_size(self, shape: Shape, axes: Axes) -> int: ...


def kept_units(units: int, sparsity: float) -> int:
    """How many of `units` stay at a sparsity: units - floor(sparsity * units + 1e-6), in float64."""
    return units - math.floor(sparsity * units + 1e-6)


def pattern_mask(
    pattern: Pattern,
    scores: jax.Array,
    count: int | jax.Array | Count,
    axes: Axes | None = None,
    ties: jax.Array | None = None,
) -> jax.Array:
    """The mask of `scores`' shape that keeps the `count` best units of every group.

    All True where the pattern skips the leaf.

    Args:
      pattern: one of this file's.
      scores: one per weight; larger = keep; a unit's score is the mean over its weights.
      count: units kept in each group; may be traced.
      axes: the leaf's axes; None is Flax's layout of a kernel.
      ties: None: lowest index first; a PRNG key: at random.

    Example:
      >>> pattern_mask(nm(1, 2), jnp.array([[1.0], [2.0], [4.0], [3.0]]), 1).ravel().tolist()
      [False, True, True, False]
    """
    axes = flax_layout("", scores) if axes is None else axes
    if not pattern.check("scores", scores.shape, axes):
        return jnp.ones(scores.shape, bool)
    units = Scores(order_key, (pattern.units(scores, axes),))
    return pattern.expand(select(units, count, pattern.group_axes(scores.shape, axes), ties), scores.shape, axes)


def _not_stacked(ndim: int, axes: Axes) -> tuple[int, ...]:
    return tuple(axis for axis in range(ndim) if axis not in axes.stacked)


def _split(x: jax.Array, sizes: Mapping[int, tuple[int, int]]) -> jax.Array:
    """x with each axis in `sizes` cut into (blocks, block); padded with zeros at the end where the last is not full.

    Under Explicit mesh axes the blocks stay sharded as the axis was, where the devices divide them, and else are not.
    """
    spec = jax.typeof(x).sharding.spec
    shape: list[int] = []
    kept: list[Any] = []
    for axis, size in enumerate(x.shape):
        blocks, length = sizes.get(axis, (size, 0))
        fits = blocks % _devices(x, spec[axis]) == 0 and (not length or blocks * length == size)
        kept.append(spec[axis] if fits else None)
        shape += [blocks, length] if length else [blocks]
    pad = [(0, math.prod(sizes[axis]) - size if axis in sizes else 0) for axis, size in enumerate(x.shape)]
    padded = lambda x: jnp.pad(x, pad) if any(after for _, after in pad) else x
    if all(name is None for name in spec):
        return padded(x).reshape(shape)
    mesh = jax.typeof(x).sharding.mesh
    out = [name for axis, name in enumerate(kept) for name in ([name, None] if axis in sizes else [name])]
    whole = jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec(*kept)))
    return jax.lax.reshape(padded(whole), shape, out_sharding=NamedSharding(mesh, PartitionSpec(*out)))


def _devices(x: jax.Array, names: Any) -> int:
    """Over how many devices an axis with this entry of a PartitionSpec is cut."""
    shape = jax.typeof(x).sharding.mesh.shape
    return math.prod(shape[name] for name in (names if isinstance(names, tuple) else (names,)) if name is not None)


def _check_axis(path: str, name: str, axis: int | None, shape: Shape, axes: Axes) -> None:
    if axis is not None and not -len(shape) <= axis < len(shape):
        raise ValueError(f"{path}: {name} axis {axis} is not an axis of {shape}")
    if axis is not None and axis % len(shape) in axes.stacked:
        raise ValueError(f"{path}: {name} axis {axis} of {shape} is stacked: its layers are ranked one by one")


class Unstructured(NamedTuple):
    """Single weights, ranked over the whole layer, or over the inputs of each neuron; see `unstructured`, `fan_in`."""

    over: str = "layer"

    def check(self, path: str, shape: Shape, axes: Axes) -> bool:
        if self.over == "inputs" and not (axes.inputs and axes.outputs):
            raise ValueError(f"{path}: fan_in() needs an input and an output axis, not {tuple(axes)}")
        return True

    def units(self, x: jax.Array, axes: Axes) -> jax.Array:
        return x

    def expand(self, mask: jax.Array, shape: Shape, axes: Axes) -> jax.Array:
        return mask

    def group_axes(self, shape: Shape, axes: Axes) -> tuple[int, ...]:
        return tuple(sorted(axes.inputs)) if self.over == "inputs" else self.slice_axes(shape, axes)

    def slice_axes(self, shape: Shape, axes: Axes) -> tuple[int, ...]:
        return _not_stacked(len(shape), axes)

    def group_size(self, shape: Shape, axes: Axes) -> int:
        return math.prod(shape[axis] for axis in self.group_axes(shape, axes))


class NM(NamedTuple):
    """N weights kept of every M consecutive ones along an input axis, alike for a tile of outputs; see `nm`."""

    n: int
    m: int
    axis: int | None = None
    indivisible: str = "raise"
    tile: int = 1

    def _axis(self, ndim: int, axes: Axes) -> int:
        axis = (axes.inputs or axes.outputs)[-1] if self.axis is None else self.axis
        return axis % ndim

    def check(self, path: str, shape: Shape, axes: Axes) -> bool:
        _check_axis(path, "nm", self.axis, shape, axes)
        axis = self._axis(len(shape), axes)
        if self.tile > 1 and (not axes.outputs or axes.outputs[-1] == axis):
            raise ValueError(
                f"{path}: nm(..., tile={self.tile}) along axis {axis} of {shape} has no output axis to tile"
            )
        if shape[axis] % self.m == 0:
            return True
        if self.indivisible == "skip":
            return False
        raise ValueError(
            f"{path}: axis {axis} of {shape} has {shape[axis]} entries, which m = {self.m} does not divide; choose "
            f"another axis, leave the leaf out with where, or nm(..., indivisible='skip')"
        )

    def units(self, x: jax.Array, axes: Axes) -> jax.Array:
        """The weights, their axis cut into groups; of tiles the mean over the tile, so that sums are ranked."""
        axis = self._axis(x.ndim, axes)
        groups = {axis: (x.shape[axis] // self.m, self.m)}
        if self.tile == 1:
            return _split(x, groups)
        out = axes.outputs[-1]
        tiles = {out: (-(-x.shape[out] // self.tile), self.tile)}
        inside = out + 1 + (axis < out)
        total = _split(x.astype(jnp.float32), groups | tiles).sum(inside)
        return total / _lengths(x.shape[out], *tiles[out], inside - 1, total.ndim)

    def expand(self, mask: jax.Array, shape: Shape, axes: Axes) -> jax.Array:
        if self.tile == 1:
            return mask.reshape(shape)
        out, axis = axes.outputs[-1], self._axis(len(shape), axes)
        tiles = mask.shape[out + (axis < out)]
        merged = mask.reshape([tiles if a == out else size for a, size in enumerate(shape)])
        return _spread(merged, out, self.tile, shape[out])

    def group_axes(self, shape: Shape, axes: Axes) -> tuple[int, ...]:
        return (self._axis(len(shape), axes) + 1,)

    def slice_axes(self, shape: Shape, axes: Axes) -> tuple[int, ...]:
        axis = self._axis(len(shape), axes)
        moved = tuple(a + (a > axis) for a in _not_stacked(len(shape), axes))
        return tuple(sorted({*moved, axis + 1}))

    def group_size(self, shape: Shape, axes: Axes) -> int:
        return self.m


def _lengths(size: int, blocks: int, block: int, axis: int, ndim: int) -> jax.Array:
    """How many entries of an axis lie in each block, where the last is not full, along one axis of `ndim`."""
    lengths = jnp.minimum(block, size - block * jnp.arange(blocks)).astype(jnp.float32)
    return lengths.reshape([blocks if a == axis else 1 for a in range(ndim)])


def _spread(mask: jax.Array, axis: int, block: int, size: int) -> jax.Array:
    """Each entry `block` times along an axis, which ends at `size`."""
    before, blocks, after = mask.shape[:axis], mask.shape[axis], mask.shape[axis + 1 :]
    spread = jnp.broadcast_to(jnp.expand_dims(mask, axis + 1), (*before, blocks, block, *after))
    return jax.lax.slice_in_dim(spread.reshape(*before, blocks * block, *after), 0, size, axis=axis)


class Block(NamedTuple):
    """Blocks of inputs x outputs; see `block`."""

    shape: tuple[int, int]

    def check(self, path: str, shape: Shape, axes: Axes) -> bool:
        if not axes.inputs or not axes.outputs:
            raise ValueError(f"{path}: block{self.shape} needs an input and an output axis, not {tuple(axes)}")
        return True

    def _tiles(self, shape: Shape, axes: Axes) -> dict[int, tuple[int, int]]:
        """Of each blocked axis, how many blocks and how long one is; a remainder is a block of its own."""
        both = ((axes.inputs[-1], self.shape[0]), (axes.outputs[-1], self.shape[1]))
        return {axis: (-(-shape[axis] // size), size) for axis, size in both}

    def units(self, x: jax.Array, axes: Axes) -> jax.Array:
        """The mean over each block; a remainder's mean is over the weights that it has."""
        tiles = self._tiles(x.shape, axes)
        inside = [axis + 1 + sum(other < axis for other in tiles) for axis in sorted(tiles)]
        total = _split(x.astype(jnp.float32), tiles).sum(inside)
        for axis, (blocks, size) in tiles.items():
            total = total / _lengths(x.shape[axis], blocks, size, axis, x.ndim)
        return total

    def expand(self, mask: jax.Array, shape: Shape, axes: Axes) -> jax.Array:
        for axis, (_, size) in self._tiles(shape, axes).items():
            mask = _spread(mask, axis, size, shape[axis])
        return mask

    def group_axes(self, shape: Shape, axes: Axes) -> tuple[int, ...]:
        return _not_stacked(len(shape), axes)

    def slice_axes(self, shape: Shape, axes: Axes) -> tuple[int, ...]:
        return self.group_axes(shape, axes)

    def group_size(self, shape: Shape, axes: Axes) -> int:
        tiles = self._tiles(shape, axes)
        return math.prod(tiles[a][0] if a in tiles else shape[a] for a in self.group_axes(shape, axes))


class Channel(NamedTuple):
    """Whole slices along one axis, by default the output channels; see `channel`."""

    axis: int | None = None

    def _axis(self, ndim: int, axes: Axes) -> int:
        axis = (axes.outputs or axes.inputs)[-1] if self.axis is None else self.axis
        return axis % ndim

    def check(self, path: str, shape: Shape, axes: Axes) -> bool:
        _check_axis(path, "channel", self.axis, shape, axes)
        return True

    def units(self, x: jax.Array, axes: Axes) -> jax.Array:
        axis = self._axis(x.ndim, axes)
        pooled = tuple(a for a in _not_stacked(x.ndim, axes) if a != axis)
        return x.astype(jnp.float32).mean(pooled, keepdims=True)

    def expand(self, mask: jax.Array, shape: Shape, axes: Axes) -> jax.Array:
        return jnp.broadcast_to(mask, shape)

    def group_axes(self, shape: Shape, axes: Axes) -> tuple[int, ...]:
        return (self._axis(len(shape), axes),)

    def slice_axes(self, shape: Shape, axes: Axes) -> tuple[int, ...]:
        return self.group_axes(shape, axes)

    def group_size(self, shape: Shape, axes: Axes) -> int:
        return shape[self._axis(len(shape), axes)]


def unstructured() -> Unstructured:
    """Single weights: kept = N - floor(s N) of the N weights of a layer.

    Example:
      >>> pattern_mask(unstructured(), jnp.array([[1.0, 2.0], [4.0, 3.0]]), 2).tolist()
      [[False, False], [True, True]]
    """
    return Unstructured()


def nm(n: int, m: int, axis: int | None = None, indivisible: str = "raise", tile: int = 1) -> NM:
    """N weights kept of every M consecutive ones along the input (reduction) axis.

    Args:
      n, m: 0 < n <= m.
      axis: None is the last input axis of the layout (of a convolution: the input channels).
      indivisible: what to do with a leaf whose axis m does not divide: "raise", or "skip" (it stays dense).
      tile: so many neighbours along the last output axis keep the same places, scored by the sum over them; what is
        left at the end is a tile of its own.

    Raises:
      ValueError: n, m, indivisible or tile out of range.

    Example:
      >>> nm(2, 4)
      NM(n=2, m=4, axis=None, indivisible='raise', tile=1)
      >>> pattern_mask(nm(1, 2, tile=2), jnp.array([[1.0, 4.0], [3.0, 0.0]]), 1).tolist()
      [[True, True], [False, False]]
    """
    if not (isinstance(n, int) and isinstance(m, int) and 0 < n <= m):
        raise ValueError(f"nm({n}, {m}): N of every M needs integers 0 < n <= m")
    if indivisible not in ("raise", "skip"):
        raise ValueError(f"indivisible={indivisible!r}: 'raise' or 'skip'")
    if isinstance(tile, bool) or not isinstance(tile, int) or tile < 1:
        raise ValueError(f"tile={tile!r} must be an integer of at least 1")
    _check_integer(axis)
    return NM(n, m, axis, indivisible, tile)


def fan_in() -> Unstructured:
    """Constant fan-in: every neuron (each index along the output axes) keeps the same number of inputs.

    The inputs of a neuron are ranked together. A layer is all of its neurons: what is dropped is chosen over the layer,
    what grows inside each neuron. SRigL: Lasby et al. 2023, arXiv:2305.02299; its ablation of neurons is not done.

    Example:
      >>> pattern_mask(fan_in(), jnp.array([[1.0, 9.0], [4.0, 8.0]]), 1).tolist()
      [[False, True], [True, False]]
    """
    return Unstructured(over="inputs")


def block(shape: tuple[int, int]) -> Block:
    """Blocks of `shape` = (inputs, outputs) weights, scored by their mean; at an edge the remainder is a block.

    Raises:
      ValueError: not two positive integers.

    Example:
      >>> pattern_mask(block((2, 1)), jnp.array([[1.0, 2.0], [4.0, 2.0], [9.0, 0.0]]), 2).tolist()
      [[True, False], [True, False], [True, False]]
    """
    sizes = shape if isinstance(shape, (tuple, list)) else ()
    if len(sizes) != 2 or any(not isinstance(size, int) or size < 1 for size in sizes):
        raise ValueError(f"block({shape}): two positive integers (inputs, outputs)")
    return Block((sizes[0], sizes[1]))


def channel(axis: int | None = None) -> Channel:
    """Whole output channels (neurons), or slices along `axis`, scored by their mean.

    Raises:
      ValueError: the axis is not an integer.

    Example:
      >>> pattern_mask(channel(), jnp.array([[1.0, 2.0], [4.0, 2.0]]), 1).tolist()
      [[True, False], [True, False]]
    """
    _check_integer(axis)
    return Channel(axis)


def _check_integer(axis: int | None) -> None:
    if axis is not None and not isinstance(axis, int):
        raise ValueError(f"axis={axis!r} must be None (by the layout) or an integer")


def pattern_of(pattern: Pattern | Mapping[str, Pattern] | None, path: str) -> Pattern:
    """The pattern of one leaf: of a mapping from globs the first that matches; without one, unstructured."""
    if isinstance(pattern, Mapping):
        pattern = next((p for glob, p in pattern.items() if fnmatchcase(path, glob)), None)
    if pattern is not None and not hasattr(pattern, "group_axes"):
        raise ValueError(
            f"{path}: pattern={pattern!r} is none of unstructured(), nm(n, m), fan_in(), block((bh, bw)), channel()"
        )
    return Unstructured() if pattern is None else pattern


def check_pattern_globs(pattern: Pattern | Mapping[str, Pattern] | None, paths: list[str]) -> None:
    """Raises ValueError where a glob of a pattern mapping matches no leaf."""
    for glob in pattern if isinstance(pattern, Mapping) else ():
        check_glob(glob, paths, "pattern")

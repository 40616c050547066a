"""Which leaves of a parameter tree are sparsified, and which of their axes are inputs, outputs or stacked layers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Where = Callable[[str, Any], bool]


class Axes(NamedTuple):
    """The axes of one leaf; together the three cover each axis once.

    Attributes:
      stacked: axes along which equal layers are stacked (scan over layers, vmapped replicas); ranked slice by slice.
      inputs: the reduction axes, fan-in; the last is the one that N:M and blocks divide (input channels).
      outputs: the neurons or channels that the leaf computes.
    """

    stacked: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


Layout = Callable[[str, Any], tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


def leaf_path(key_path: tuple[Any, ...]) -> str:
    """The path of a leaf as a string, `Dense_0/kernel`; NNX's trailing attribute `.value` is dropped."""
    parts = path_parts(key_path)
    if len(parts) > 1 and isinstance(key_path[-1], jax.tree_util.GetAttrKey) and parts[-1] == "value":
        parts = parts[:-1]
    return "/".join(parts)


def path_parts(key_path: tuple[Any, ...]) -> tuple[str, ...]:
    """Each step of a key path as a string, whatever its kind: dict key, attribute, index."""

    def name(entry):
        for attribute in ("key", "name", "idx"):
            if hasattr(entry, attribute):
                return str(getattr(entry, attribute))
        return str(entry)

    return tuple(name(entry) for entry in key_path)


def _refusal(path: str, array: Any) -> str | None:
    """Why the default predicate leaves a leaf dense, or None where it takes it."""
    parts = path.split("/")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return f"dtype {array.dtype} is not floating"
    if array.ndim < 2:
        return f"{array.ndim} axes; at least 2 are needed"
    for part in parts:
        for word in ("embed", "pos", "norm"):
            if word in part.lower().replace("transpose", ""):  # ConvTranspose holds "pos"
                return f"{part!r} contains {word!r}"
    if not (parts[-1].startswith(("kernel", "weight")) or parts[-1] == "w"):
        return f"{parts[-1]!r} is not kernel*, weight* or w"
    if sum(size != 1 for size in array.shape) <= 1:
        return "all axes but one have size 1"
    return None


def output_layers(paths: list[str]) -> list[str]:
    """Which paths are the output layer's by name: with a part head, classifier, logits, fc; else the last one.

    The last one is so in the order of names, numbers in them as numbers.

    Example:
      >>> output_layers(["Dense_10/kernel", "Dense_9/kernel"])
      ['Dense_10/kernel']
    """
    named = [path for path in paths if any(_is_output(part.lower()) for part in path.split("/"))]
    return named or in_natural_order(paths)[-1:]


def in_natural_order(paths: list[str]) -> list[str]:
    """The paths sorted by name, numbers in them as numbers.

    Example:
      >>> in_natural_order(["conv10", "conv9"])
      ['conv9', 'conv10']
    """
    in_order = lambda word: (True, int(word), "") if word.isdigit() else (False, 0, word)
    return sorted(paths, key=lambda path: [in_order(word) for word in re.split(r"(\d+)", path)])


def _is_output(part: str) -> bool:
    return part.endswith("head") or part in ("classifier", "logits", "fc")


def default_where(path: str, array: Any) -> bool:
    """The default `where`: floating matrices and kernels that are neither embeddings, positions nor norms."""
    return _refusal(path, array) is None


class Globs(NamedTuple):
    """A predicate made of globs over paths, from `only` and `except_`; `select_leaves` checks it against the tree."""

    globs: tuple[str, ...]
    wanted: bool

    def __call__(self, path: str, array: Any) -> bool:
        matches = any(fnmatchcase(path, glob) for glob in self.globs)
        if self.wanted:
            return matches and jnp.issubdtype(array.dtype, jnp.floating)
        return not matches and default_where(path, array)


def only(*globs: str) -> Globs:
    """Sparsify exactly the floating leaves whose path matches one of the globs.

    Example:
      >>> only("blocks/*")("blocks/0/kernel", jnp.ones((4, 4)))
      True
    """
    return Globs(globs, wanted=True)


def except_(*globs: str) -> Globs:
    """Sparsify what the default takes, except leaves whose path matches one of the globs.

    Example:
      >>> except_("head/*")("head/kernel", jnp.ones((4, 4)))
      False
    """
    return Globs(globs, wanted=False)


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Every leaf with its path, in the tree's order."""
    return [(leaf_path(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def select_leaves(params: Any, where: Where | None = None) -> Any:
    """The params with None in place of each leaf that is not sparsified.

    Args:
      params: any pytree of arrays (or of their shapes).
      where: `(path, array) -> bool`; None is the default predicate.

    Raises:
      ValueError: a glob matches no leaf, or the predicate matches none although the tree has leaves.
    """
    leaves = named_leaves(params)
    paths = [path for path, _ in leaves]
    for glob in getattr(where, "globs", ()):
        check_glob(glob, paths, "where")
    chosen = [leaf if (where or default_where)(path, leaf) else None for path, leaf in leaves]
    if leaves and all(leaf is None for leaf in chosen):
        refused = getattr(where, "why", "refused")
        reasons = "; ".join(f"{path} {leaf.shape}: {_refusal(path, leaf) or refused}" for path, leaf in leaves[:4])
        raise ValueError(
            f"where matches none of the {len(leaves)} leaves ({reasons}); pass where=only('...') or a predicate "
            "(path, array) -> bool"
        )
    return jax.tree.unflatten(jax.tree.structure(params), chosen)


def check_glob(glob: str, paths: list[str], field: str) -> None:
    """Raises ValueError, with the nearest path, where a glob matches no leaf of a tree that has leaves."""
    if paths and not any(fnmatchcase(path, glob) for path in paths):
        near = difflib.get_close_matches(glob, paths, n=1, cutoff=0.0)
        raise ValueError(f"{field}: {glob!r} matches no leaf; the nearest path is {near[0]!r}")


def why_dense(params: Any, where: Where | None = None) -> dict[str, str]:
    """For each leaf that is not sparsified, its path and the reason, for reports."""
    reasons = {}
    for path, leaf in named_leaves(params):
        if not (where or default_where)(path, leaf):
            reasons[path] = (_refusal(path, leaf) if where is None else None) or "left out by where"
    return reasons


def flax_layout(path: str, array: Any) -> Axes:
    """Flax Linen and NNX: the last axis is the output, the rest inputs; of query, key and value the first is the input.

    Example:
      >>> flax_layout("Conv_0/kernel", jnp.ones((3, 3, 16, 32)))
      Axes(stacked=(), inputs=(0, 1, 2), outputs=(3,))
    """
    axes = tuple(range(array.ndim))
    parts = path.split("/")
    if len(parts) > 1 and parts[-2] in ("query", "key", "value") and array.ndim > 1:
        return Axes((), axes[:1], axes[1:])
    return Axes((), axes[:-1], axes[-1:])


def equinox_layout(path: str, array: Any) -> Axes:
    """Equinox (and PyTorch): the first axis is the output, the rest are inputs; the second, input channels, comes last.

    Example:
      >>> equinox_layout("conv/weight", jnp.ones((32, 16, 3, 3)))
      Axes(stacked=(), inputs=(2, 3, 1), outputs=(0,))
    """
    del path
    axes = tuple(range(array.ndim))
    return Axes((), (*axes[2:], *axes[1:2]), axes[:1])


def stacked(*globs: str, axes: tuple[int, ...] = (0,), layout: Layout = flax_layout) -> Layout:
    """A layout in which leaves that match a glob hold equal layers along `axes` (scan over layers, vmapped replicas).

    Each slice is a layer of its own: ranked, counted and reported separately.

    Example:
      >>> stacked("layers/*")("layers/kernel", jnp.ones((12, 64, 256)))
      Axes(stacked=(0,), inputs=(1,), outputs=(2,))
    """

    def stacked_layout(path: str, array: Any) -> Axes:
        if not any(fnmatchcase(path, glob) for glob in globs):
            return Axes(*layout(path, array))
        layers = tuple(axis % array.ndim for axis in axes)
        rest = [axis for axis in range(array.ndim) if axis not in layers]
        inner = layout(path, jax.ShapeDtypeStruct([array.shape[axis] for axis in rest], array.dtype))
        moved = [tuple(rest[axis] for axis in group) for group in inner]
        return Axes(tuple(sorted((*layers, *moved[0]))), moved[1], moved[2])

    return stacked_layout


def checked_axes(layout: Layout | None, path: str, array: Any) -> Axes:
    """The layout's answer for one leaf; ValueError where it does not cover each axis exactly once."""
    axes = Axes(*(tuple(group) for group in (layout or flax_layout)(path, array)))
    if sorted(sum(axes, ())) != list(range(array.ndim)):
        raise ValueError(
            f"layout({path!r}) = {tuple(axes)} must name each of the {array.ndim} axes of {array.shape} once"
        )
    return axes

"""Sparsity distributions: one overall density -> one density for each sparsified leaf.

A distribution is a function `(params, density, layout) -> tree of floats`. The params hold arrays, or
anything else with a shape (only shapes are read), and None at each leaf that is not sparsified; the result is
the same tree. A leaf with stacked axes is a set of equal layers: each slice counts as a layer of its own, and
all get the leaf's one density. Options are keywords, so `functools.partial(erk, power=0.5)` is a distribution
too.

All of them keep as many weights as uniform layers of the overall density do, to within one weight a layer (a
layer of N weights at density d drops the floor of (1 - d) N, a whole number). `"global"` is not a function
here: one threshold over all leaves needs the scores, not the shapes, so the transforms that accept the word
rank all leaves together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax

from sparsejax.leaves import Axes, Layout, check_glob, checked_axes, named_leaves

Distribution = Callable[[Any, float, Layout | None], Any]


class _Layer(NamedTuple):
    """The layers of one leaf: `slices` equal ones of `size` weights, densities proportional to `score`."""

    size: int
    slices: int
    score: float


def uniform(params: Any, density: float, layout: Layout | None = None) -> Any:
    """The same density for every layer.

    Args:
      params: tree of arrays or shapes, None where not sparsified.
      density: overall density, in (0, 1].
      layout: not read.

    Raises:
      ValueError: the density is outside (0, 1].

    Example:
      >>> uniform({"kernel": jax.ShapeDtypeStruct((4, 4), float)}, 0.25)
      {'kernel': 0.25}
    """
    del layout
    checked = _checked_density(density, "density")
    return jax.tree.map(lambda _: checked, params)


def erk(params: Any, density: float, layout: Layout | None = None, *, power: float = 1.0) -> Any:
    """Erdős-Rényi-Kernel: the density of a layer is ε (Σ shape / Π shape)^power, at most 1.

    The shape is the leaf's, without stacked axes, axis by axis: an attention kernel (embed, heads, head size)
    is another layer for ERK than the same weights as (embed, heads * head size). ε solves the overall
    density; layers that would exceed 1 become dense, those of largest share first, and ε is solved again for
    the rest.

    Args:
      params: tree of arrays or shapes, None where not sparsified.
      density: overall density, in (0, 1].
      layout: `(path, array) -> (stacked_axes, in_axes, out_axes)`; None is Flax's.
      power: 1 is the paper's; 0 makes it uniform.

    Raises:
      ValueError: the density is outside (0, 1], or the power is negative or not finite.

    Example:
      >>> erk({"a": jax.ShapeDtypeStruct((8, 8), float), "b": jax.ShapeDtypeStruct((16, 16), float)}, 0.25)
      {'a': 0.4166666666666667, 'b': 0.20833333333333334}

    Source: Evci et al., Rigging the Lottery (2020), section 3, and its official code.
    """
    if not 0 <= power < math.inf:
        raise ValueError(f"power={power} must be finite and at least 0")

    def score(shape: tuple[int, ...], axes: Axes) -> float:
        sizes = [shape[axis] for axis in (*axes.inputs, *axes.outputs)]
        return (sum(sizes) / math.prod(sizes)) ** power

    return _in_proportion(params, density, layout, score)


def er(params: Any, density: float, layout: Layout | None = None) -> Any:
    """Erdős-Rényi: the density of a layer is ε (n_in + n_out) / (n_in n_out), at most 1; ε as in `erk`.

    n_out is the product of the output axes. n_in is the input axis next to them, which for a convolution is
    its input channels: kernel height and width do not count, which is all that tells `er` from `erk`.

    Args, errors: as `erk`, without power.

    Source: Mocanu et al., Scalable training of artificial neural networks with adaptive sparse connectivity
    (2018); for convolutions the official code of Evci et al. (2020).
    """

    def score(shape: tuple[int, ...], axes: Axes) -> float:
        n_out = math.prod(shape[axis] for axis in axes.outputs)
        distance = {axis: min((abs(axis - out) for out in axes.outputs), default=0) for axis in axes.inputs}
        n_in = shape[min(distance, key=distance.__getitem__)] if distance else 1
        return (n_in + n_out) / (n_in * n_out)

    return _in_proportion(params, density, layout, score)


def per_layer(densities: Mapping[str, float], default: Distribution | None = None) -> Distribution:
    """A distribution with some layers pinned by hand; the others share the rest, so the total is still met.

    With N weights in all and P of them pinned, of which Σ d_l N_l are kept, `default` gets the density
    (density N - Σ d_l N_l) / (N - P) for the others. (The official ERK code leaves pinned layers out of the
    sums instead, and exceeds the target.)

    Args:
      densities: glob over paths -> density in (0, 1]; the first glob that matches a path counts.
      default: distribution of the others; None is `uniform`.

    Raises:
      ValueError: a density is outside (0, 1]; and, when called, a glob matches no sparsified leaf, or the
        pinned layers make the overall density impossible.

    Example:
      >>> distribution = per_layer({"head/*": 1.0}, default=erk)
    """
    table = {glob: _checked_density(value, f"densities[{glob!r}]") for glob, value in densities.items()}

    def distribution(params: Any, density: float, layout: Layout | None = None) -> Any:
        density = _checked_density(density, "density")
        sizes = {path: math.prod(leaf.shape) for path, leaf in named_leaves(params)}
        for glob in table:
            check_glob(glob, list(sizes), "densities")
        globs = {path: next((glob for glob in table if fnmatchcase(path, glob)), None) for path in sizes}
        pinned = {path: table[glob] for path, glob in globs.items() if glob is not None}
        rest = _rest_density(sizes, pinned, density)
        free = _map_named(lambda path, leaf: None if path in pinned else leaf, params)
        shared = dict(named_leaves((default or uniform)(free, rest, layout)))
        return _map_named(lambda path, leaf: pinned[path] if path in pinned else shared[path], params)

    return distribution


def _rest_density(sizes: Mapping[str, int], pinned: Mapping[str, float], density: float) -> float:
    """The density of the leaves that are not pinned, such that the whole has `density`, or a ValueError."""
    total = sum(sizes.values())
    free = total - sum(sizes[path] for path in pinned)
    held = sum(value * sizes[path] for path, value in pinned.items())
    if free:
        rest = (density * total - held) / free
        if 1e-9 < rest < 1 + 1e-9:
            return min(rest, 1.0)
        allowed = f"above {held / total:.6g} and at most {(held + free) / total:.6g}"
    else:
        # Nothing is left to share; a table that was computed by rounding to whole weights is still good.
        if abs(density * total - held) <= len(sizes):
            return density
        allowed = f"{held / total:.6g}"
    layers = ", ".join(f"{path}: {value:g}" for path, value in pinned.items())
    raise ValueError(
        f"densities: with the layers pinned ({layers}) the overall density can be {allowed}, not {density}"
    )


def _in_proportion(
    params: Any, density: float, layout: Layout | None, score: Callable[[tuple[int, ...], Axes], float]
) -> Any:
    """Densities ε score(shape, axes), at most 1, that meet the overall density."""
    density = _checked_density(density, "density")
    layers = {}
    for path, leaf in named_leaves(params):
        axes = checked_axes(layout, path, leaf)
        slices = math.prod(leaf.shape[axis] for axis in axes.stacked)
        size = math.prod(leaf.shape[axis] for axis in (*axes.inputs, *axes.outputs))
        if size * slices:
            layers[path] = _Layer(size, slices, score(leaf.shape, axes))
    solved = _solve(layers, density)
    # A leaf without weights takes part in nothing; any density is right.
    return _map_named(lambda path, leaf: solved.get(path, density), params)


def _solve(layers: Mapping[str, _Layer], density: float) -> dict[str, float]:
    """For every layer min(1, ε score), such that Σ density_l N_l is the number that uniform layers keep."""
    zeros = {path: math.floor((1.0 - density) * layer.size + 1e-6) for path, layer in layers.items()}
    budget = sum(layer.slices * (layer.size - zeros[path]) for path, layer in layers.items())
    free, scale = dict(layers), 1.0
    while free:
        scale = budget / sum(layer.slices * layer.size * layer.score for layer in free.values())
        largest = max(layer.score for layer in free.values())
        if scale * largest <= 1:
            break
        for path in [path for path, layer in free.items() if layer.score == largest]:
            layer = free.pop(path)
            budget -= layer.slices * layer.size
    return {path: scale * layer.score if path in free else 1.0 for path, layer in layers.items()}


def _map_named(function: Callable[[str, Any], Any], params: Any) -> Any:
    """`function(path, leaf)` at each leaf; None stays None."""
    leaves = [function(path, leaf) for path, leaf in named_leaves(params)]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _checked_density(density: float, name: str) -> float:
    """The density as a float; ValueError, naming it, where it is not in (0, 1]."""
    if not 0 < density <= 1:
        raise ValueError(f"{name}={density} must be above 0 and at most 1")
    return float(density)

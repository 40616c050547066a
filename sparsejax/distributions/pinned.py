"""Some layers pinned to densities of their own, the others sharing the rest: tables, uniform+ and ERK+."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from sparsejax.distributions.base import Distribution, checked_density, map_named
from sparsejax.distributions.erdos_renyi import erk, uniform
from sparsejax.leaves import Layout, check_glob, checked_axes, in_natural_order, named_leaves, output_layers


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
    table = {glob: checked_density(value, f"densities[{glob!r}]") for glob, value in densities.items()}

    def distribution(params: Any, density: float, layout: Layout | None = None) -> Any:
        density = checked_density(density, "density")
        sizes = {path: math.prod(leaf.shape) for path, leaf in named_leaves(params)}
        for glob in table:
            check_glob(glob, list(sizes), "densities")
        globs = {path: next((glob for glob in table if fnmatchcase(path, glob)), None) for path in sizes}
        pinned = {path: table[glob] for path, glob in globs.items() if glob is not None}
        return _with_pinned(pinned, default or uniform, params, density, layout)

    return distribution


table = per_layer  # its name in configs


def uniform_plus(
    params: Any,
    density: float,
    layout: Layout | None = None,
    *,
    first: str | None = None,
    head: str | None = None,
    head_density: float = 0.2,
) -> Any:
    """Uniform+: the first convolution dense, the last layer of at least density 0.2, the others uniform.

    The others get the rest, so that the total is that of uniform layers. A net without convolutions has no dense layer.

    Args:
      params: tree of arrays or shapes, None where not sparsified.
      density: overall density, in (0, 1].
      layout: `(path, array) -> (stacked_axes, in_axes, out_axes)`; None is Flax's.
      first: glob of the dense layers; None: the kernel of four axes called stem, else the first by name.
      head: glob of the last layer; None: `leaves.output_layers` of those that are no such kernels, if any.
      head_density: the least density of the head, in (0, 1].

    Raises:
      ValueError: a density is out of range, a glob matches nothing, or the dense layers make the total impossible.

    Example:
      >>> shapes = {"conv1": (3, 3, 1, 8), "conv2": (3, 3, 8, 8), "fc": (8, 10)}
      >>> params = {name: jax.ShapeDtypeStruct(shape, float) for name, shape in shapes.items()}
      >>> {name: round(density, 4) for name, density in uniform_plus(params, 0.19).items()}
      {'conv1': 1.0, 'conv2': 0.0874, 'fc': 0.2}

    Source: Gale et al. 2019, arXiv:1902.09574; with the exact total Lee et al. 2021, arXiv:2010.07611.
    """
    least = checked_density(head_density, "head_density")
    sizes, kernels = _sizes(params), _kernels(params, layout)
    pinned = dict.fromkeys(_matching(first, list(sizes), "first") if first else _first_of(kernels), 1.0)
    rest = _rest_density(sizes, pinned, checked_density(density, "density"))
    if rest < least:
        flat = [path for path in sizes if path not in kernels]
        last = _matching(head, list(sizes), "head") if head else _head_of(flat)
        pinned = dict.fromkeys(last, least) | pinned
    return _with_pinned(pinned, uniform, params, density, layout)


def erk_plus(
    params: Any,
    density: float,
    layout: Layout | None = None,
    *,
    head: str | None = None,
    head_density: float = 1.0,
    power: float = 1.0,
) -> Any:
    """ERK+: the last layer has a density of its own, 1 by default; the others get the rest by ERK.

    Args:
      params, density, layout, power: as `erk`.
      head: glob of the last layers; None: `leaves.output_layers`.
      head_density: their density, in (0, 1].

    Raises:
      ValueError: as `erk`; a glob matches nothing; or the head alone is more than the total (the official code then
        gives negative densities).

    Example:
      >>> params = {"dense": jnp.ones((32, 64)), "head": jnp.ones((64, 10))}
      >>> erk_plus(params, 0.5)
      {'dense': 0.34375, 'head': 1.0}

    Source: Liu et al. 2022, arXiv:2202.02643.
    """
    share = checked_density(head_density, "head_density")
    paths = list(_sizes(params))
    pinned = dict.fromkeys(_matching(head, paths, "head") if head else _head_of(paths), share)
    return _with_pinned(pinned, partial(erk, power=power), params, checked_density(density, "density"), layout)


def _with_pinned(
    pinned: Mapping[str, float], others: Distribution, params: Any, density: float, layout: Layout | None
) -> Any:
    """The densities of the pinned paths, and by `others` those of the rest, such that the whole has `density`."""
    rest = _rest_density(_sizes(params), pinned, density)
    free = map_named(lambda path, leaf: None if path in pinned else leaf, params)
    shared = dict(named_leaves(others(free, rest, layout)))
    return map_named(lambda path, leaf: pinned[path] if path in pinned else shared[path], params)


def _sizes(params: Any) -> dict[str, int]:
    return {path: math.prod(leaf.shape) for path, leaf in named_leaves(params)}


def _kernels(params: Any, layout: Layout | None) -> list[str]:
    """The leaves with four axes or more that are not stacked: convolutions over images."""
    axes = {path: checked_axes(layout, path, leaf) for path, leaf in named_leaves(params)}
    return [path for path, each in axes.items() if len(each.inputs) + len(each.outputs) >= 4]


def _first_of(kernels: list[str]) -> list[str]:
    stems = [path for path in kernels if "stem" in path.lower().split("/")]
    return stems or in_natural_order(kernels)[:1]


def _head_of(paths: list[str]) -> list[str]:
    return output_layers(paths) if paths else []


def _matching(glob: str, paths: list[str], field: str) -> list[str]:
    check_glob(glob, paths, field)
    return [path for path in paths if fnmatchcase(path, glob)]


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

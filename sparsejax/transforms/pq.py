"""The PQ index: how unequal the magnitudes of a layer's weights are, and how many of them SAP prunes for it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsejax.leaves import Axes, Layout, checked_axes, named_leaves
from sparsejax.masks import map_masks, masks_from
from sparsejax.selection.counts import Count, as_float, count_true, minus, plus, rounded, scaled, smaller
from sparsejax.transforms.shares import mean_of

PyTree = Any
SCOPES = ("neuron", "layer", "global")


class PQ(NamedTuple):
    """The numbers of SAP's rule, which `checked_pq` has seen.

    Attributes:
      p, q: of the norms, 0 < p < q, p <= 1.
      gamma, eta, beta: see `sparsejax.sap`.
    """

    p: float = 0.5
    q: float = 1.0
    gamma: float = 1.0
    eta: float = 0.0
    beta: float = 0.9


def checked_pq(scope: str, p: float, q: float, gamma: float = 1.0, eta: float = 0.0, beta: float = 0.9) -> PQ:
    """The arguments as PQ; ValueError where one is out of range."""
    if scope not in SCOPES:
        raise ValueError(f"scope={scope!r}: 'neuron', 'layer' or 'global'")
    if not 0 < p <= 1 or not p < q < math.inf:
        raise ValueError(f"p={p}, q={q}: 0 < p < q and p <= 1 are needed")
    for name, value in (("gamma", gamma), ("eta", eta)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value} must be finite and at least 0")
    if not 0 <= beta < 1:
        raise ValueError(f"beta={beta} must lie in [0, 1)")
    return PQ(p, q, gamma, eta, beta)


def pq_index(
    params: PyTree,
    masks: PyTree = None,
    scope: str = "layer",
    *,
    p: float = 0.5,
    q: float = 1.0,
    layout: Layout | None = None,
) -> Any:
    """The PQ index of the weights that masks keep: 1 - (mean |w|^p)^(1/p) / (mean |w|^q)^(1/q), in [0, 1).

    It is 0 where all magnitudes are equal, and larger where few weights hold most of the sum.

    Args:
      params: any tree of arrays.
      masks: bool arrays or None; None: those of `masks_from(params)`, the weights that are not 0.
      scope: "layer": one number for each masked leaf, and for each layer of a stacked one; "neuron": one for each
        output; "global": one for all leaves together.
      p, q: 0 < p < q, p <= 1.
      layout: which axes are inputs and outputs; None is Flax's.

    Returns:
      "global": a float32 scalar. Else the params' tree, with arrays of the shape of the leaf's stacked (and, of
      neurons, output) axes, and None at leaves without a mask. Where nothing is kept it is 0.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> weights = {"dense": {"kernel": jnp.array([[4.0, 0.0], [1.0, 1.0]])}}
      >>> round(float(pq_index(weights)["dense"]["kernel"]), 4)  # of 4, 1 and 1: 1 - (4 / 3)^2 / 2
      0.1111

    Source: Diao et al. 2023, arXiv:2302.05601; the means, which replace D^(1/q - 1/p), are the official code's.
    """
    numbers = checked_pq(scope, p, q)
    flat = jax.tree.leaves(map_masks(lambda m, w: None if m is None else (w, m), _masks(params, masks), params))
    axes = _axes(params, masks, layout)
    parts = list(zip(flat[::2], flat[1::2], axes, strict=True))
    if scope == "global":
        return jnp.ravel(global_index(parts, numbers)[0])[0] if parts else jnp.zeros(())
    found = iter([jnp.squeeze(local_index(*part, scope, numbers)[0], ranked_axes(part[2], scope)) for part in parts])
    return map_masks(lambda m, w: None if m is None else next(found), _masks(params, masks), params)


def _masks(params: PyTree, masks: PyTree) -> PyTree:
    return masks_from(params) if masks is None else masks


def _axes(params: PyTree, masks: PyTree, layout: Layout | None) -> list[Axes]:
    chosen = map_masks(lambda m, w: None if m is None else w, _masks(params, masks), params)
    return [checked_axes(layout, path, leaf) for path, leaf in named_leaves(chosen)]


def ranked_axes(axes: Axes, scope: str) -> tuple[int, ...]:
    """Which axes of a leaf are one scope: a neuron's inputs, or a layer."""
    return tuple(sorted(axes.inputs if scope == "neuron" else (*axes.inputs, *axes.outputs)))


def local_index(weight: jax.Array, mask: jax.Array, axes: Axes, scope: str, numbers: PQ) -> tuple[jax.Array, Count]:
    """The index of each neuron or layer of a leaf, and how many weights it keeps; ranked axes have size 1."""
    over = ranked_axes(axes, scope)
    mean_p, mean_q = (mean_of(_power(weight, power), mask, over) for power in (numbers.p, numbers.q))
    return _index(mean_p, mean_q, numbers), count_true([mask], over)[0]


def global_index(parts: list[tuple[jax.Array, jax.Array, Axes]], numbers: PQ) -> tuple[jax.Array, Count]:
    """The index of all leaves together, and how many weights they keep, both of shape (1,)."""
    flat = lambda x: x.reshape(1)
    counts: list[Count] = []
    sums: list[list[jax.Array]] = [[], []]
    for weight, mask, _ in parts:
        over = tuple(range(weight.ndim))
        counts.append(Count(*map(flat, count_true([mask], over)[0])))
        for found, power in zip(sums, (numbers.p, numbers.q), strict=True):
            found.append(flat(mean_of(_power(weight, power), mask, over)) * as_float(counts[-1]))
    number = plus(counts)
    every = jnp.maximum(as_float(number), 1.0)
    mean_p, mean_q = (sum(found[1:], found[0]) / every for found in sums)
    return _index(mean_p, mean_q, numbers), number


def _power(weight: jax.Array, power: float) -> jax.Array:
    size = jnp.abs(weight).astype(jnp.float32)
    return size if power == 1 else jnp.sqrt(size) if power == 0.5 else size**power


def _index(mean_p: jax.Array, mean_q: jax.Array, numbers: PQ) -> jax.Array:
    norm_p, norm_q = mean_p ** (1 / numbers.p), mean_q ** (1 / numbers.q)
    index = 1 - norm_p / jnp.where(norm_q > 0, norm_q, 1.0)
    return jnp.where((norm_q > 0) & (index > 0), index, 0.0)


def kept_after(index: jax.Array, number: Count, numbers: PQ) -> Count:
    """How many of `number` weights SAP keeps: all but floor(d min(gamma (1 - m / d), beta)).

    m = ceil(d (1 + eta)^(-q / (q - p)) (1 - I)^(q p / (q - p))), the least number of weights that matter.
    """
    p, q = numbers.p, numbers.q
    share = (1 + numbers.eta) ** (-q / (q - p)) * (1 - index) ** (q * p / (q - p))
    least = smaller(number, rounded(as_float(number) * share, "ceil"))
    wanted = rounded(as_float(minus(number, least)) * numbers.gamma)
    return minus(number, smaller(wanted, scaled(number, numbers.beta)))

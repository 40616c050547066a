"""Which leaves of an inner optimizer's state belong to which parameter, and what they are for a zero weight."""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax.leaves import path_parts
from sparsejax.masks import selected

PyTree = Any


def owned_leaves(state: PyTree, params: PyTree) -> list[int | None]:
    """For each leaf of `state`, the index of the parameter it belongs to, or None.

    A state leaf belongs to a parameter whose path ends the leaf's own path, if the shapes agree; among several, to the
    one under whose prefix the most parameters are found. So moments are found in any optimizer, known or not, and
    factored moments and counters are left alone.
    """
    owners = {
        path_parts(path): (i, leaf.shape) for i, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(params))
    }
    candidates = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        parts = path_parts(path)
        ends = [(parts[:start], owners.get(parts[start:])) for start in range(len(parts) + 1)]
        candidates.append([(prefix, owner[0]) for prefix, owner in ends if owner and owner[1] == jnp.shape(leaf)])
    hosted = Counter(prefix for fits in candidates for prefix, _ in fits)
    return [max(fits, key=lambda fit: hosted[fit[0]])[1] if fits else None for fits in candidates]


def params_shaped(state: PyTree, params: PyTree) -> list[dict[str, jax.Array]]:
    """For each parameter, the state leaves that belong to it, by the path that leads to them (`0/mu`)."""
    names = [path_parts(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    result: list[dict[str, jax.Array]] = [{} for _ in names]
    with_paths = jax.tree_util.tree_leaves_with_path(state)
    for (path, leaf), owner in zip(with_paths, owned_leaves(state, params), strict=True):
        if owner is not None:
            parts = path_parts(path)
            result[owner]["/".join(parts[: len(parts) - len(names[owner])])] = leaf
    return result


def reset_off(
    inner: optax.GradientTransformation, state: PyTree, params: PyTree, masks: list[jax.Array | None]
) -> PyTree:
    """The inner state, every params-shaped leaf set, off the masks, to what `inner.init` gives for a zero weight."""
    owners = owned_leaves(state, params)
    if not any(owner is not None and masks[owner] is not None for owner in owners):
        return state
    fresh = jax.tree.leaves(inner.init(jax.tree.map(jnp.zeros_like, params)))
    leaves = jax.tree.leaves(state)
    structure: Any = jax.tree.structure(state)

    def reset(leaf, new, owner):
        mask = None if owner is None else masks[owner]
        return leaf if mask is None else selected(mask, leaf, jnp.asarray(new, leaf.dtype))

    return structure.unflatten([reset(*each) for each in zip(leaves, fresh, owners, strict=True)])

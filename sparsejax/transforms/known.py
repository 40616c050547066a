"""N:M masks that a state knows before they are laid on the params: BDWP and CAST, whose params are dense till then."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.batching import any_lane
from sparsejax.patterns import NM, pattern_mask
from sparsejax.transforms.start import Spec


def known_masks(due: jax.Array, old: list[Any], weights: list[Any], grads: list[Any], specs: list[Spec], pattern: NM):
    """The masks of the N largest |w| of every M, where due and the leaf is finite; how many leaves were refused."""
    weights, grads = lax.stop_gradient((weights, grads))
    before = [old[spec.position] for spec in specs]
    none_refused = jnp.zeros([], jnp.int32)
    if not specs:
        return old, none_refused

    def change():
        masks, refused = [], none_refused
        for spec, mask in zip(specs, before, strict=True):
            weight = weights[spec.position]
            ok = jnp.all(jnp.isfinite(weight)) & jnp.all(jnp.isfinite(grads[spec.position]))
            found = pattern_mask(pattern, jnp.abs(weight), pattern.n, spec.axes)
            masks.append(jnp.where(due & ok, found, mask))
            refused = refused + (due & ~ok).astype(jnp.int32)
        return masks, refused

    found, refused = lax.cond(any_lane(due), change, lambda: (before, none_refused))
    new = list(old)
    for spec, mask in zip(specs, found, strict=True):
        new[spec.position] = mask
    return new, refused


def laid_on(step: jax.Array, weight: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The inner step on the mask, -w off it."""
    if mask is None:
        return step
    dtype = jnp.promote_types(step.dtype, weight.dtype)
    return jnp.where(mask, step.astype(dtype), -weight.astype(dtype))

"""A branch that stays a branch under vmap."""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.custom_batching.custom_vmap
def any_lane(predicate: jax.Array) -> jax.Array:
    """The predicate, reduced by `any` over every vmapped axis.

    `lax.cond` on a batched predicate becomes a select that runs both sides in every step. This scalar stays unbatched;
    each lane then selects inside the branch.
    """
    return predicate


@any_lane.def_vmap
def _any_lane_vmapped(axis_size, in_batched, predicate):
    del axis_size
    # Calling itself again keeps the rule alive under nested vmap.
    return any_lane(jnp.any(predicate, axis=0) if in_batched[0] else predicate), False

"""The algorithms that are measured, each as a transformation around an optimizer, at 90 % sparsity.

Masks are packed, one bit a weight, but for the two cases that are named after bool masks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import sparsejax
from sparsejax import criteria, drop_and_grow, nm, schedules
from sparsejax.leaves import Layout
from sparsejax.selection import Request, Scores, order_key

SPARSITY = 0.9
EVERY = 1_000  # steps between mask updates: room for many ordinary ones
END = 100 * EVERY
FIRST = 60  # the first update measured: a ramp is past 84 % sparsity there, and each later update prunes more


class Skipped(Exception):
    """A case that cannot be measured here, and why."""


class Case(NamedTuple):
    """One algorithm.

    Attributes:
      name: on the command line and in the tables.
      family: "bare", "static", "prune", "rewire" or "nm"; the targets go by it.
      make: `(inner, layout) -> transformation`.
      changes: when masks do: "never", on the "grid" of every EVERY steps, or "always".
      random: whether it draws masks at init.
      library: whose it is.
      finish: what the library's users must call after `apply_updates`, `(params, state) -> params`.
    """

    name: str
    family: str
    make: Callable[[optax.GradientTransformation, Layout | None], optax.GradientTransformation]
    changes: str = "grid"
    random: bool = False
    library: str = "sparsejax"
    finish: Callable[[Any, Any], Any] | None = None

    def at(self, state: Any, update: int | None) -> Any:
        """The state set to a step that updates masks (the `update`-th), or for None to one that does not."""
        if self.changes != "grid":
            return state
        count = FIRST * EVERY + 1 if update is None else (FIRST + update) * EVERY
        return state._replace(count=jnp.asarray(count, jnp.int32))


def bare(inner: optax.GradientTransformation, layout: Layout | None):
    """The optimizer alone."""
    return inner


def static(inner: optax.GradientTransformation, layout: Layout | None, packed: bool = True):
    return sparsejax.static(inner, sparsity=SPARSITY, layout=layout, packed=packed)


def gmp(inner: optax.GradientTransformation, layout: Layout | None, distribution: str | None = None):
    options = dict(update_end=END, update_every=EVERY, layout=layout, distribution=distribution)
    return sparsejax.gmp(inner, sparsity=SPARSITY, packed=True, **options)


def set_(inner: optax.GradientTransformation, layout: Layout | None):
    return sparsejax.set_(inner, sparsity=SPARSITY, update_every=EVERY, layout=layout, packed=True)


def rigl(inner: optax.GradientTransformation, layout: Layout | None, packed: bool = True):
    return sparsejax.rigl(inner, sparsity=SPARSITY, update_every=EVERY, layout=layout, packed=packed)


def granet(inner: optax.GradientTransformation, layout: Layout | None):
    """As GraNet does (Liu et al. 2021, arXiv:2106.10404): each update prunes along the ramp, then rewires by gradient.

    Its plan's phase both ramps and drops, so that every update measured does both.
    """
    plan = (schedules.Phase(until=END, every=EVERY, ramp=True, drop_fraction=0.3),)
    new_mask = partial(drop_and_grow, grow=criteria.gradient, prune=True)
    return sparsejax.sparse_wrapper(inner, new_mask, plan=plan, sparsity=SPARSITY, layout=layout, packed=True)


def fan_in(inner: optax.GradientTransformation, layout: Layout | None):
    """As SRigL does (Lasby et al. 2023, arXiv:2305.02299): RigL with the same number of inputs for every neuron."""
    options = dict(update_every=EVERY, layout=layout, pattern=sparsejax.fan_in(), packed=True)
    return sparsejax.rigl(inner, sparsity=SPARSITY, **options)


def n_of_m(n: int, m: int):
    """The N:M mask of every leaf at every step, by |w| of all its weights.

    What SR-STE does at each step, but for its dense weights: here they are zero off the mask, so this times the
    selection, not the training. Leaves that m does not divide stay dense (ResNet's stem has 3 input channels).
    """

    def make(inner: optax.GradientTransformation, layout: Layout | None):
        def new_mask(leaf):
            shape, axes = leaf.weight.shape, leaf.axes
            scores = Scores(lambda weight: order_key(jnp.abs(weight)), (leaf.pattern.units(leaf.weight, axes),))
            chosen = yield Request(scores, n, leaf.pattern.group_axes(shape, axes))
            return leaf.pattern.expand(chosen.mask, shape, axes)

        plan = (schedules.rewire(every=1, drop_fraction=0.0),)
        pattern = nm(n, m, indivisible="skip")
        return sparsejax.sparse_wrapper(inner, new_mask, plan=plan, pattern=pattern, layout=layout, packed=True)

    return make


BARE = Case("adamw", "bare", bare, changes="never", library="optax")
CASES = [
    Case("static", "static", static, changes="never", random=True),
    Case("gmp", "prune", gmp),
    Case("gmp_global", "prune", lambda inner, layout: gmp(inner, layout, "global")),
    Case("set", "rewire", set_, random=True),
    Case("rigl", "rewire", rigl, random=True),
    Case("granet", "rewire", granet),
    Case("srigl", "rewire", fan_in, random=True),
    Case("static_bool", "static", partial(static, packed=False), changes="never", random=True),
    Case("rigl_bool", "rewire", partial(rigl, packed=False), random=True),
    Case("nm_2_4", "nm", n_of_m(2, 4), changes="always"),
    Case("nm_1_16", "nm", n_of_m(1, 16), changes="always"),
]


@jax.jit
def fingerprint(masks: Any) -> jax.Array:
    """A number that changes, but for a chance of 2^-32, when any entry of the masks (bool or packed) does."""
    total = jnp.uint32(0)
    for place, mask in enumerate(jax.tree.leaves(masks)):
        index = jax.lax.iota(jnp.uint32, mask.size) + jnp.uint32(place << 16)
        index = (index ^ (index >> 15)) * jnp.uint32(0x2C1B3C6D)
        total += jnp.sum(mask.ravel().astype(jnp.uint32) * (index ^ (index >> 12)), dtype=jnp.uint32)
    return total

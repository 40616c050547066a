"""ASP: N:M once, in a trained net, for hardware that multiplies it; and the permutation of inputs that loses least."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sparsejax.leaves import Layout, Where, checked_axes, default_where
from sparsejax.patterns import NM, nm, pattern_mask
from sparsejax.schedules import check_steps, dense, gradual
from sparsejax.transforms.core import sparse_wrapper
from sparsejax.transforms.rules import keep_best


@dataclass(frozen=True)
class Fitting:
    """A `where`: what another takes (None: the default), if its outputs and inputs are multiples of two numbers."""

    base: Where | None
    layout: Layout | None
    multiples: tuple[int, int]

    @property
    def globs(self) -> tuple[str, ...]:
        """Those of the other predicate, which are checked against the tree."""
        return getattr(self.base, "globs", ())

    @property
    def why(self) -> str:
        """Why a leaf is refused."""
        return f"its outputs and inputs are no multiples={self.multiples}"

    def __call__(self, path: str, array: Any) -> bool:
        if not (self.base or default_where)(path, array):
            return False
        axes = checked_axes(self.layout, path, array)
        rows, columns = (math.prod(array.shape[axis] for axis in group) for group in (axes.outputs, axes.inputs))
        return rows % self.multiples[0] == 0 and columns % self.multiples[1] == 0


def asp(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    at_step: int = 0,
    multiples: tuple[int, int] | None = (8, 16),
    pattern: NM | None = None,
    where: Where | None = None,
    layout: Layout | None = None,
    ties: str = "index",
    seed: int | jax.Array = 0,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """ASP: keeps the N largest |w| of every M along the inputs, once, of a trained net, and trains on with fixed masks.

    Before `at_step` it trains densely. The recipe: train densely, take 2:4, repeat the training with its schedule from
    the start. Leaves whose sizes hardware cannot take stay dense. `channel_permutation` finds an order of the inputs of
    which 2:4 keeps more; its `permuted_mask` goes to `static(masks=...)`.

    Args:
      inner: the optimizer.
      sparsity: may be left out: the pattern's.
      at_step: the step (0 is the first) whose update prunes.
      multiples: (rows, columns): leaves whose number of outputs is no multiple of the first, or of inputs none of the
        second, stay dense; None: all leaves are pruned.
      pattern: `nm(n, m)`; None is `nm(2, 4)`.
      where, layout, ties, seed, packed: see `sparse_wrapper`.

    Raises:
      ValueError: an argument is out of range; in `init`, no leaf fits.

    Example:
      >>> tx = asp(optax.sgd(0.1, momentum=0.9), at_step=10_000)

    Source: Mishra et al. 2021, arXiv:2104.08378; permutations: Pool & Yu 2021.
    """
    check_steps(0, at_step=at_step)
    last = nm(2, 4) if pattern is None else pattern
    if not isinstance(last, NM):
        raise ValueError(f"pattern={pattern!r}: asp needs one nm(n, m)")
    if multiples is not None:
        sizes = tuple(multiples) if isinstance(multiples, (tuple, list)) else ()
        if len(sizes) != 2 or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
            raise ValueError(f"multiples={multiples!r}: None or two positive integers (outputs, inputs)")
        fitting = Fitting(where, layout, (sizes[0], sizes[1]))
    return sparse_wrapper(
        inner,
        keep_best,
        plan=(dense(at_step), gradual(at_step, 1)),
        sparsity=sparsity,
        pattern=last,
        where=where if multiples is None else fitting,
        layout=layout,
        ties=ties,
        seed=seed,
        packed=packed,
    )


def channel_permutation(weight: jax.Array, pattern: NM | None = None, *, axis: int = -2, sweeps: int = 10) -> jax.Array:
    """An order of the entries along an axis in which N:M keeps more of sum |w|, by swaps that gain most.

    Entry after entry is swapped with the one in another group that gains most, until a sweep gains nothing. The kept
    sum is never below that of the order as it is. A sweep of C entries costs C^2 M comparisons of all other axes.

    Args:
      weight: any shape.
      pattern: `nm(n, m)`; None is `nm(2, 4)`. Its axis is not read.
      axis: along which groups lie: the input channels.
      sweeps: at most so many.

    Returns:
      int32 of the axis' length: at each place, the entry that stands there.

    Raises:
      ValueError: m does not divide the axis.

    Example:
      >>> w = jnp.array([[4.0], [3.0], [2.0], [1.0]])
      >>> order = channel_permutation(w, sparsejax.nm(1, 2))
      >>> float(jnp.where(permuted_mask(w, order, sparsejax.nm(1, 2)), w, 0).sum())
      7.0
    """
    pattern = pattern or nm(2, 4)
    n, m, size = pattern.n, pattern.m, weight.shape[axis]
    if size % m:
        raise ValueError(f"axis {axis} of {weight.shape} has {size} entries, which m = {m} does not divide")
    scores = jnp.abs(jnp.moveaxis(weight, axis, 0).reshape(size, -1)).astype(jnp.float32)
    kept = lambda groups: jnp.sum(lax.top_k(jnp.moveaxis(groups, -2, -1), n)[0], (-2, -1))  # of (..., m, rest)

    def swap(i, order):
        places = jnp.arange(size)
        own, others = i // m, places // m
        group = lambda g: order[g * m + jnp.arange(m)]  # entries of a group
        before = kept(scores[order.reshape(-1, m)])
        mine = group(own).at[i % m]

        def gain(j):
            theirs = group(j // m).at[j % m].set(order[i])
            return kept(scores[mine.set(order[j])]) + kept(scores[theirs]) - before[own] - before[j // m]

        gains = jnp.where(others == own, 0.0, lax.map(gain, places))
        best = jnp.argmax(gains)
        swapped = order.at[i].set(order[best]).at[best].set(order[i])
        # A gain within rounding is none: it could go round in circles.
        return jnp.where(gains[best] > 1e-6 * jnp.sum(before), swapped, order)

    def sweep(carry):
        number, order, _ = carry
        after = lax.fori_loop(0, size, swap, order)
        return number + 1, after, jnp.any(after != order)

    begin = (jnp.int32(0), jnp.arange(size, dtype=jnp.int32), jnp.ones([], bool))
    return lax.while_loop(lambda carry: carry[2] & (carry[0] < sweeps), sweep, begin)[1]


def permuted_mask(weight: jax.Array, order: jax.Array, pattern: NM | None = None, *, axis: int = -2) -> jax.Array:
    """The N:M mask by |w| of the weight with its entries along an axis in another order, in their own order again.

    Args:
      weight: any shape, in Flax's layout.
      order: of `channel_permutation`.
      pattern, axis: as there.

    Example:
      >>> permuted_mask(jnp.array([[4.0], [3.0], [2.0], [1.0]]), jnp.array([0, 2, 1, 3]), sparsejax.nm(1, 2)).ravel()
      Array([ True,  True, False, False], dtype=bool)
    """
    along = (pattern or nm(2, 4))._replace(axis=axis % weight.ndim)
    mask = pattern_mask(along, jnp.abs(jnp.take(weight, order, axis)), along.n)
    return jnp.take(mask, jnp.argsort(order), axis)

"""Spartan: hard masks forward, soft top-k masks backward, ever harder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparsejax.leaves import Layout, Where
from sparsejax.schedules import check_steps, gradual
from sparsejax.selection import Request, Scores, order_key
from sparsejax.selection.counts import as_float
from sparsejax.transforms.affordable import affordable
from sparsejax.transforms.hard_steps import cut
from sparsejax.transforms.lockstep import Steps, Together
from sparsejax.transforms.proposals import Leaf
from sparsejax.transforms.reparametrized import reparametrized
from sparsejax.transforms.rules import Rule
from sparsejax.transforms.sinkhorn import Transport, at_fixed_point, soft_top
from sparsejax.transforms.start import Distribution, Patterns


class _Plan(NamedTuple):
    """The numbers of a run of Spartan, and its rules."""

    beta_init: float
    beta: float
    freeze: int
    max_iterations: int
    tolerance: float
    costs: Mapping[str, float]

    def beta_at(self, leaf: Leaf, units: jax.Array) -> jax.Array:
        """beta at a step; its end is scaled up by sqrt(weights of a unit), as means over units vary less."""
        end = self.beta * math.sqrt(leaf.weight.size / max(units.size, 1))
        done = jnp.clip(leaf.step.astype(jnp.float32) / max(self.freeze, 1), 0.0, 1.0)
        return self.beta_init + done * (end - self.beta_init)

    def cost(self, leaf: Leaf) -> float:
        return next((float(cost) for glob, cost in self.costs.items() if fnmatchcase(leaf.path, glob)), 1.0)

    def transport(self, leaves: list[Leaf], axes: tuple[int, ...] | None) -> Transport:
        return Transport(tuple(self.cost(leaf) for leaf in leaves), axes, self.max_iterations, self.tolerance)

    def in_layer(self, leaf: Leaf) -> Rule:
        """The mask of the largest |w| of each group, and the soft mask that goes with it."""
        group = leaf.pattern.group_axes(leaf.weight.shape, leaf.axes)
        value, cost = _value(leaf), self.cost(leaf)
        hard = (yield Request(Scores(order_key, (value,)), leaf.keep, group, leaf.ties)).mask
        least = jnp.min(jnp.where(hard, value, jnp.inf), group, keepdims=True) / cost
        kept = as_float(leaf.keep)
        how = self.transport([leaf], group)
        (soft,) = soft_top(how, [value], kept * cost, self.beta_at(leaf, value), least)
        soft = jnp.where(kept >= math.prod(value.shape[axis] for axis in group), 1.0, soft)
        return self._until_frozen(leaf, leaf.pattern.expand(hard, leaf.weight.shape, leaf.axes), soft)

    def over_all(self, leaves: list[Leaf]) -> Steps:
        """The same over all layers together, by |w| / cost."""
        values = [_value(leaf) for leaf in leaves]
        how, sizes = self.transport(leaves, None), [leaf.weight.size for leaf in leaves]
        kept = as_float(leaves[0].keep)
        ratios = [value / cost for value, cost in zip(values, how.costs, strict=True)]
        wanted = [Request(Scores(order_key, (r,)), leaves[0].keep, tuple(range(r.ndim)), leaf.ties)
                  for r, leaf in zip(ratios, leaves, strict=True)]  # fmt: skip
        masks = [chosen.mask for chosen in (yield Together(wanted, leaves[0].keep))]
        total = sum(size * cost for size, cost in zip(sizes, how.costs, strict=True))
        budget = kept * (total / sum(sizes))
        if len(set(how.costs)) > 1:
            masks = affordable(ratios, how.costs, budget)
        least = jnp.min(jnp.stack([jnp.min(jnp.where(m, r, jnp.inf)) for m, r in zip(masks, ratios, strict=True)]))
        softs = soft_top(how, values, budget, self.beta_at(leaves[0], values[0]), least)
        full = kept >= sum(sizes)
        found = zip(leaves, masks, softs, strict=True)
        return [self._until_frozen(leaf, m | full, jnp.where(full, 1.0, soft)) for leaf, m, soft in found]

    def _until_frozen(self, leaf: Leaf, mask: jax.Array, soft: jax.Array) -> Any:
        frozen = leaf.step > self.freeze
        return jnp.where(frozen, leaf.mask, mask), jnp.where(frozen, leaf.memory, soft)

    def values(self, leaves: list[Leaf], axes: tuple[int, ...] | None) -> list[jax.Array]:
        """w m cut by the mask; until the freeze the gradient sees neither the cut nor that m is at hand."""
        how = self.transport(leaves, axes)
        values, memories = [_value(leaf) for leaf in leaves], [leaf.memory for leaf in leaves]
        softs = at_fixed_point(how, values, memories, self.beta_at(leaves[0], values[0]))
        return [self._product(leaf, soft) for leaf, soft in zip(leaves, softs, strict=True)]

    def _product(self, leaf: Leaf, soft: jax.Array) -> jax.Array:
        spread = lambda m: leaf.pattern.expand(m, leaf.weight.shape, leaf.axes)
        trained = cut(leaf.weight * spread(soft), leaf.mask)
        fixed = leaf.weight * jnp.where(leaf.mask, spread(leaf.memory), 0.0)
        return jnp.where(leaf.step >= self.freeze, fixed, trained)


def _value(leaf: Leaf) -> jax.Array:
    return leaf.pattern.units(jnp.abs(leaf.weight), leaf.axes).astype(jnp.float32)


def spartan(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    total_steps: int = 10_000,
    beta_init: float = 1.0,
    beta: float = 20.0,
    warmup_fraction: float = 0.2,
    finetune_fraction: float = 0.2,
    max_iterations: int = 100,
    tolerance: float = 0.01,
    costs: Mapping[str, float] | None = None,
    dense_dtype: Any = None,
    distribution: Distribution | str | None = None,
    pattern: Patterns = None,
    where: Where | None = None,
    layout: Layout | None = None,
    ties: str = "index",
    seed: int | jax.Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """Spartan: trains dense weights through a soft top-k mask that hardens, of which a hard cut is used.

    w~ = w m cut(m), with m = sigmoid(beta |w| / c + mu) and mu such that sum c m is the budget (Sinkhorn's iteration),
    and the cut keeping exactly the k largest |w| / c. Backward the cut is the identity, and m has the gradient of the
    fixed point (implicit, no unrolling). The density falls linearly from 1 within the first `warmup_fraction` of the
    run; beta rises linearly until the last `finetune_fraction`, in which the cut m is a constant. The latent weights
    are the truth: a change of the params by hand is undone. Contract: steps and moments are those of dense weights
    (clauses 3 and 4), and masks are chosen at every step (clause 8).

    Args:
      inner: optimizer of the dense weights.
      sparsity: fraction of zeros in [0, 1) from the end of the warm-up on; may be left out where `pattern` is N:M.
      total_steps: of the whole run.
      beta_init, beta: inverse temperature at the start and at the freeze (the paper: 10 for ResNet-50, else 20); with
        units of several weights the latter is scaled by the square root of their number.
      warmup_fraction, finetune_fraction: of `total_steps`, in [0, 1].
      max_iterations, tolerance: of Sinkhorn; it ends where sum m |w| changes by no more than this share.
      costs: globs of paths -> cost of one weight, such as its FLOPs (positions of a convolution); others cost 1. With a
        global distribution and several costs the budget is one of cost: the best by |w| / c that fit into it are kept,
        and the number of weights follows. None: each costs 1.
      dense_dtype: of the dense weights in the state; None: the params'.
      distribution: None or "global" ranks all layers together (the official code's choice); a function of
        `sparsejax.distributions`: each layer by itself.
      pattern: needs a distribution of its own. where, layout, ties, seed: see `sparse_wrapper`.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> tx = spartan(optax.sgd(0.1, momentum=0.9), sparsity=0.9, total_steps=5_000)

    Source: Tai et al. 2022, arXiv:2205.14107.
    """
    check_steps(1, total_steps=total_steps, max_iterations=max_iterations)
    for name, share in (("warmup_fraction", warmup_fraction), ("finetune_fraction", finetune_fraction)):
        if isinstance(share, bool) or not 0 <= share <= 1:
            raise ValueError(f"{name}={share} must lie in [0, 1]")
    for name, value in (("beta_init", beta_init), ("beta", beta)):
        if isinstance(value, bool) or not 0 < value < math.inf:
            raise ValueError(f"{name}={value} must be a finite number above 0")
    if isinstance(tolerance, bool) or not 0 <= tolerance < 1:
        raise ValueError(f"tolerance={tolerance} must lie in [0, 1)")
    if any(isinstance(cost, bool) or not 0 < cost < math.inf for cost in (costs or {}).values()):
        raise ValueError(f"costs={dict(costs or {})}: each must be a finite number above 0")
    if distribution is None and pattern is None:
        distribution = "global"
    freeze = total_steps - int(finetune_fraction * total_steps)
    ramp = gradual(int(warmup_fraction * total_steps), 1)._replace(power=1)
    rules = _Plan(beta_init, beta, freeze, max_iterations, tolerance, costs or {})
    across = distribution == "global"
    return reparametrized(
        inner,
        None if across else lambda leaf: rules.values([leaf], leaf.pattern.group_axes(leaf.weight.shape, leaf.axes))[0],
        forwards=(lambda leaves: rules.values(leaves, None)) if across else None,
        init_memory=lambda leaf: jnp.ones_like(_value(leaf)),
        new_mask=None if across else rules.in_layer,
        new_masks=rules.over_all if across else None,
        soft=True,
        dense_dtype=dense_dtype,
        plan=(ramp,),
        sparsity=sparsity,
        distribution=distribution,
        pattern=pattern,
        where=where,
        layout=layout,
        ties=ties,
        seed=seed,
    )

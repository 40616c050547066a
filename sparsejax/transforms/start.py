"""How a sparse transformation begins: which leaves, how many weights of each, which masks."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsejax import schedules
from sparsejax.distributions import erk, uniform
from sparsejax.leaves import Axes, Layout, Where, checked_axes, leaf_path, named_leaves, select_leaves
from sparsejax.masks import flat_masks
from sparsejax.patterns import NM, Pattern, check_pattern_globs, kept_units, pattern_of
from sparsejax.selection import devices, order_key
from sparsejax.selection.random_masks import Draw, drawn_masks

PyTree = Any
Distribution = Callable[..., PyTree]
Patterns = Pattern | Mapping[str, Pattern] | None


class Spec(NamedTuple):
    """The static facts of one sparsified leaf: its place in the flat tree, path, axes, pattern."""

    position: int
    path: str
    axes: Axes
    pattern: Pattern


class Choice(NamedTuple):
    """What the user asked for about leaves and counts, checked.

    Attributes:
      sparsity: fraction of zeros (unused where masks are given).
      distribution: of densities over layers, or "global" (one budget for all).
      pattern, where, layout, ties: see `sparse_wrapper`.
      start: "dense" or "random".
      plan: phases.
    """

    sparsity: float
    distribution: Any
    pattern: Patterns
    where: Where | None
    layout: Layout | None
    start: str
    plan: schedules.Plan

    @property
    def one_budget(self) -> bool:
        """Whether all leaves share one count."""
        return self.distribution == "global"

    @property
    def has_ramp(self) -> bool:
        """Whether the kept counts change over time, so that the state holds a table of them."""
        return schedules.ramp_of(self.plan) is not None


def checked_choice(sparsity, distribution, pattern, where, layout, start, plan, masks, new_masks) -> Choice:
    """The arguments as a Choice; ValueError, at construction, where they are out of range or contradict each other."""
    schedules.check_plan(plan)
    if start not in ("dense", "random"):
        raise ValueError(f"start={start!r}: 'dense' or 'random'")
    target = _checked_sparsity(sparsity, pattern, distribution)
    if target is None and masks is None:
        raise ValueError("sparsity is missing: a fraction of zeros in [0, 1)")
    if masks is not None and schedules.ramp_of(plan) is not None:
        raise ValueError(
            "masks: given masks keep their counts, so the plan cannot have a gradual phase; leave masks out"
        )
    if isinstance(distribution, str) and distribution != "global":
        hint = " ('lamp' is for gmp and one_shot)" if distribution == "lamp" else ""
        raise ValueError(f"distribution={distribution!r}: a function of sparsejax.distributions, or 'global'{hint}")
    if distribution == "global" and new_masks is None:
        raise ValueError("distribution='global' needs a method that ranks over all leaves: gmp or one_shot")
    if distribution == "global" and pattern is not None:
        raise ValueError("distribution='global' ranks single weights; leave pattern out")
    default = erk if start == "random" else uniform
    return Choice(target or 0.0, distribution or default, pattern, where, layout, start, plan)


def specs_of(tree: PyTree, chosen: list[Any], pattern: Patterns, layout: Layout | None) -> list[Spec]:
    """One spec for each leaf of `tree` that `chosen` does not give as None."""
    specs = []
    for index, ((path, leaf), choice) in enumerate(zip(named_leaves(tree), chosen, strict=True)):
        if choice is not None:
            specs.append(Spec(index, path, checked_axes(layout, path, leaf), pattern_of(pattern, path)))
    return specs


def leaf_key(key: jax.Array, path: str) -> jax.Array:
    """A PRNG key for one leaf: it depends on the leaf's path alone, not on the tree around it."""
    return jax.random.fold_in(jax.random.wrap_key_data(key), zlib.crc32(path.encode()))


def starting_masks(params: PyTree, choice: Choice, key: jax.Array) -> tuple[list[jax.Array | None], Any]:
    """The masks at init, one entry a leaf, and the table of kept counts that a gradual method needs (else ())."""
    leaves = jax.tree.leaves(params)
    check_pattern_globs(choice.pattern, [path for path, _ in named_leaves(params)])
    structure: Any = jax.tree.structure(params)
    selected = structure.flatten_up_to(select_leaves(params, choice.where))
    specs = specs_of(params, selected, choice.pattern, choice.layout)
    specs = [spec for spec in specs if spec.pattern.check(spec.path, leaves[spec.position].shape, spec.axes)]
    sizes = [spec.pattern.group_size(leaves[spec.position].shape, spec.axes) for spec in specs]
    begins = schedules.ramp_values(choice.plan)[0]  # the share of the target sparsity that random masks start with
    if choice.one_budget:
        keeps = sizes
        if choice.start == "random":
            shared = choice._replace(distribution=erk, sparsity=choice.sparsity * begins)
            densities = layer_densities(params, specs, shared)
            keeps = [kept_units(size, 1 - density) for size, density in zip(sizes, densities, strict=True)]
        tables = [_keep_table(sum(leaves[spec.position].size for spec in specs), choice.sparsity, choice.plan)]
    else:
        densities = layer_densities(params, specs, choice)
        keeps = [kept_units(size, (1 - density) * begins) for size, density in zip(sizes, densities, strict=True)]
        tables = [_keep_table(size, 1 - density, choice.plan) for size, density in zip(sizes, densities, strict=True)]
    flat: list[jax.Array | None] = [None] * len(leaves)
    weights = [leaves[spec.position] for spec in specs]
    if choice.start == "random":
        started = _random_masks(weights, specs, keeps, key)
    else:
        started = [jnp.ones(weight.shape, bool) for weight in weights]
    for spec, weight, mask in zip(specs, weights, started, strict=True):
        flat[spec.position] = beside(mask, weight)
    if not choice.has_ramp:
        return flat, ()
    return flat, jnp.asarray(tables, jnp.uint32).reshape(len(tables), len(schedules.ramp_values(choice.plan)), 2)


def given_masks(params: PyTree, masks: PyTree) -> list[jax.Array | None]:
    """Copies of the masks that the user hands over, checked against the params."""
    try:
        flat = flat_masks(params, masks)
    except ValueError as error:
        raise ValueError(f"masks: not the params' tree with a bool array or None at each leaf ({error})") from None
    copies: list[jax.Array | None] = []
    for (path, leaf), mask in zip(jax.tree_util.tree_leaves_with_path(params), flat, strict=True):
        if mask is None:
            copies.append(None)
        elif getattr(mask, "shape", None) != leaf.shape or mask.dtype != jnp.bool_:
            given = f"{getattr(mask, 'dtype', type(mask).__name__)}{getattr(mask, 'shape', '')}"
            raise ValueError(
                f"masks: {leaf_path(path)} must be None or a bool array of shape {leaf.shape}, not {given}"
            )
        else:
            copies.append(beside(jnp.array(mask), leaf))
    return copies


def _checked_sparsity(sparsity: Any, pattern: Any, distribution: Any) -> float | None:
    """The sparsity as a float, from the pattern where that is N:M; ValueError where the three do not agree."""
    if isinstance(pattern, NM):
        implied = 1 - pattern.n / pattern.m
        if distribution is not None:
            raise ValueError(
                f"distribution: nm({pattern.n}, {pattern.m}) fixes each layer's density; leave distribution out"
            )
        if sparsity is not None and abs(sparsity - implied) > 1e-9:
            raise ValueError(f"sparsity={sparsity}: nm({pattern.n}, {pattern.m}) is {implied}; leave sparsity out")
        return implied
    if sparsity is None:
        return None
    if isinstance(sparsity, bool) or not hasattr(sparsity, "__float__"):
        raise ValueError(f"sparsity={sparsity!r} must be a number in [0, 1)")
    if isinstance(sparsity, jax.core.Tracer):
        raise ValueError("sparsity must be a Python number (inject_hyperparams: static_args=static_args(method))")
    if not 0 <= float(sparsity) < 1:
        raise ValueError(f"sparsity={sparsity} must lie in [0, 1): the fraction of weights that are zero")
    return float(sparsity)


def layer_densities(params: PyTree, specs: list[Spec], choice: Choice) -> list[float]:
    """The density of each spec's leaf; N:M leaves have their own, the rest share by the distribution."""
    fixed = {spec.position: spec.pattern.n / spec.pattern.m for spec in specs if isinstance(spec.pattern, NM)}
    free = {spec.position for spec in specs} - set(fixed)
    shared: dict[int, float] = {}
    if free:
        structure: Any = jax.tree.structure(params)
        leaves = jax.tree.leaves(params)
        tree = structure.unflatten([leaf if i in free else None for i, leaf in enumerate(leaves)])
        found = structure.flatten_up_to(choice.distribution(tree, 1 - choice.sparsity, choice.layout))
        shared = {i: found[i] for i in free}
    for spec in specs:
        value = {**shared, **fixed}[spec.position]
        if value is None or not 0 < value <= 1 + 1e-9:
            raise ValueError(f"distribution: {spec.path} was given density {value}; each layer needs one in (0, 1]")
    return [min({**shared, **fixed}[spec.position], 1.0) for spec in specs]


def _keep_table(units: int, sparsity: float, plan: schedules.Plan) -> list[list[int]]:
    """Units kept after each update of the plan's ramp, in two words, from float64 arithmetic on the host."""
    counts = [kept_units(units, sparsity * share) for share in schedules.ramp_values(plan)]
    return [[count >> 16, count & 0xFFFF] for count in counts]


def _random_masks(weights: list[jax.Array], specs: list[Spec], keeps: list[int], key: jax.Array) -> list[jax.Array]:
    """Masks drawn at random, each with its kept count in every group."""
    requests = []
    for weight, spec, keep in zip(weights, specs, keeps, strict=True):
        units = jax.eval_shape(lambda w=weight, s=spec: s.pattern.units(w, s.axes)).shape
        group = spec.pattern.group_axes(weight.shape, spec.axes)
        requests.append(Draw(zlib.crc32(spec.path.encode()), units, group, keep))
    masks = drawn_masks(key, requests)
    return [spec.pattern.expand(m, w.shape, spec.axes) for m, spec, w in zip(masks, specs, weights, strict=True)]


def beside(mask: jax.Array, weight: jax.Array) -> jax.Array:
    """The mask, tied to the weight so that the compiler shards it alike; the comparison never holds."""
    if devices.on_one_device():
        return mask
    key = order_key(weight)
    return mask ^ (key == jnp.array(jnp.iinfo(key.dtype).max, key.dtype))

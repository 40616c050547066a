"""Which weights a round takes away: counts on the host, exact positions by the library's selection. Seeds first."""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.leaves import Layout, Where, checked_axes, named_leaves, output_layers, select_leaves
from sparsejax.masks import map_masks, mask_leaves
from sparsejax.selection import Count, Scores, as_count, order_key, select_across, top_mask
from sparsejax.training.errors import ConfigError

SCOPES = ("layer", "global", "neuron")
Counts = dict[str, np.ndarray]  # by path: as the mask, with 1 for the axes that are ranked together


def full_masks(params: Any, where: Where | None = None) -> Any:
    """True everywhere, None at the leaves that are not pruned; params of S seeds."""
    one_seed = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), params)
    chosen = select_leaves(one_seed, where)
    return map_masks(lambda leaf, array: None if leaf is None else np.ones(array.shape, bool), chosen, params)


def ranked_axes(path: str, mask: Any, scope: str, layout: Layout | None = None) -> tuple[int, ...]:
    """The axes of a stacked leaf that are ranked together: of a layer, or of the weights into one neuron."""
    axes = checked_axes(layout, path, jax.ShapeDtypeStruct(mask.shape[1:], jnp.float32))
    chosen = axes.inputs if scope == "neuron" else axes.inputs + axes.outputs
    return tuple(sorted(axis + 1 for axis in chosen))


def active(masks: Any, scope: str, layout: Layout | None = None) -> Counts:
    """How many weights are kept, in each group that is ranked together; with scope "global" in each seed's layers."""
    flat = {path: np.asarray(mask) for path, mask in mask_leaves(masks).items()}
    count = lambda path, mask: mask.sum(axis=ranked_axes(path, mask, scope, layout), dtype=np.int64, keepdims=True)
    return {path: count(path, mask) for path, mask in flat.items()}


def less(kept: Any, fraction: float) -> np.ndarray:
    """n - floor(fraction n) of each count n."""
    return kept - np.floor(fraction * kept + 1e-6).astype(np.int64)


def prune_fraction(
    params: Any,
    masks: Any,
    fraction: float,
    *,
    scope: str = "layer",
    output_fraction: float | None = None,
    layout: Layout | None = None,
) -> Any:
    """Takes `fraction` of the kept weights away, those of smallest |w|: n - floor(fraction n) of n stay.

    Args:
      params: (S, *shape) for S seeds.
      masks: of the same shapes, bool, or None at the leaves that are not pruned.
      fraction: in (0, 1).
      scope: what is ranked together: "layer", "global" (all layers), "neuron" (the weights into each).
      output_fraction: in its place for the output layer, where layers are pruned one by one.
      layout: of the leaves of one seed; None: Flax's.

    Returns:
      the new masks, on the host; every seed has its own. Of equal weights the first stay.

    Example:
      >>> params, masks = {"kernel": np.array([[[3.0, -1.0], [2.0, 4.0]]])}, {"kernel": np.ones((1, 2, 2), bool)}
      >>> prune_fraction(params, masks, 0.5)["kernel"].tolist()
      [[[True, False], [False, True]]]
    """
    if scope == "global":
        return prune_to(params, masks, [int(less(np.int64(n), fraction)) for n in totals(masks)])
    counts = active(masks, scope, layout)
    last = output_layers(list(counts))
    own = {path: output_fraction if path in last and output_fraction is not None else fraction for path in counts}
    return prune_to(params, masks, {path: less(n, own[path]) for path, n in counts.items()}, scope, layout)


def totals(masks: Any) -> list[int]:
    """How many weights each seed keeps."""
    leaves = [np.asarray(mask) for mask in jax.tree.leaves(masks)]
    return [sum(int(mask[seed].sum()) for mask in leaves) for seed in range(leaves[0].shape[0])]


def prune_to(
    params: Any, masks: Any, kept: Sequence[int] | Counts, scope: str = "layer", layout: Layout | None = None
) -> Any:
    """The masks with the `kept` largest |w| of what they keep.

    Args:
      params, masks, layout: as `prune_fraction`.
      kept: a number for each seed, ranked over all layers; or counts as `active` gives them, for each group.
      scope: of these groups.
    """
    flat, weights = mask_leaves(masks), dict(named_leaves(params))
    if isinstance(kept, Mapping):
        found = {}
        for path, mask in flat.items():
            over = ranked_axes(path, mask, scope, layout)
            found[path] = np.asarray(_largest(weights[path], mask, kept[path].astype(np.uint32), over))
    else:
        each = []
        for seed, count in enumerate(kept):
            one = [(weights[path][seed], mask[seed]) for path, mask in flat.items()]
            each.append(jax.device_get(_largest_of_all(one, as_count(count))))
        found = {path: np.stack(parts) for path, parts in zip(flat, zip(*each, strict=True), strict=True)}
    return with_leaves(masks, found)


def with_leaves(masks: Any, found: Mapping[str, Any]) -> Any:
    """The tree of `masks` with other leaves, by path."""
    structure: Any = jax.tree.structure(masks)
    return structure.unflatten([found[path] for path in mask_leaves(masks)])


@partial(jax.jit, static_argnums=3)
def _largest(weight: jax.Array, mask: jax.Array, kept: jax.Array, over: tuple[int, ...]) -> jax.Array:
    return top_mask(_ranked(weight, mask), kept, axes=over)


@jax.jit
def _largest_of_all(leaves: Sequence[tuple[jax.Array, jax.Array]], kept: Count) -> list[jax.Array]:
    return select_across([Scores(order_key, (_ranked(*leaf),)) for leaf in leaves], kept)


def _ranked(weight: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(mask, jnp.abs(weight), -1.0)


def drawn_scores(masks: Any, seeds: Sequence[int], draw: int) -> Any:
    """A random number in [0, 1) for each weight that can be pruned, a function of the seed, the path and `draw`."""

    def one(path, mask):
        each = [draws(seed, draw, zlib.crc32(path.encode())).random(mask.shape[1:], np.float32) for seed in seeds]
        return np.stack(each)

    return with_leaves(masks, {path: one(path, mask) for path, mask in mask_leaves(masks).items()})


def draws(*words: int) -> np.random.Generator:
    """The generator of these words: NumPy promises its stream."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


def check_scope(scope: str) -> None:
    """Raises ConfigError."""
    if scope not in SCOPES:
        raise ConfigError(f"scope: {scope!r} is not one of {', '.join(SCOPES)}")


def check_number(name: str, value: Any, fine: Callable[[Any], bool], words: str, *, whole: bool = False) -> None:
    """Raises ConfigError where an argument of a procedure is not the number that it should be."""
    kinds = (int,) if whole else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or not math.isfinite(value) or not fine(value):
        raise ConfigError(f"{name}: {value!r} is not {words}")


def check_fields(name: str, value: Any) -> dict[str, Any]:
    """The fields of the config that a round changes, as a dict; ConfigError where it is none."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name}: {value!r} is not a dict of fields of the config, such as {{'epochs': 3}}")
    return dict(value)

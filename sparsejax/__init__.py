"""sparsejax: sparse training in JAX. A sparsity method is an optax transformation that wraps your optimizer."""

from sparsejax import criteria, distributions, flops, initialization, patterns, schedules, selection
from sparsejax.leaves import equinox_layout, except_, flax_layout, only, stacked
from sparsejax.masks import apply_masks, density, get_masks, masks_from, set_masks
from sparsejax.patterns import block, channel, fan_in, nm, unstructured
from sparsejax.state import SparseState
from sparsejax.topology import exploration_rate, explored, hamming, overlap, summary
from sparsejax.transforms import (
    Leaf,
    drop_and_grow,
    gmp,
    keep_best,
    one_shot,
    rigl,
    set_,
    sparse_wrapper,
    static,
    static_args,
)

__version__ = "0.1.0"

__all__ = [
    "Leaf", "SparseState", "apply_masks", "block", "channel", "criteria", "density", "distributions", "drop_and_grow",
    "equinox_layout", "except_", "exploration_rate", "explored", "fan_in", "flax_layout", "flops", "get_masks", "gmp",
    "hamming", "initialization", "keep_best", "masks_from", "nm", "one_shot", "only", "overlap", "patterns", "rigl",
    "schedules", "selection", "set_", "set_masks", "sparse_wrapper", "stacked", "static", "static_args", "summary",
    "unstructured",
]  # fmt: skip

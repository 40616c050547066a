"""sparsejax: sparse training in JAX. A sparsity method is an optax transformation that wraps your optimizer."""

from sparsejax import criteria, distributions, flops, initialization, patterns, saliency, schedules, selection
from sparsejax.leaves import equinox_layout, except_, flax_layout, only, stacked
from sparsejax.masks import apply_masks, density, get_masks, masks_from, set_masks
from sparsejax.patterns import block, channel, fan_in, nm, unstructured
from sparsejax.state import SparseState
from sparsejax.topology import collapsed, exploration_rate, explored, hamming, overlap, summary
from sparsejax.transforms import (
    Leaf,
    drop_and_grow,
    dsr,
    gmp,
    granet,
    itop,
    keep_best,
    mest,
    one_shot,
    rigl,
    set_,
    snfs,
    sparse_wrapper,
    srigl,
    static,
    static_args,
)

__version__ = "0.1.0"

__all__ = [
    "Leaf", "SparseState", "apply_masks", "block", "channel", "collapsed", "criteria", "density", "distributions",
    "drop_and_grow", "dsr", "equinox_layout", "except_", "exploration_rate", "explored", "fan_in", "flax_layout",
    "flops", "get_masks", "gmp", "granet", "hamming", "initialization", "itop", "keep_best", "masks_from", "mest",
    "nm", "one_shot", "only", "overlap", "patterns", "rigl", "saliency", "schedules", "selection", "set_",
    "set_masks", "snfs", "sparse_wrapper", "srigl", "stacked", "static", "static_args", "summary", "unstructured",
]  # fmt: skip

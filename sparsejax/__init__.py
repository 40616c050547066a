"""sparsejax: sparse training in JAX. A sparsity method is an optax transformation that wraps your optimizer."""

from sparsejax import (
    bidirectional,
    criteria,
    distributions,
    flops,
    initialization,
    patterns,
    saliency,
    schedules,
    selection,
    topology,
)
from sparsejax.leaves import equinox_layout, except_, flax_layout, only, stacked
from sparsejax.masks import apply_masks, density, get_dense, get_masks, masks_from, set_masks
from sparsejax.patterns import block, channel, fan_in, nm, unstructured
from sparsejax.state import SparseState
from sparsejax.topology import collapsed, exploration_rate, explored, hamming, overlap, summary
from sparsejax.transforms import (
    Adjusted,
    Latent,
    Leaf,
    acdc,
    acdc_phases,
    adam_s,
    asp,
    ast,
    ast_adam,
    bdwp,
    cast,
    channel_permutation,
    choose_best,
    dnw,
    drop_and_grow,
    dsr,
    edge_popup,
    every_step,
    gmp,
    granet,
    iss_p,
    itop,
    jackpots,
    keep_best,
    mdgf,
    mest,
    movement,
    obert,
    one_shot,
    permuted_mask,
    pq_index,
    reparametrized,
    rigl,
    sap,
    sap_masks,
    scl,
    sdgf,
    set_,
    snfs,
    sparse_wrapper,
    spartan,
    sr_ste,
    srigl,
    static,
    static_args,
    ste,
    str_,
    straight_through,
    top_kast,
)

__version__ = "0.1.0"

__all__ = [
    "Adjusted", "Latent", "Leaf", "SparseState", "acdc", "acdc_phases", "adam_s", "apply_masks", "asp", "ast",
    "ast_adam", "bdwp", "bidirectional", "block", "cast", "channel", "channel_permutation", "choose_best", "collapsed",
    "criteria", "density", "distributions", "dnw", "drop_and_grow", "dsr", "edge_popup", "equinox_layout",
    "every_step", "except_", "exploration_rate", "explored", "fan_in", "flax_layout", "flops", "get_dense",
    "get_masks", "gmp", "granet", "hamming", "initialization", "iss_p", "itop", "jackpots", "keep_best", "masks_from",
    "mdgf", "mest", "movement", "nm", "obert", "one_shot", "only", "overlap", "patterns", "permuted_mask", "pq_index",
    "reparametrized", "rigl", "saliency", "sap", "sap_masks", "schedules", "scl", "sdgf", "selection", "set_",
    "set_masks", "snfs", "sparse_wrapper", "spartan", "sr_ste", "srigl", "stacked", "static", "static_args", "ste",
    "str_", "straight_through", "summary", "top_kast", "topology", "unstructured",
]  # fmt: skip

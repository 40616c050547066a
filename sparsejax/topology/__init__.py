"""What masks look like and how they move: summary, SAD, flips, exploration, fan-in, paths, dead neurons."""

from sparsejax.topology.activity import active_units, dead_units, relu_outputs
from sparsejax.topology.chain import chain_paths, effective_density
from sparsejax.topology.fans import collapsed, dead_neurons, fan_in, fan_out, histogram, input_map, leaf_fans
from sparsejax.topology.movement import (
    Churn,
    churn,
    exploration_rate,
    explored,
    flip_rate,
    hamming,
    layer_exploration,
    layer_hamming,
    overlap,
    overlaps,
)
from sparsejax.topology.paths import path_masks
from sparsejax.topology.summary import summary

__all__ = [
    "Churn", "active_units", "chain_paths", "churn", "collapsed", "dead_neurons", "dead_units", "effective_density",
    "exploration_rate", "explored", "fan_in", "fan_out", "flip_rate", "hamming", "histogram", "input_map",
    "layer_exploration", "layer_hamming", "leaf_fans", "overlap", "overlaps", "path_masks", "relu_outputs", "summary",
]  # fmt: skip

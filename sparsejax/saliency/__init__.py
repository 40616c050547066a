"""Pruning before training: scores of initial weights, and masks from them, which `static(masks=...)` trains."""

from sparsejax.saliency.blocks import layer_lottery
from sparsejax.saliency.densities import distribution_of, ratios, smart_ratio
from sparsejax.saliency.flow import synflow, synflow_scores
from sparsejax.saliency.positions import best_of, shuffled
from sparsejax.saliency.ranking import masks_from_scores
from sparsejax.saliency.rounds import in_rounds
from sparsejax.saliency.scores import grasp, magnitude, random, snip
from sparsejax.topology import collapsed

__all__ = [
    "best_of", "collapsed", "distribution_of", "grasp", "in_rounds", "layer_lottery", "magnitude", "masks_from_scores",
    "random", "ratios", "shuffled", "smart_ratio", "snip", "synflow", "synflow_scores",
]  # fmt: skip

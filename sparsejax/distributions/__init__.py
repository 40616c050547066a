"""Sparsity distributions: one overall density -> one density for each sparsified leaf.

A distribution is a function `(params, density, layout) -> tree of floats`. The params hold arrays, or
anything else with a shape (only `lamp` reads values), and None at each leaf that is not sparsified; the result is
the same tree. A leaf with stacked axes is a set of equal layers: each slice counts as a layer of its own, and
all get the leaf's one density. Options are keywords, so `functools.partial(erk, power=0.5)` is a distribution
too; `per_layer`, `set_epsilon` and `saliency.smart_ratio` make distributions.

All of them keep as many weights as uniform layers of the overall density do, to within one weight a layer (a
layer of N weights at density d drops the floor of (1 - d) N, a whole number), or raise where their rule
cannot. `"global"` is not a function
here: one threshold over all leaves needs the scores, not the shapes, so the transforms that accept the word
rank all leaves together.
"""

from sparsejax.distributions.base import Distribution
from sparsejax.distributions.by_weights import lamp, set_epsilon
from sparsejax.distributions.erdos_renyi import er, erk, uniform
from sparsejax.distributions.pinned import erk_plus, per_layer, table, uniform_plus

__all__ = [
    "Distribution", "er", "erk", "erk_plus", "lamp", "per_layer", "set_epsilon", "table", "uniform", "uniform_plus",
]  # fmt: skip

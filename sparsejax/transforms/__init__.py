"""The methods: each a function that wraps an optimizer."""

from sparsejax.transforms.core import Leaf, sparse_wrapper, static_args
from sparsejax.transforms.dsr import dsr
from sparsejax.transforms.dynamic import rigl, set_
from sparsejax.transforms.gradual import gmp, one_shot
from sparsejax.transforms.granet import granet
from sparsejax.transforms.itop import itop
from sparsejax.transforms.lockstep import side_by_side
from sparsejax.transforms.mest import mest
from sparsejax.transforms.rules import drop_and_grow, keep_best, keep_best_globally, regrow
from sparsejax.transforms.snfs import snfs
from sparsejax.transforms.srigl import srigl
from sparsejax.transforms.static import static

__all__ = [
    "Leaf",
    "drop_and_grow",
    "dsr",
    "gmp",
    "granet",
    "itop",
    "keep_best",
    "keep_best_globally",
    "mest",
    "one_shot",
    "regrow",
    "rigl",
    "set_",
    "side_by_side",
    "snfs",
    "sparse_wrapper",
    "srigl",
    "static",
    "static_args",
]

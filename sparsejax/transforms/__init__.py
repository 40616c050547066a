"""The methods: each a function that wraps an optimizer."""

from sparsejax.transforms.core import Leaf, sparse_wrapper, static_args
from sparsejax.transforms.dynamic import rigl, set_
from sparsejax.transforms.gradual import gmp, one_shot
from sparsejax.transforms.rules import drop_and_grow, keep_best, keep_best_globally
from sparsejax.transforms.static import static

__all__ = [
    "Leaf",
    "drop_and_grow",
    "gmp",
    "keep_best",
    "keep_best_globally",
    "one_shot",
    "rigl",
    "set_",
    "sparse_wrapper",
    "static",
    "static_args",
]

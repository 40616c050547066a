"""Data sets as arrays in memory: each source is one function that returns a `Dataset`."""

from sparsejax.data.digits import digits
from sparsejax.data.mnist import mnist
from sparsejax.data.source import Dataset

# name in a config -> function; the first line of its docstring is what `sparsejax list` shows
DATASETS = {"digits": digits, "mnist": mnist}

__all__ = ["DATASETS", "Dataset", "digits", "mnist"]

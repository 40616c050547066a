"""Procedures that own the training loop: generators that yield after each round, and go on where they were ended."""

from collections.abc import Callable, Iterator

from sparsejax.training.procedures.distilled import distilled_pruning
from sparsejax.training.procedures.lottery import iterative_magnitude_pruning
from sparsejax.training.procedures.rounds import Round
from sparsejax.training.procedures.sap import sap_rounds
from sparsejax.training.procedures.soup import model_soup
from sparsejax.training.procedures.spdf import spdf

# name on the command line -> generator; the first line of its docstring is what `sparsejax list` shows
PROCEDURES: dict[str, Callable[..., Iterator[Round]]] = {
    "imp": iterative_magnitude_pruning,
    "sap_rounds": sap_rounds,
    "soup": model_soup,
    "spdf": spdf,
    "distilled": distilled_pruning,
}

__all__ = [
    "PROCEDURES", "Round", "distilled_pruning", "iterative_magnitude_pruning", "model_soup", "sap_rounds", "spdf",
]  # fmt: skip

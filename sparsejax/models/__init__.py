"""The model zoo: Flax Linen modules, one file each."""

from sparsejax.models.mlp import MLP

# name in a config -> module class; the first line of its docstring is what `sparsejax list` shows
MODELS = {"mlp": MLP}

__all__ = ["MLP", "MODELS"]

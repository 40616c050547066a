"""The model zoo: Flax Linen modules, one file each."""

from collections.abc import Callable

import flax.linen as nn

from sparsejax.models.mlp import MLP

# name in a config -> module class; the first line of its docstring is what `sparsejax list` shows
MODELS: dict[str, Callable[..., nn.Module]] = {"mlp": MLP}

__all__ = ["MLP", "MODELS"]

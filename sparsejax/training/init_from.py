"""Training that starts from the params of another run: Lottery Jackpots, fine-tuning, sparse to dense."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sparsejax.leaves import named_leaves
from sparsejax.training.errors import ConfigError


def loaded_start(config: Mapping[str, Any], shapes: Any) -> Any:
    """(params, model state) of the run that a config's `init_from` names, for each seed; None where it names none.

    They are those of its best checkpoint where it keeps that, else of its newest; the averages of a run with
    `ema_decay`. The i-th seed starts from the (i mod T)-th of the T that the run has. Optimizer, masks and step
    counter start anew.

    Args:
      config: resolved.
      shapes: (params, model state) of this run, stacked over its seeds.

    Raises:
      ConfigError: there is no such run, or its model has other leaves.
    """
    folder = config["init_from"]
    if not folder:
        return None
    from sparsejax.training.trained import load_trained  # here: it needs what needs this

    try:
        found = load_trained(folder)
    except ConfigError as error:
        raise ConfigError(f"init_from: {error}") from error
    seeds = np.arange(len(config["seeds"])) % len(found.config["seeds"])
    start = jax.tree.map(lambda leaf: np.asarray(leaf)[seeds], (found.params, found.model_state))
    theirs, ours = ({path: leaf.shape[1:] for path, leaf in named_leaves(tree)} for tree in (start, shapes))
    for path in sorted(ours.keys() | theirs.keys()):
        if ours.get(path) != theirs.get(path):
            name, kinds = path.split("/", 1)[-1], (theirs.get(path), ours.get(path))
            has, needs = ("no such leaf" if kind is None else str(kind) for kind in kinds)
            raise ConfigError(f"init_from: {folder}: {name} is {has} there and {needs} here")
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), start, shapes)

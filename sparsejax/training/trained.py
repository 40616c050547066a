"""The model of a finished run, from its directory alone: for a student, for predictions, for text."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsejax.training.checkpoint import Checkpoints
from sparsejax.training.config import Resolved, resolve
from sparsejax.training.errors import ConfigError
from sparsejax.training.model import make_model
from sparsejax.training.state import to_evaluate
from sparsejax.training.tasks import Task, make_task
from sparsejax.training.trial import load, state_shapes


class Trained(NamedTuple):
    """What a run has learned.

    Attributes:
      config: resolved.
      data: the data set that it was trained on.
      model: the Linen module.
      task: of model and data.
      params, model_state: as they are evaluated (the averages of a run that keeps them), stacked over its seeds.
    """

    config: Resolved
    data: Any
    model: Any
    task: Task
    params: Any
    model_state: Any


def load_trained(workdir: str | Path) -> Trained:
    """The run's best checkpoint where it keeps that, else its newest.

    Args:
      workdir: a run directory of this tool; its config.json says what the model is.

    Raises:
      ConfigError: there is no such run, or nothing in it that is whole; or as `train`, its data are gone.
    """
    workdir = Path(workdir)
    config = read_config(workdir)
    data = load(config)
    model = make_model(config, data)
    task = make_task(config, data, model)
    params, model_state = to_evaluate(_restored(workdir, state_shapes(config, model, task)))
    return Trained(config, data, model, task, params, model_state)


def read_config(workdir: Path) -> Resolved:
    """The resolved config of a run; ConfigError if there is none."""
    try:
        written = json.loads((workdir / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{workdir} is not a run directory: config.json cannot be read: {error}") from error
    if not isinstance(written, dict) or "trials" in written:
        raise ConfigError(f"{workdir} is not a run directory: config.json is not that of a run")
    elsewhere: dict[str, Any] = {"mesh": {}, "log": [], "distill": {}, "init_from": ""}  # how it was trained is over
    return resolve(written | elsewhere)


def _restored(workdir: Path, like: Any) -> Any:
    for folder in (workdir / "best", workdir / "checkpoints"):
        if folder.is_dir():
            checkpoints = Checkpoints(folder, keep=1)
            found = checkpoints.restore(like)
            checkpoints.close()
            if found:
                return found[1]
    raise ConfigError(f"{workdir} has no checkpoint that is whole")


def of_seed(trained: Trained, seed: int | None = None) -> tuple[Any, Any]:
    """(params, model state) of one seed of the run; None is its first.

    Raises:
      ConfigError: the run has no such seed.
    """
    seeds = trained.config["seeds"]
    if seed is not None and seed not in seeds:
        raise ConfigError(f"seed: {seed} was not trained; the run has {', '.join(map(str, seeds))}")
    index = 0 if seed is None else seeds.index(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], (trained.params, trained.model_state))

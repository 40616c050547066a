"""`sparsejax sample`: text from a trained language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from sparsejax.launch.config import InputError
from sparsejax.launch.terminal import say


class Wanted(NamedTuple):
    """What `sample` is asked for.

    Attributes:
      prompt: the text to go on from.
      tokens: how many to add.
      temperature: 0 takes the likeliest token each time.
      top_k: draw from the k likeliest tokens; 0 is all.
      seed: of the draws.
      trained_seed: which seed's model; None is the run's first.
    """

    prompt: str
    tokens: int
    temperature: float
    top_k: int
    seed: int
    trained_seed: int | None


def run_sample(workdir: Path, wanted: Wanted, console: Console) -> int:
    """Prints the prompt and what the model puts behind it; exit code 0.

    Raises:
      InputError: the run is no language model's, or the prompt has characters that it has no tokens for.
    """
    import jax
    import numpy as np

    from sparsejax.models.decoding import generate
    from sparsejax.training.errors import ConfigError
    from sparsejax.training.trained import load_trained, of_seed

    try:
        trained = load_trained(workdir)
        if trained.task.name != "language":
            raise InputError(f"--workdir: {workdir} has a classifier; sparsejax predict is for that")
        params, _ = of_seed(trained, wanted.trained_seed)
    except ConfigError as error:
        raise InputError(f"--workdir: {error}") from error
    if not wanted.tokens:
        raise InputError("--tokens: 0 is not at least 1")
    prompt, key, model = _encoded(trained.data, wanted.prompt), jax.random.key(wanted.seed), trained.model
    draw = wanted.tokens, wanted.temperature, wanted.top_k or None
    new = generate(model.apply, params, prompt[None], key, *draw, context=int(model.context))
    say(console, wanted.prompt + trained.data.decode(np.asarray(new)[0].tolist()))
    return 0


def _encoded(data: Any, prompt: str) -> Any:
    import numpy as np

    if not prompt:
        raise InputError("--prompt: is empty; a model needs a token to go on from")
    try:
        return np.asarray(data.encode(prompt), np.int32)
    except ValueError as error:
        raise InputError(f"--prompt: {error}") from error

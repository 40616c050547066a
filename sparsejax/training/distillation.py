"""Distillation: the logits of a finished run of this tool as a second target."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.training.errors import ConfigError
from sparsejax.training.model import evaluated, model_fields
from sparsejax.training.tasks import Task


class Teacher(NamedTuple):
    """A trained model.

    Attributes:
      key: equal for teachers that one program can serve.
      variables: (params, model state), stacked: one for each seed of the student.
      logits: (variables of one seed, x) -> float32 logits.
    """

    key: str
    variables: Any
    logits: Callable[[Any, jax.Array], jax.Array]


def make_teacher(config: Mapping[str, Any], data: Any, task: Task) -> Teacher | None:
    """The teacher that a config's `distill` names, for each seed of the student; None where it names none.

    The student of the i-th seed learns from the teacher of the (i mod T)-th, of T that the teacher's run has.

    Raises:
      ConfigError: there is no such run, or it was trained for something else.
    """
    if not config["distill"]:
        return None
    from sparsejax.training.trained import load_trained  # here: it needs what needs this

    folder = config["distill"]["workdir"]
    try:
        trained = load_trained(folder)
    except ConfigError as error:
        raise ConfigError(f"distill.workdir: {error}") from error
    _refuse(f"distill.workdir: the teacher in {folder}", (trained.task, trained.data), (task, data))
    seeds = _seeds_for(len(config["seeds"]), len(trained.config["seeds"]))
    variables = jax.tree.map(lambda leaf: leaf[seeds], (trained.params, trained.model_state))
    computes = [trained.config[field] for field in ("model", "model_args", "dtype")] + model_fields(trained.config)
    return Teacher(json.dumps(computes), variables, lambda both, x: evaluated(trained.model, both[0], both[1], x))


def _seeds_for(students: int, teachers: int) -> np.ndarray:
    return np.arange(students) % teachers


def _refuse(who: str, teacher: tuple[Task, Any], student: tuple[Task, Any]) -> None:
    """Raises ConfigError where the teacher's answers would mean something else, or it cannot read the inputs."""
    (task, data), (own, own_data) = teacher, student
    if task.name != own.name:
        raise ConfigError(f"{who} was trained for {task.name}, not {own.name}")
    if task.outputs != own.outputs:
        (kind, theirs), (_, ours) = *task.outputs.items(), *own.outputs.items()
        raise ConfigError(f"{who} has {theirs} {kind if kind == 'classes' else 'tokens'}, the data set has {ours}")
    if task.name == "language":
        if task.units < own.units:
            raise ConfigError(f"{who} reads {task.units} tokens at once, the student {own.units}")
        if data.decode and own_data.decode and _words(data) != _words(own_data):
            raise ConfigError(f"{who} has other tokens than the data set")
        return
    if task.example.shape != own.example.shape:
        raise ConfigError(f"{who} sees inputs {list(task.example.shape[1:])}, not {list(own.example.shape[1:])}")
    scales = [(np.asarray(each.offset), np.asarray(each.scale)) for each in (data, own_data)]
    if any(a.shape != b.shape or not np.allclose(a, b) for a, b in zip(*scales, strict=True)):
        raise ConfigError(f"{who} sees pixels on another scale than the student")


def _words(data: Any) -> Sequence[str]:
    return [data.decode([token]) for token in range(min(data.vocab, 1000))]


def distilled(loss: jax.Array, logits: jax.Array, taught: jax.Array, how: Mapping[str, Any]) -> jax.Array:
    """(1 - a) loss + a T^2 KL(teacher at temperature T || student at temperature T), a mean over the batch.

    Args:
      loss: the loss without a teacher.
      logits, taught: of student and teacher, (..., classes).
      how: "alpha" a in [0, 1], "temperature" T > 0.

    Source: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network (2015).

    Example:
      >>> same = jnp.asarray([[0.0, 1.0]])
      >>> float(distilled(jnp.float32(3.0), same, same, {"alpha": 0.5, "temperature": 2.0}))
      1.5
    """
    heat, alpha = how["temperature"], how["alpha"]
    teacher = jax.nn.log_softmax(jax.lax.stop_gradient(taught) / heat)
    student = jax.nn.log_softmax(logits / heat)
    divergence = jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1).mean()
    return (1 - alpha) * loss + alpha * heat**2 * divergence

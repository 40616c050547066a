"""The learning rate over a run: a linear warm-up from 0, then one of a few shapes."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparsejax.training.errors import ConfigError
from sparsejax.training.fields import Rule, check_names, checked


class Span(NamedTuple):
    """The steps of a run: `warmup` of them first, `total` in all, `epoch` in an epoch."""

    warmup: int
    total: int
    epoch: int


def constant(step: jax.Array, span: Span) -> jax.Array:
    """Constant after the warm-up."""
    del span
    return jnp.ones_like(step, jnp.float32)


def cosine(step: jax.Array, span: Span, *, end: float = 0.0) -> jax.Array:
    """Half a cosine from the end of the warm-up to `end` (a share of the peak) at the last step."""
    return end + (1 - end) * (1 + jnp.cos(math.pi * _progress(step, span))) / 2


def linear(step: jax.Array, span: Span, *, end: float = 0.0) -> jax.Array:
    """A line from the end of the warm-up to `end` (a share of the peak) at the last step."""
    return 1 - (1 - end) * _progress(step, span)


def wsd(step: jax.Array, span: Span, *, decay: float = 0.2, end: float = 0.0) -> jax.Array:
    """Warm-up, stable, decay: constant but for the last `decay` (a share) of the run, a line to `end`.

    Source: Hu et al., MiniCPM (2024).
    """
    left = (span.total - step) / max(decay * span.total, 1e-9)
    return end + (1 - end) * jnp.clip(left, 0.0, 1.0)


def step(step: jax.Array, span: Span, *, milestones: tuple = (0.5, 0.75), factor: float = 0.1) -> jax.Array:
    """Times `factor` at each milestone: below 1 a share of the run, from 1 on a number of epochs."""
    at = [round(m * span.total) if m < 1 else round(m * span.epoch) for m in milestones]
    passed = sum((step >= first).astype(jnp.float32) for first in at)
    return jnp.float32(factor) ** passed


def _progress(step: jax.Array, span: Span) -> jax.Array:
    """From 0 at the end of the warm-up to 1 at the end of the run."""
    return jnp.clip((step - span.warmup) / max(span.total - span.warmup, 1), 0.0, 1.0)


SCHEDULES: dict[str, Callable[..., jax.Array]] = {
    "constant": constant, "cosine": cosine, "linear": linear, "step": step, "wsd": wsd,
}  # fmt: skip
_SHARE = "a number in [0, 1]"
_RULES: dict[str, Rule] = {
    "end": (0.0, (float, int), _SHARE, lambda v: 0 <= v <= 1),
    "decay": (0.2, (float, int), _SHARE, lambda v: 0 <= v <= 1),
    "factor": (0.1, (float, int), "a number in (0, 1]", lambda v: 0 < v <= 1),
    "milestones": (
        [0.5, 0.75],
        list,
        "a rising list of numbers > 0 (below 1: shares of the run; from 1 on: epochs)",
        lambda v: all(type(m) in (int, float) and m > 0 for m in v) and sorted(set(v)) == v,
    ),
}


def schedule_arguments(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the schedule takes of a config's `schedule_args`, checked; other schedules' arguments are left out.

    Raises:
      ConfigError: a name that no schedule has, or a value that is not allowed.
    """
    check_names("schedule_args", given, _RULES)
    values = {key: checked(f"schedule_args.{key}", value, _RULES[key]) for key, value in given.items()}
    takes = inspect.signature(SCHEDULES[name]).parameters
    return {key: value for key, value in values.items() if key in takes}


def make_schedule(config: Mapping[str, Any], total_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step.

    Args:
      config: a resolved config; its learning_rate, the peak, may be traced.
      total_steps: steps of the whole run, where cosine, linear and wsd end.

    Raises:
      ConfigError: the warm-up is as long as the run, and something should come after it.
    """
    peak, warmup, name = config["learning_rate"], config["warmup_steps"], config["schedule"]
    if warmup >= total_steps and name != "constant":
        raise ConfigError(f"warmup_steps: {warmup} is not below the {total_steps} steps of the run")
    span = Span(warmup, total_steps, max(1, total_steps // config["epochs"]))
    shape, arguments = SCHEDULES[name], config["schedule_args"]

    def rate(count):
        count = jnp.asarray(count)
        factor = shape(count, span, **arguments)
        if warmup:
            factor = jnp.where(count < warmup, count / warmup, factor)
        return peak * factor

    return rate

"""When masks change, and how much: plain functions of the step, and phases that compose them.

A *plan* is a tuple of phases, one after the other; each lasts until (and includes) its last step:

  plan = (dense(until=1_000), gradual(until=5_000, every=100),
          rewire(until=7_500, every=100, drop_fraction=0.3), fixed())

trains densely, prunes by the cubic schedule, then rewires as RigL does, then holds the masks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


def constant(value: float):
    """step -> value."""
    return lambda step: value


def one_shot(at_step: int, value: float = 1.0):
    """step -> 0 before `at_step`, `value` from it on."""
    return lambda step: jnp.where(step >= at_step, value, 0.0)


def cubic(initial: float, final: float, start: int, end: int):
    """step -> s_f + (s_i - s_f) (1 - (t - t_0) / (t_end - t_0))^3, held at both ends; exactly `final` at `end`.

    Source: Zhu & Gupta 2017, arXiv:1710.01878.

    Example:
      >>> round(float(cubic(0.0, 0.8, 0, 100)(50)), 6)
      0.7
    """

    def value(step):
        left = jnp.clip((end - jnp.asarray(step, jnp.float32)) / max(end - start, 1), 0.0, 1.0)
        return jnp.where(step >= end, final, final + (initial - final) * left**3)

    return value


def cosine(drop_fraction: float | jax.Array, start: int, end: int | None, final: float = 0.0):
    """step -> f + ((alpha - f) / 2) (1 + cos(pi (t - t_0) / (T_end - t_0))); constant alpha where `end` is None.

    Source: Dettmers & Zettlemoyer 2019; RigL, arXiv:1911.11134.

    Example:
      >>> float(cosine(0.3, 0, 100)(100))
      0.0
    """
    if end is None:
        return lambda step: jnp.asarray(drop_fraction, jnp.float32)

    def value(step):
        done = jnp.clip((jnp.asarray(step, jnp.float32) - start) / max(end - start, 1), 0.0, 1.0)
        return final + (drop_fraction - final) / 2 * (1 + jnp.cos(jnp.pi * done))

    return value


def stairs(steps: tuple[int, ...]):
    """step -> 1, less 1 / n at each of the n `steps`: 1, ..., 1 / n, and 0 from the last of them on.

    Example:
      >>> [stairs((90, 120))(t) for t in (0, 90, 120)]
      [1.0, 0.5, 0.0]
    """
    return lambda step: 1 - sum(step >= at for at in steps) / len(steps)


def update_grid(every: int, start: int = 0, end: int | None = None):
    """step -> True at start + every, start + 2 every, ... below `end`."""

    def is_update(step):
        inside = (step > start) & ((step - start) % every == 0)
        return inside if end is None else inside & (step < end)

    return is_update


class Phase(NamedTuple):
    """A stretch of training; made by `dense`, `fixed`, `gradual`, `rewire` and `anew`.

    Attributes:
      until: its last step; None: for ever.
      every: steps between mask updates (Delta T); 0: the masks stay.
      ramp: the sparsity climbs to the target, exactly at `until`.
      initial: of a ramp, the share of the target sparsity that it starts from.
      drop_fraction: the share alpha of the kept units that moves at the phase's begin; it is annealed to
        `final_fraction` where `until` is an integer.
      final_fraction: what the cosine ends on.
      anneal: the steps where the cosine begins and ends (None: never), where these are not the phase's own.
      stairs: steps at which ramp and drop fraction fall in equal parts, in place of the cubic rule and of the cosine.
      levels: of a ramp, (step, share of the target sparsity) pairs in place of the cubic rule: masks change at these
        steps alone, up or down.
      begun: of a ramp, that masks hold its initial sparsity already, so that its first update is a grid step later.
      anew: masks are chosen anew each `every` steps, the phase's first step and its last included.
      power: of a ramp: 3 is the cubic rule, 1 a straight line.
    """

    until: int | None = None
    every: int = 0
    ramp: bool = False
    initial: float = 0.0
    drop_fraction: float | jax.Array | None = None
    final_fraction: float = 0.0
    anneal: tuple[int, int | None] | None = None
    stairs: tuple[int, ...] = ()
    levels: tuple[tuple[int, float], ...] = ()
    begun: bool = False
    anew: bool = False
    power: int = 3


def dense(until: int) -> Phase:
    """Masks stay as they are (all True at the start) until a step."""
    return Phase(until)


def fixed() -> Phase:
    """Masks stay as they are for ever."""
    return Phase()


def gradual(until: int, every: int, initial: float = 0.0) -> Phase:
    """The sparsity climbs by the cubic rule, from `initial` x target to target, each `every` steps and at the end."""
    return Phase(until, every, ramp=True, initial=initial)


def levels(*pairs: tuple[int, float]) -> Phase:
    """At each (step, share) the sparsity becomes that share of the target; the steps increase, the last share is 1.

    Example:
      >>> plan = (levels((10, 1.0), (15, 0.0), (20, 1.0)),)  # sparse from 10 on, dense from 15 on, sparse from 20 on
    """
    return Phase(pairs[-1][0] if pairs else 0, 1, ramp=True, levels=pairs)


def rewire(every: int, drop_fraction: float | jax.Array, until: int | None = None) -> Phase:
    """Every `every` steps below `until` a share of the kept weights moves; cosine-annealed where `until` is an int."""
    return Phase(until, every, drop_fraction=drop_fraction)


def anew(every: int = 1, until: int | None = None) -> Phase:
    """Each `every` steps, from the phase's first step on and at its last, the masks are chosen anew.

    Example:
      >>> [bool(is_update((anew(2, until=5),), t)) for t in range(7)]
      [True, False, True, False, True, True, False]
    """
    return Phase(until, every, anew=True)


Plan = tuple[Phase, ...]


def spans(plan: Plan) -> list[tuple[int, Phase]]:
    """Each phase with the step before it (0 for the first)."""
    begins = [0] + [phase.until for phase in plan[:-1] if phase.until is not None]
    return list(zip(begins, plan, strict=True))


def check_plan(plan: Plan) -> None:
    """Raises ValueError where phases do not follow one another, a value is out of range, or more than one is a ramp."""
    for phase in plan[:-1]:
        if phase.until is None:
            raise ValueError("plan: only the last phase may have until=None")
    last = 0
    for phase in plan:
        if not isinstance(phase.until, int) and (phase.until is not None or phase.ramp):
            raise ValueError(f"plan: until={phase.until} must be an integer{'' if phase.ramp else ' or None'}")
        if phase.until is not None and phase.until < last:
            raise ValueError(f"plan: until={phase.until} lies before the end of the phase before it, {last}")
        last = last if phase.until is None else phase.until
        if phase.every < 0 or (phase.every == 0 and (phase.ramp or phase.anew or phase.drop_fraction is not None)):
            raise ValueError(f"plan: update_every={phase.every} must be at least 1")
        alpha = phase.drop_fraction
        if alpha is not None and not isinstance(alpha, jax.core.Tracer) and not 0 <= alpha <= 1:
            raise ValueError(f"drop_fraction={alpha} must lie in [0, 1]")
        if not 0 <= phase.final_fraction <= 1:
            raise ValueError(f"final_fraction={phase.final_fraction} must lie in [0, 1]")
        _check_levels(phase)
        if not 0 <= phase.initial <= 1:
            raise ValueError(f"plan: initial={phase.initial} must lie in [0, 1]")
    if sum(phase.ramp for phase in plan) > 1:
        raise ValueError("plan: at most one phase can be gradual")


def _check_levels(phase: Phase) -> None:
    steps, shares = [step for step, _ in phase.levels], [share for _, share in phase.levels]
    if sorted(set(steps)) != steps or any(not 0 <= share <= 1 for share in shares) or shares[-1:] not in ([], [1]):
        raise ValueError(f"plan: levels={phase.levels} must have increasing steps and shares in [0, 1], the last one 1")


def check_steps(least: int, **steps: int) -> None:
    """Raises ValueError where a named number of steps is not an integer of at least `least`."""
    for name, value in steps.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value} must be an integer of at least {least}")


def is_update(plan: Plan, step: jax.Array) -> jax.Array:
    """Whether masks change at a step; at the begin of a phase only where a ramp starts there above 0."""
    hit = jnp.zeros((), bool)
    for begin, phase in spans(plan):
        if phase.levels:
            hit |= jnp.any(step == jnp.asarray([at for at, _ in phase.levels]))
        elif phase.ramp:
            until = phase.until or 0
            on_grid = (step >= begin) & (step < until) & ((step - begin) % phase.every == 0)
            if phase.initial == 0 or phase.begun:
                on_grid &= step > begin
            hit |= on_grid | (step == until)
        elif phase.anew:
            on_grid = (step >= begin) & ((step - begin) % phase.every == 0)
            hit |= on_grid if phase.until is None else (on_grid & (step < phase.until)) | (step == phase.until)
        elif phase.every:
            hit |= update_grid(phase.every, begin, phase.until)(step)
    return hit


def drop_fraction(plan: Plan, step: jax.Array) -> jax.Array | None:
    """The share of the kept units that moves at a step, or None where no phase of the plan rewires."""
    fraction = None
    for begin, phase in spans(plan):
        if phase.drop_fraction is not None:
            inside = step > begin
            if phase.until is not None:
                inside &= step <= phase.until if phase.ramp else step < phase.until  # a ramp's last update is there
            value = jnp.where(inside, _annealed(phase, begin, step), 0.0)
            fraction = value if fraction is None else fraction + value
    return fraction


def _annealed(phase: Phase, begin: int, step: jax.Array) -> jax.Array:
    assert phase.drop_fraction is not None
    if phase.stairs:
        return phase.drop_fraction * stairs(phase.stairs)(step)
    start, end = phase.anneal or (begin, phase.until)
    return cosine(phase.drop_fraction, start, end, phase.final_fraction)(step)


def ramp_of(plan: Plan) -> tuple[int, Phase] | None:
    """The gradual phase and the step before it, if the plan has one."""
    return next(((begin, phase) for begin, phase in spans(plan) if phase.ramp), None)


def ramp_values(plan: Plan) -> list[float]:
    """The share of the target sparsity after each update of the ramp, in float64 on the host; the last is 1.0."""
    found = ramp_of(plan)
    if found is None:
        return [1.0]
    begin, phase = found
    assert phase.until is not None
    if phase.levels:
        return [0.0, *(share for _, share in phase.levels)]
    length = phase.until - begin
    steps = range(begin, phase.until, phase.every)
    left = stairs(phase.stairs) if phase.stairs else lambda t: (1 - (t - begin) / length) ** phase.power
    return [1 + (phase.initial - 1) * left(t) for t in steps] + [1.0]


def ramp_index(plan: Plan, step: jax.Array) -> jax.Array:
    """Which of `ramp_values` holds at a step."""
    found = ramp_of(plan)
    if found is None:
        return jnp.zeros_like(step)
    begin, phase = found
    assert phase.until is not None
    if phase.levels:
        return jnp.sum(step >= jnp.asarray([at for at, _ in phase.levels]), dtype=jnp.int32)
    last = math.ceil((phase.until - begin) / phase.every)
    return jnp.where(step >= phase.until, last, jnp.clip((step - begin) // phase.every, 0, last))

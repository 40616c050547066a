"""Cases measured in groups that fit into memory together, bare AdamW in every one; the rows of a result file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from cases import BARE, Case, Skipped
from program import Compiled, Material, Program
from targets import targets
from timing import Spread, interleaved, ratios, spread, verdict
from trees import Tree

LEAST_SECONDS = 0.02  # of ordinary steps in one measurement
MOST_STEPS = 400


class Settings(NamedTuple):
    """How to measure.

    Attributes:
      rounds: of update steps; of ordinary steps, which are cheap and whose target is tight, three times as many.
      memory: bytes that the cases of one group may hold together.
      platform: "cpu" or "gpu", for the targets.
      say: prints a line.
      most: cases in a group, however much fits.
      time_left: False: no further case is begun.
    """

    rounds: int
    memory: float
    platform: str
    say: Callable[[str], None]
    most: int = 5
    time_left: Callable[[], bool] = lambda: True


class Found(NamedTuple):
    """Rows of one group, and what was left out of it, with the reason and whether that is a failure."""

    rows: list[dict[str, Any]]
    left_out: list[dict[str, Any]]


def measured(tree: Tree, cases: Sequence[Case], settings: Settings) -> Iterator[Found]:
    """Measures the cases on a tree, group by group; what fails is left out, and the rest goes on."""
    facts = tree.facts()
    cases = [case for case in cases if tree.only is None or case.name in tree.only]
    if tree.compile_only:
        for case in (BARE, *(case for case in cases if case.name == "rigl")):
            yield _attempt(tree, case, settings, lambda case=case: [_row(case, facts, settings, Compiled(case, tree))])
        return
    material = Material(tree)
    prepared = _attempt(tree, BARE, settings, lambda: [Program(BARE, tree, material)])
    if not prepared.rows:
        yield prepared
        return
    (bare,) = prepared.rows
    size = min(settings.most, group_size(facts, settings.memory))
    for first in range(0, len(cases), size):
        yield _group(tree, facts, bare, cases[first : first + size], material, settings)


def _group(
    tree: Tree, facts: dict[str, Any], bare: Program, cases: Sequence[Case], material: Material, settings: Settings
) -> Found:
    programs, left_out = [bare], []
    for case in cases:
        made = _attempt(tree, case, settings, lambda case=case: [_ready(Program(case, tree, material))])
        programs += made.rows
        left_out += made.left_out
    if len(programs) == 1:
        return Found([], left_out)
    settings.say(f"{tree.name}: measuring {', '.join(program.case.name for program in programs)}")
    found = _attempt(tree, None, settings, lambda: _rows(programs, material, facts, settings))
    return Found(found.rows, left_out + found.left_out)


def group_size(facts: dict[str, Any], memory: float) -> int:
    """How many cases fit beside bare AdamW and the gradients: params, two moments and a byte of mask each."""
    params = facts["weights"] * jnp.dtype(facts["dtype"]).itemsize
    return max(1, int((memory - 2 * params - 3 * params) / (3 * params + facts["weights"])))


def _ready(program: Program) -> Program:
    program.warm_up()
    return program


def _attempt(tree: Tree, case: Case | None, settings: Settings, work: Callable[[], list[Any]]) -> Found:
    """What `work` returns, or why it could not be done."""
    name = case.name if case else "a group"
    if case and not settings.time_left():
        reason, failed = "no time left", False
    else:
        try:
            return Found(work(), [])
        except Skipped as error:
            reason, failed = str(error), False
        except Exception as error:  # one case's failure must not cost the others
            reason, failed = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", True
    settings.say(f"{tree.name}: {name} left out: {reason}")
    return Found([], [{"tree": tree.name, "case": name, "reason": reason, "failed": failed}])


def _rows(programs: list[Program], material: Material, facts: dict[str, Any], settings: Settings) -> list[dict]:
    bare = programs[0]
    bare.warm_up()
    steps = min(MOST_STEPS, max(1, math.ceil(LEAST_SECONDS / bare.ordinary(1))))
    once = {p.case.name: lambda p=p: p.ordinary(steps) for p in programs if p.case.changes != "always"}
    ordinary = interleaved(once, 3 * settings.rounds, material.refresh)
    due = {p.case.name: _update(p, steps) for p in programs if p.case.changes != "never" or p is bare}
    update = interleaved(due, settings.rounds, material.refresh) if len(due) > 1 else {}
    rows = []
    for program in programs:
        row = _row(program.case, facts, settings, program.compiled, bare.compiled)
        wanted = row["targets"]
        row["ordinary"] = _timed(program.case, ordinary, wanted.get("ordinary"))
        row["update"] = _timed(program.case, update, wanted.get("update")) if program is not bare else None
        row["dispatch_ms"] = 1e3 * program.dispatch
        row["init_seconds"] = program.init_seconds
        if program.masked_weights:
            row["mask_bytes_per_weight"] = program.mask_bytes / program.masked_weights
        rows.append(row)
    return rows


def _update(program: Program, steps: int) -> Callable[[], float]:
    """How a step with a mask update is measured; where none is, the same for steps without, to compare with."""
    return program.update if program.case.changes == "grid" else lambda: program.one_by_one(steps)


def _timed(case: Case, seconds: dict[str, dict[int, float]], target: float | None) -> dict[str, Any] | None:
    """Milliseconds and ratios to bare as quartiles, what may be said about them, and every round."""
    if case.name not in seconds:
        return None
    own, bare = seconds[case.name], seconds[BARE.name]
    ratio = spread(ratios(own, bare))
    return {
        "ms": _quartiles(spread([1e3 * value for value in own.values()])),
        "ratio": _quartiles(ratio),
        "rounds": ratio.n,
        "verdict": verdict(ratio, target),
        "every_ms": [round(1e3 * value, 4) for value in own.values()],
        "every_ratio": [round(value, 4) for value in ratios(own, bare)],
    }


def _quartiles(found: Spread) -> list[float]:
    return [round(value, 4) for value in found[:3]]


def _row(
    case: Case, facts: dict[str, Any], settings: Settings, compiled: Compiled, bare: Compiled | None = None
) -> dict[str, Any]:
    """A row without times: what the compiled step says about itself."""
    row: dict[str, Any] = {
        "tree": facts["name"],
        "case": case.name,
        "library": case.library,
        "targets": targets(case, facts, settings.platform),
        "ordinary": None,
        "update": None,
        "compile_seconds": compiled.seconds,
    }
    if bare is not None:
        row["bare_compile_seconds"] = bare.seconds
        row["temp_bytes"] = compiled.temp_bytes - bare.temp_bytes
    return row

"""What a person sees while a run or a sweep works: bars on a terminal, a few plain lines anywhere else."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn


def duration(seconds: float) -> str:
    """`42 s`, `12:05 min`, `3:07:00 h`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minute:02}:{second:02} h"
    return f"{minute}:{second:02} min" if minute else f"{second} s"


def brief(metrics: Mapping[str, Any] | None) -> str:
    """The newest loss and score, as means over the seeds: `loss 0.123, accuracy 97.2 %`."""
    parts = []
    forms = (("loss", "loss {:.4g}"), ("accuracy", "accuracy {:.2%}"), ("validation loss", "validation loss {:.4f}"))
    for name, form in forms:
        values = (metrics or {}).get(name)
        values = values if isinstance(values, list | tuple) else [] if values is None else [values]
        if values:
            parts.append(form.format(sum(map(float, values)) / len(values)).replace("%", " %"))
    return ", ".join(parts)


def score(result: Mapping[str, Any]) -> str:
    """What a finished run is judged by: `accuracy 97.22 % (96.94..97.50, 3 seeds)`, or the loss of a language model."""
    accuracy = result.get("metric", "accuracy") == "accuracy"
    values = [
        (100 if accuracy else 1) * value for value in result.get("accuracy" if accuracy else "loss") or [math.nan]
    ]
    form = "{:.2f}" if accuracy else "{:.4f}"
    text = f"{'accuracy' if accuracy else 'validation loss'} {form.format(sum(values) / len(values))}"
    text += " %" if accuracy else ""
    if len(values) == 1:
        return text
    return f"{text} ({form.format(min(values))}..{form.format(max(values))}, {len(values)} seeds)"


class Display:
    """Follows a fixed number of trials: on a terminal one bar for all with the time left and one for each
    that runs; elsewhere one line when a trial ends.

    Use as a context manager; `total` trials in all, `done` of them finished before.
    """

    def __init__(self, console: Console, total: int, done: int = 0):
        self.console = console
        self.total, self.before, self.finished = total, done, 0
        self.begun = time.monotonic()
        self.fractions: dict[str, float] = {}
        self.tasks: dict[str, TaskID] = {}
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=32),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.overall = self.bars.add_task(self._title(), total=1.0, note="")

    def __enter__(self) -> Display:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def say(self, text: str) -> None:
        """Prints a line above the bars."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def start(self, name: str) -> None:
        """A trial begins, or begins again."""
        self.end(name)
        self.tasks[name] = self.bars.add_task(f"  {name}", total=1.0, note="starting")
        self.fractions[name] = 0.0

    def step(self, name: str, done: int, total: int, metrics: Mapping[str, Any] | None = None) -> None:
        """A trial has done `done` of `total` steps."""
        self.fractions[name] = done / max(total, 1)
        if name in self.tasks:
            note = brief(metrics) or f"step {done:,} of {total:,}"
            self.bars.update(self.tasks[name], completed=self.fractions[name], note=note)
        self._refresh()

    def end(self, name: str) -> None:
        """A trial no longer runs."""
        self.fractions.pop(name, None)
        if name in self.tasks:
            self.bars.remove_task(self.tasks.pop(name))

    def finish(self, name: str, outcome: str) -> None:
        """A trial is over for good; `outcome` is shown as a line."""
        self.end(name)
        self.finished += 1
        number = f"[{self.before + self.finished}/{self.total}]"
        left = self.time_left()
        self.say(
            f"{number} {name}: {outcome}" + (f"; about {left} left" if left and not self.console.is_terminal else "")
        )
        self._refresh()

    def time_left(self) -> str:
        """From the share of the work that is done and the time that it took; empty while nothing is known."""
        share = (self.finished + sum(self.fractions.values())) / max(self.total - self.before, 1)
        if share < 0.01 or share >= 1:
            return ""
        return duration((time.monotonic() - self.begun) * (1 - share) / share)

    def _title(self) -> str:
        return f"{self.before + self.finished} of {self.total} trials done"

    def _refresh(self) -> None:
        left = self.time_left()
        done = self.before + self.finished + sum(self.fractions.values())
        note = f"{left} left" if left else ""
        self.bars.update(self.overall, completed=done / max(self.total, 1), description=self._title(), note=note)

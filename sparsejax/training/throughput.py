"""How fast a run trains: timing.jsonl, a record an evaluation, apart from what must be the same bits every time."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Throughput:
    """Measures steps per second between evaluations, without these and without compilation.

    The clock is read when a chunk's report is, which is after the chunk. A pair of chunks counts if there was no pause
    (an evaluation, a checkpoint) between them; where every pair has one, all count.
    """

    def __init__(
        self,
        path: Path,
        rates: Mapping[str, float],
        write: Callable[[Record], None] = lambda record: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Appends to `path`.

        Args:
          path: timing.jsonl.
          rates: name -> how many a step: {"steps_per_second": 1, "samples_per_second": 256, "mfu": share of a second}.
          write: is given each record too.
          clock: seconds.
        """
        self._path, self._rates, self._tell, self._clock = path, rates, write, clock
        self._last: tuple[int, float] | None = None
        self._paused = False
        self._clean, self._all = [0, 0.0], [0, 0.0]

    def seen(self, step: int) -> None:
        """The chunk that ends at `step` is done; said again, it changes nothing."""
        if self._last and self._last[0] == step:
            return
        now = self._clock()
        if self._last:
            steps, seconds = step - self._last[0], now - self._last[1]
            for sums in (self._all,) if self._paused else (self._all, self._clean):
                sums[0] += steps
                sums[1] += seconds
        self._last, self._paused = (step, now), False

    def pause(self) -> None:
        """Something else than training comes next."""
        self._paused = True

    def record(self, step: int) -> Record | None:
        """Writes {"kind": "timing", "step", ...} over the chunks since the last; None where there was no pair."""
        steps, seconds = self._clean if self._clean[0] else self._all
        self._clean, self._all = [0, 0.0], [0, 0.0]
        if not steps or seconds <= 0:
            return None
        each = steps / seconds
        record = {"kind": "timing", "step": step} | {name: float(f"{n * each:.5g}") for name, n in self._rates.items()}
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self._tell(record)
        return record


def rates_of_a_step(unit: str, units: int, flops: float, peak: float | None) -> dict[str, float]:
    """What a step is, for `Throughput`.

    Args:
      unit, units: "samples" or "tokens", and how many all seeds see in a step.
      flops: of the step, of all seeds: 3 x the dense forward pass, as masked weights are multiplied too.
      peak: FLOP/s of all devices of the run together, or None.

    Example:
      >>> rates_of_a_step("samples", 256, 1e9, None)
      {'steps_per_second': 1.0, 'samples_per_second': 256.0}
    """
    rates = {"steps_per_second": 1.0, f"{unit}_per_second": float(units)}
    return rates | ({"mfu": flops / peak} if peak else {})

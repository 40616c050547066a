"""Contestants timed in turn, round by round, and what may be said about their ratios."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

WIDE = 0.25  # a ratio whose quartiles lie farther apart than this, relative to its median, is not printed
ENOUGH = 9  # rounds, below which nothing is said about a target
SLOW, FEW = 2.0, 3  # a measurement that takes longer than SLOW seconds is repeated FEW times only


class Spread(NamedTuple):
    """Quartiles of some measurements, and how many they were."""

    low: float
    median: float
    high: float
    n: int

    @property
    def wide(self) -> bool:
        """Whether the quartiles lie so far apart that the median means little."""
        return self.high - self.low > WIDE * self.median


def spread(values: Sequence[float]) -> Spread:
    """Quartiles, interpolated; of a single value all three are that value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1)
    return Spread(*statistics.quantiles(values, n=4, method="inclusive"), len(values))


def verdict(ratio: Spread, target: float | None) -> str:
    """What may be said: "spread" (no ratio at all), "" (there is no target), "few rounds", "met" or "missed"."""
    if ratio.wide:
        return "spread"
    if target is None:
        return ""
    if ratio.n < ENOUGH:
        return "few rounds"
    return "met" if ratio.median <= target else "missed"


def order(names: Sequence[str], round_: int) -> list[str]:
    """The names forwards in even rounds and backwards in odd ones, so that a drift of the machine cancels."""
    return list(names) if round_ % 2 == 0 else list(reversed(names))


def interleaved(
    contestants: Mapping[str, Callable[[], float]], rounds: int, before_round: Callable[[], None] = lambda: None
) -> dict[str, dict[int, float]]:
    """Measures each contestant once in every round.

    Args:
      contestants: name -> a function that makes one measurement and returns its seconds.
      rounds: how many.
      before_round: called, untimed, before each.

    Returns:
      name -> round -> seconds; slow contestants sit out the later rounds.
    """
    seconds: dict[str, dict[int, float]] = {name: {} for name in contestants}
    for round_ in range(rounds):
        before_round()
        for name in order(list(contestants), round_):
            if round_ < FEW or min(seconds[name].values()) < SLOW:
                seconds[name][round_] = contestants[name]()
    return seconds


def ratios(seconds: Mapping[int, float], bare: Mapping[int, float]) -> list[float]:
    """How many times as long as bare in the same round."""
    return [value / bare[round_] for round_, value in seconds.items()]

"""Which evaluation was the best, and whether there will be a better one: read off the records alone.

A resumed run has the same records, so that it keeps the same checkpoint and ends at the same step.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sparsejax.training.metrics import Record


def best_evaluation(records: Sequence[Record], metric: str) -> Mapping[str, Any] | None:
    """The evaluation whose mean score over the seeds is the best, of equal ones the first; None before there is one.

    Args:
      records: of metrics.jsonl.
      metric: "accuracy" (higher is better) or "loss" (lower is better).

    Example:
      >>> evals = [{"kind": "eval", "step": s, "loss": [loss]} for s, loss in ((10, 2.0), (20, 1.5), (30, 1.6))]
      >>> best_evaluation(evals, "loss")["step"]
      20
    """
    evals = [record for record in records if record["kind"] == "eval"]
    means = [_gain(sum(record[metric]) / len(record[metric]), metric) for record in evals]
    return evals[means.index(max(means))] if means else None


def exhausted(records: Sequence[Record], metric: str, patience: int) -> bool:
    """Whether no seed was better than ever before in any of the last `patience` evaluations; never with 0.

    Example:
      >>> evals = [{"kind": "eval", "step": s, "loss": [loss]} for s, loss in ((10, 2.0), (20, 1.5), (30, 1.6))]
      >>> exhausted(evals, "loss", 1), exhausted(evals, "loss", 2)
      (True, False)
    """
    scores = [record[metric] for record in records if record["kind"] == "eval"] if patience else []
    if not scores:
        return False
    gains = [[_gain(value, metric) for value in seed] for seed in zip(*scores, strict=True)]
    last = max(seed.index(max(seed)) for seed in gains)
    return len(scores) - 1 - last >= patience


def _gain(value: float, metric: str) -> float:
    """Higher is better; what is no number is worst."""
    gain = value if metric == "accuracy" else -value
    return -math.inf if math.isnan(gain) else gain

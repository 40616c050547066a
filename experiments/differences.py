"""Seed by seed, how much better one method is than another: a table in Markdown.

A seed fixes the initial weights, the order of the data and the first random mask, so two methods can be compared
seed by seed.

    python experiments/differences.py experiments/rigl/results/results.jsonl rigl:set set:static gmp:dense

A pair is two methods; one with other settings than the rest is named by its trial's, such as "srigl-ablate=False".
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from sparsejax.report.statistics import mean_and_interval

Scores = dict[tuple[str, float], list[float]]


def read(path: Path) -> Scores:
    """(trial's name without its sparsity, sparsity) -> the accuracy of every seed."""
    trials = [json.loads(line) for line in path.read_text().splitlines()]
    return {(_name(trial), trial["sparsity"]): trial["accuracy"] for trial in trials}


def _name(trial: dict) -> str:
    """`srigl-0.99-ablate=False` is "srigl-ablate=False"; a trial without settings is its method."""
    parts = trial["trial"].split("-")
    return "-".join(part for part in parts if part != f"{trial['sparsity']:g}")


def table(scores: Scores, pairs: Iterable[tuple[str, str]]) -> str:
    """Mean difference in points of accuracy, with its 95 % interval; empty where one of them was not run."""
    sparsities = sorted({sparsity for method, sparsity in scores if method != "dense"})
    lines = ["| difference, same seed | " + " | ".join(f"{100 * s:.4g} %" for s in sparsities) + " |"]
    lines.append("| :-- |" + " --: |" * len(sparsities))
    for one, other in pairs:
        cells = []
        for sparsity in sparsities:
            both = [scores.get((name, 0.0 if name == "dense" else sparsity)) for name in (one, other)]
            cells.append(_cell(*both) if all(both) else "")
        lines.append(f"| {one} - {other} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(one: list[float], other: list[float]) -> str:
    mean, half = mean_and_interval([100 * (a - b) for a, b in zip(one, other, strict=True)])
    return f"{mean:+.2f} ± {half:.2f}"


if __name__ == "__main__":
    found = read(Path(sys.argv[1]))
    asked = [tuple(pair.split(":", 1)) for pair in sys.argv[2:]]
    known = {name for name, _ in found}
    for name in (name for pair in asked for name in pair if name not in known):
        sys.exit(f"{name!r} is in no trial of {sys.argv[1]}; there are {', '.join(sorted(known))}")
    print(table(found, asked))

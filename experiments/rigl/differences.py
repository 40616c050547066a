"""Seed by seed, how much better one method is than another: the second table of README.md.

python experiments/rigl/differences.py [runs/rigl/metrics.jsonl]
"""

import json
import statistics
import sys
from pathlib import Path

PAIRS = [("rigl", "set"), ("set", "static"), ("rigl", "static"), ("rigl", "gmp"), ("gmp", "dense")]
SPARSITIES = [0.9, 0.95, 0.98, 0.995]
T_95 = 2.776  # Student's t, two-sided 95 %, 4 degrees of freedom: five seeds


def main(path: Path) -> None:
    """Prints the table: mean difference in points, and its 95 % interval."""
    trials = [json.loads(line) for line in path.read_text().splitlines()]
    accuracy = {(trial["method"], trial["sparsity"]): trial["accuracy"] for trial in trials}
    print("| difference, same seed | " + " | ".join(f"{100 * s:.4g} %" for s in SPARSITIES) + " |")
    print("| :-- |" + " --: |" * len(SPARSITIES))
    for one, other in PAIRS:
        cells = []
        for sparsity in SPARSITIES:
            pairs = zip(accuracy[one, sparsity], accuracy[other, 0.0 if other == "dense" else sparsity], strict=True)
            points = [100 * (a - b) for a, b in pairs]
            half = T_95 * statistics.stdev(points) / len(points) ** 0.5
            cells.append(f"{statistics.mean(points):+.2f} ± {half:.2f}")
        print(f"| {one} - {other} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "results" / "results.jsonl")

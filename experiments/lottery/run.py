"""Lottery tickets on MNIST: LeNet-300-100, five seeds a run, 14 rounds that prune 20 %; tickets, re-initialised nets.

Paper: Frankle & Carbin 2019, The Lottery Ticket Hypothesis, arXiv:1803.03635; the claim is in README.md beside
this file.

    python experiments/lottery/run.py --out runs/lottery

Run again, it goes on. README.md says what is measured, and what was scaled down.
"""

import argparse
import json
import sys
from pathlib import Path

from ml_collections import ConfigDict

from sparsejax.files import write_atomic, write_json
from sparsejax.report.collect import read_records
from sparsejax.report.series import Line, Panel, cell, markdown, measured, panels
from sparsejax.training import ConfigError, default_config, with_options
from sparsejax.training.procedures import iterative_magnitude_pruning

BESIDE_CHECKOUT = Path(__file__).resolve().parents[3] / "shared" / "data" / "mnist"
ROUNDS = 14
BRANCHES = ("ticket", "reinit")


def get_config(arg: str = "") -> ConfigDict:
    """The config of every round; `arg` is "field=value,field=value", such as "epochs=5"."""
    config = default_config()
    config.dataset = "mnist"
    config.data_dir = str(BESIDE_CHECKOUT) if BESIDE_CHECKOUT.is_dir() else ""
    config.data = ConfigDict({"validation": 5000, "limit": 12_000})  # 200 steps from one evaluation to the next
    config.model = "lenet_300_100"
    config.batch_size = 60
    config.epochs = 15
    config.optimizer = "adam"
    config.learning_rate = 1.2e-3
    config.seeds = 5
    return with_options(config, arg)


def stopped(workdir: Path) -> tuple[list[int], list[float]]:
    """For each seed the step of the least validation loss, and the accuracy there."""
    evals = [record for record in read_records(workdir / "metrics.jsonl") if record["kind"] == "eval"]
    steps, accuracies = [], []
    for seed in range(len(evals[0]["loss"])):
        best = min(evals, key=lambda record: record["loss"][seed])
        steps.append(best["step"])
        accuracies.append(best["accuracy"][seed])
    return steps, accuracies


def rows_of(rounds: list) -> list[dict]:
    """One for each round: what is left, and of each branch the early stop, and its difference to the ticket."""
    rows: dict[int, dict] = {}
    for done in rounds:
        branch = done.entry["branch"] or "ticket"
        steps, at_stop = stopped(done.workdir)
        row = rows.setdefault(done.entry["round"], {"round": done.entry["round"]})
        row["left"] = done.entry["weights_kept"][0] / done.entry["weights"]
        row[branch] = {
            "stop": measured(steps), "accuracy": measured(at_stop), "final_accuracy": measured(done.entry["accuracy"]),
        }  # fmt: skip
    for row in rows.values():
        if "reinit" in row:
            for what in ("stop", "accuracy", "final_accuracy"):
                pairs = zip(row["ticket"][what]["seeds"], row["reinit"][what]["seeds"], strict=True)
                row.setdefault("difference", {})[what] = measured([a - b for a, b in pairs])
    return [rows[number] for number in sorted(rows)]


def table(rows: list[dict]) -> str:
    """The table of README.md."""
    three = ["re-initialised", "difference"]
    heads = [
        "weights left",
        "ticket: accuracy at stop",
        *three,
        "ticket: stops at",
        *three,
        "final: difference",
    ]
    lines = []
    for row in rows:
        accuracies = [cell(row[b]["accuracy"], factor=100) if b in row else "" for b in BRANCHES]
        stops = [cell(row[b]["stop"], digits=0) if b in row else "" for b in BRANCHES]
        found = row.get("difference")
        points = cell(found["accuracy"], factor=100, sign=True) if found else ""
        steps = cell(found["stop"], digits=0, sign=True) if found else ""
        final = cell(found["final_accuracy"], factor=100, sign=True) if found else ""
        lines.append([f"{100 * row['left']:.1f} %", *accuracies, points, *stops, steps, final])
    return markdown(heads, lines)


def main() -> None:
    """Trains what is not trained yet, and writes results.json, table.md and lottery.png."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/lottery"), help="the procedure's directory")
    parser.add_argument("--results", type=Path, help="where results go (default: --out)")
    parser.add_argument("--config", default="", help='"field=value,field=value", such as "epochs=2,data_dir=DIR"')
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    rounds = []
    tickets = iterative_magnitude_pruning(
        get_config(given.config), given.out, rounds=given.rounds, fraction=0.2, controls=["reinit"]
    )
    for done in tickets:
        rounds.append(done)
        print(done.name, done.entry["accuracy"], flush=True)
    rows = rows_of(rounds)
    results = given.results or given.out
    results.mkdir(parents=True, exist_ok=True)
    last = rounds[-1].result
    about = {name: last[name] for name in ("date", "versions", "device")}
    seconds = sum(done.result["seconds"] for done in rounds)
    config = json.loads((given.out / "procedure.json").read_text())
    write_json(results / "results.json", {**about, "seconds": seconds, "procedure": config["arguments"], "rows": rows})
    write_atomic(results / "table.md", table(rows))
    lines = lambda what: [Line(b, {row["left"]: row[b][what]["seeds"] for row in rows if b in row}) for b in BRANCHES]
    drawn = [
        Panel("accuracy at the early stop", lines("accuracy"), percent=True),
        Panel("step of the early stop", lines("stop")),
    ]
    panels(results / "lottery.png", "Lottery tickets: LeNet-300-100 on MNIST", "weights left", drawn)
    print(table(rows))


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"error: {error}")

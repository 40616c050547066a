"""The PQ index of a net as it is pruned, on MNIST: LeNet-300-100, five seeds a run; 25 % a round, and SAP.

Paper: Diao et al. 2023, Pruning Deep Neural Networks from a Sparsity Perspective, arXiv:2302.05601; the claim is in
README.md beside this file.

    python experiments/sap/run.py --out runs/sap

Run again, it goes on. README.md says what is measured, and what was scaled down.
"""

import argparse
import sys
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from sparsejax.files import write_atomic, write_json
from sparsejax.report.series import Line, Panel, cell, markdown, measured, panels
from sparsejax.training import ConfigError, default_config, with_options
from sparsejax.training.procedures import iterative_magnitude_pruning, sap_rounds
from sparsejax.training.procedures.pruning import full_masks
from sparsejax.training.procedures.rounds import ended
from sparsejax.training.procedures.sap import pq_of

BESIDE_CHECKOUT = Path(__file__).resolve().parents[3] / "shared" / "data" / "mnist"
FRACTION, ROUNDS, SAP_ROUNDS = 0.25, 24, 15
NAMES = {"imp": "25 % a round", "sap": "SAP"}


def get_config(arg: str = "") -> ConfigDict:
    """The config of every round; `arg` is "field=value,field=value", such as "epochs=1"."""
    config = default_config()
    config.dataset = "mnist"
    config.data_dir = str(BESIDE_CHECKOUT) if BESIDE_CHECKOUT.is_dir() else ""
    config.data = ConfigDict({"limit": 0})  # training images; 0: all
    config.model = "lenet_300_100"
    config.batch_size = 128
    config.epochs = 3
    config.optimizer = "adam"
    config.learning_rate = 2e-3
    config.seeds = 5
    return with_options(config, arg)


def row_of(done) -> dict:
    """What a round left, its accuracy, and the PQ index of its kept weights after training, one for each seed."""
    entry = done.entry
    if "pq_index" not in entry:
        found = ended(done.workdir)
        masks = full_masks(found.params) if found.masks is None else found.masks
        entry = {**entry, **pq_of(jax.device_get(found.params), masks)}
    left = [kept / entry["weights"] for kept in entry["weights_kept"]]
    return {
        "round": entry["round"],
        "left": measured(left),
        "accuracy": measured(entry["accuracy"]),
        "pq_index": measured(entry["pq_index"]),
        "layers": {path: measured(values) for path, values in entry["layers"].items()},
    }


def turns(rows: list[dict]) -> dict:
    """Of each seed: the index of the dense net, its first low, the high after that, and its value at the end."""
    index = np.array([row["pq_index"]["seeds"] for row in rows])  # (rounds, seeds)
    out: dict[str, list[float]] = {name: [] for name in ("dense", "low", "high", "end")}
    where: dict[str, list[int]] = {"low": [], "high": []}
    for seed in index.T:
        high = max(range(1, len(seed)), key=lambda k: seed[k] - seed[: k + 1].min())
        low = int(seed[: high + 1].argmin())
        for name, value in zip(out, (seed[0], seed[low], seed[high], seed[-1]), strict=True):
            out[name].append(float(value))
        where["low"].append(low)
        where["high"].append(high)
    pairs = {"fall": ("low", "dense"), "rise": ("high", "low"), "second fall": ("end", "high")}
    changes = {
        name: measured([a - b for a, b in zip(out[one], out[other], strict=True)])
        for name, (one, other) in pairs.items()
    }
    return {"values": {name: measured(values) for name, values in out.items()}, "rounds": where, "changes": changes}


def table(rows: list[dict]) -> str:
    """One line a round."""
    heads = ["round", "weights left", "test accuracy", "PQ index"]
    lines = [
        [
            str(row["round"]),
            f"{100 * row['left']['mean']:.3g} %",
            cell(row["accuracy"], factor=100),
            cell(row["pq_index"], digits=4),
        ]
        for row in rows
    ]
    return markdown(heads, lines)


def main() -> None:
    """Trains what is not trained yet, and writes results.json, table.md and sap.png."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/sap"), help="the directory of the procedures")
    parser.add_argument("--results", type=Path, help="where results go (default: --out)")
    parser.add_argument("--config", default="", help='"field=value,field=value", such as "epochs=1,data_dir=DIR"')
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--sap-rounds", type=int, default=SAP_ROUNDS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    config, seconds = get_config(given.config), 0.0
    procedures = {
        "imp": iterative_magnitude_pruning(
            config, given.out / "imp", rounds=given.rounds, fraction=FRACTION, scope="global"
        ),
        "sap": sap_rounds(config, given.out / "sap", rounds=given.sap_rounds),
    }
    rows: dict[str, list[dict]] = {}
    for name, rounds in procedures.items():
        rows[name] = []
        for done in rounds:
            rows[name].append(row_of(done))
            seconds += done.result["seconds"]
            about = {field: done.result[field] for field in ("date", "versions", "device")}
            print(name, done.name, rows[name][-1]["pq_index"]["seeds"], flush=True)
    results = given.results or given.out
    results.mkdir(parents=True, exist_ok=True)
    found = {"rows": rows, "turns": {name: turns(each) for name, each in rows.items()}}
    write_json(results / "results.json", {**about, "seconds": seconds, "fraction": FRACTION, **found})
    text = "\n".join(f"{NAMES[name]}\n\n{table(each)}" for name, each in rows.items())
    write_atomic(results / "table.md", text)
    by_left = lambda name, what: {row["left"]["mean"]: row[what]["seeds"] for row in rows[name]}
    drawn = [
        Panel("PQ index of the kept weights", [Line(text, by_left(name, "pq_index")) for name, text in NAMES.items()]),
        Panel("test accuracy", [Line(text, by_left(name, "accuracy")) for name, text in NAMES.items()], percent=True),
    ]
    panels(results / "sap.png", "The PQ index under pruning: LeNet-300-100 on MNIST", "weights left", drawn)
    print(text)
    for name, each in found["turns"].items():
        print(NAMES[name], {change: cell(value, digits=4, sign=True) for change, value in each["changes"].items()})


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"error: {error}")

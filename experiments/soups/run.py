"""Sparse model soups on MNIST: LeNet-300-100, five seeds a run; soups of shared masks, and averages of different ones.

Paper: Zimmer, Spiegel, Pokutta 2023, Sparse Model Soups, arXiv:2306.16788; the claim is in README.md beside this file.

    python experiments/soups/run.py --out runs/soups

Run again, it goes on. README.md says what is measured, and what was scaled down.
"""

import argparse
import sys
from pathlib import Path

from ml_collections import ConfigDict

from sparsejax.files import write_atomic, write_json
from sparsejax.report.series import Line, Panel, cell, markdown, measured, panels
from sparsejax.training import ConfigError, default_config, with_options
from sparsejax.training.procedures import model_soup

BESIDE_CHECKOUT = Path(__file__).resolve().parents[3] / "shared" / "data" / "mnist"
SPARSITIES = (0.9, 0.95, 0.98)
PHASES, MEMBERS = 3, 3
RETRAIN = {"epochs": 2}
NAMES = {
    "soup": "soup",
    "member": "member of the soup (mean of 3)",
    "best": "its best member",
    "alone": "member on its own (mean of 3)",
    "union": "average of different masks (denser)",
    "pruned_union": "that, pruned to the sparsity",
}


def get_config(arg: str = "") -> ConfigDict:
    """The config of the dense net and of retraining; `arg` is "field=value,field=value"."""
    config = default_config()
    config.dataset = "mnist"
    config.data_dir = str(BESIDE_CHECKOUT) if BESIDE_CHECKOUT.is_dir() else ""
    config.data = ConfigDict({"limit": 0})  # training images; 0: all
    config.model = "lenet_300_100"
    config.batch_size = 128
    config.epochs = 5
    config.sparsity = 0.95
    config.optimizer = "adam"
    config.learning_rate = 2e-3
    config.schedule = "linear"
    config.seeds = 5
    return with_options(config, arg)


def row_of(sparsity: float, shared: list, own: list) -> dict:
    """What was measured at a sparsity: of each seed the soup, its members, and the average of different masks."""
    entries = {done.name: done.entry for done in (*shared, *own[1:])}
    members = [done.entry["accuracy"] for done in shared if done.name.startswith(f"phase_{PHASES}_member")]
    alone = [done.entry["accuracy"] for done in own if done.name.startswith(f"phase_{PHASES}_member")]
    mean = lambda runs: [sum(seed) / len(seed) for seed in zip(*runs, strict=True)]
    found = {
        "soup": shared[-1].entry["accuracy"],
        "member": mean(members),
        "best": [max(seed) for seed in zip(*members, strict=True)],
        "alone": mean(alone),
        "union": entries["union"]["accuracy"],
        "pruned_union": entries["pruned_union"]["accuracy"],
    }
    pairs = {
        "soup - member": ("soup", "member"),
        "soup - best": ("soup", "best"),
        "soup - alone": ("soup", "alone"),
        "pruned_union - alone": ("pruned_union", "alone"),
        "soup - pruned_union": ("soup", "pruned_union"),
    }
    differences = {
        name: measured([a - b for a, b in zip(found[one], found[other], strict=True)])
        for name, (one, other) in pairs.items()
    }
    density = measured([kept / entries["union"]["weights"] for kept in entries["union"]["weights_kept"]])
    return {
        "sparsity": sparsity,
        "accuracy": {name: measured(values) for name, values in found.items()},
        "dense": measured(shared[0].entry["accuracy"]),
        "differences": differences,
        "union_density": density,
        "soup_kept": shared[-1].entry["weights_kept"],
    }


def table(rows: list[dict]) -> str:
    """The table of README.md: a line for each kind of net, a column for each sparsity."""
    heads = ["accuracy in %", *(f"{100 * row['sparsity']:g} %" for row in rows)]
    lines = [["dense", *(cell(row["dense"], factor=100) for row in rows)]]
    lines += [[text, *(cell(row["accuracy"][name], factor=100) for row in rows)] for name, text in NAMES.items()]
    for name in rows[0]["differences"]:
        lines.append([name, *(cell(row["differences"][name], factor=100, sign=True) for row in rows)])
    lines.append(
        ["weights in the average of different masks", *(cell(row["union_density"], factor=100) for row in rows)]
    )
    return markdown(heads, lines)


def main() -> None:
    """Trains what is not trained yet, and writes results.json, table.md and soups.png."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/soups"), help="the directory of the procedures")
    parser.add_argument("--results", type=Path, help="where results go (default: --out)")
    parser.add_argument("--config", default="", help='"field=value,field=value", such as "epochs=2,data_dir=DIR"')
    given = parser.parse_args()
    rows, seconds, last = [], 0.0, {}
    for sparsity in SPARSITIES:
        runs = {}
        for masks in ("shared", "own"):
            config = get_config(given.config)
            config.sparsity = sparsity
            where = given.out / f"{masks}-{sparsity:g}"
            where.parent.mkdir(parents=True, exist_ok=True)
            runs[masks] = []
            for done in model_soup(config, where, phases=PHASES, members=MEMBERS, retrain=RETRAIN, masks=masks):
                runs[masks].append(done)
                print(where.name, done.name, done.entry["accuracy"], flush=True)
                seconds, last = seconds + done.result["seconds"], done.result
        rows.append(row_of(sparsity, runs["shared"], runs["own"]))
    results = given.results or given.out
    results.mkdir(parents=True, exist_ok=True)
    about = {name: last[name] for name in ("date", "versions", "device")}
    how = {"phases": PHASES, "members": MEMBERS, "retrain": RETRAIN, "vary": "seed"}
    write_json(results / "results.json", {**about, "seconds": seconds, "procedure": how, "rows": rows})
    write_atomic(results / "table.md", table(rows))
    lines = [
        Line(text, {1 - row["sparsity"]: row["accuracy"][name]["seeds"] for row in rows})
        for name, text in NAMES.items()
    ]
    drawn = [Panel("test accuracy", lines, percent=True)]
    panels(results / "soups.png", "Sparse model soups: LeNet-300-100 on MNIST", "weights left", drawn)
    print(table(rows))


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"error: {error}")

"""Reports from run directories that the tests write: table and plots, whatever part of a sweep exists."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console
from scipy.special import stdtrit

from sparsejax import cli
from sparsejax.launch.progress import brief, score
from sparsejax.report import collect, plots, tables
from sparsejax.report.statistics import mean_and_interval, t_quantile

LAYERS = {"Dense_0/kernel": 19200, "Dense_1/kernel": 30000, "Dense_2/kernel": 1000}
WEIGHTS = sum(LAYERS.values())


def write_run(path: Path, method: str, sparsity: float, accuracy, *, finished=True, steps=400, overrides=None) -> dict:
    """A run directory as training leaves it; returns its entry in the sweep's config."""
    path.mkdir(parents=True)
    seeds = len(accuracy)
    config = {
        "method": method,
        "sparsity": sparsity,
        "model": "mlp",
        "dataset": "digits",
        "seeds": list(range(seeds)),
    }
    (path / "config.json").write_text(json.dumps(config))
    density = {layer: [1 - sparsity] * seeds for layer in LAYERS}
    records = []
    for step in range(0, steps + 1, 50):
        if method != "dense":
            change = {layer: [0 if step == 0 else 3 + k for k in range(seeds)] for layer in LAYERS}
            if step == 0 or method != "static":
                masks = {"kind": "masks", "step": step, "density": density, "grown": change, "dropped": change}
                records.append(masks | movement(step, seeds))
        if step:
            loss = [math.exp(-step / 100) + 0.1 * k for k in range(seeds)]
            records.append({"kind": "train", "step": step, "epoch": step / 50, "loss": loss})
            scores = {"loss": loss, "accuracy": list(accuracy)}
            records.append(topology(step, seeds, method, last=step == steps))
            records.append({"kind": "eval", "step": step, "epoch": step / 50, "split": "test", **scores})
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if finished:
        result = config | {
            "steps": steps,
            "accuracy": list(accuracy),
            "loss": [0.1] * seeds,
            "weights": WEIGHTS,
            "weights_kept": [round((1 - sparsity) * WEIGHTS)] * seeds,
            "density": density,
            "density_erk": {} if method == "dense" else dict(zip(LAYERS, (0.015, 0.05, 0.4))),
            "parameter_sparsity": [0.98 * sparsity] * seeds,
            "mask_bits": 0 if method == "dense" else WEIGHTS,
            "bytes": {"dense": [204_800] * seeds, "csr": [round(1e6 * (1 - sparsity))] * seeds},
            "inference_flops": 1 - sparsity,
            "training_flops": 1 - 0.9 * sparsity,
            "seconds": 2.5,
        }
        (path / "result.json").write_text(json.dumps(result))
    given = {"method": method} | ({} if method == "dense" else {"sparsity": sparsity})
    return {"name": path.name, "overrides": given if overrides is None else overrides, "config": config}


def movement(step: int, seeds: int) -> dict:
    """What a masks record says of how masks moved."""
    share = lambda scale: [scale * (1 - math.exp(-step / 200)) + 0.01 * k for k in range(seeds)]
    return {"sad_of_active": share(0.1), "flip_rate_from_start": share(0.05), "exploration": share(0.4)}


def topology(step: int, seeds: int, method: str, *, last: bool) -> dict:
    """A topology record as training writes it."""
    record = {
        "kind": "topology",
        "step": step,
        "gradient_norm_active": [math.exp(-step / 300) + 0.1 * k for k in range(seeds)],
        "dead_units": {"relu_0": [0.1] * seeds, "relu_1": [0.2] * seeds},
    }
    if method == "dense":
        return record
    record["gradient_norm_inactive"] = [2.0] * seeds
    record["kept_off_path"] = [step / 10_000] * seeds
    if last:
        histogram = {"edges": [0, 2, 4, 6], "neurons": [[3, 4, 1 + k] for k in range(seeds)]}
        record["fan_in_histogram"] = dict.fromkeys(LAYERS, histogram)
        record["input_connections"] = [list(range(64))] * seeds
    return record


def write_sweep(out: Path, trials: list[dict]) -> Path:
    (out / "config.json").write_text(json.dumps({"config_file": "c.py", "overrides": {}, "trials": trials}))
    return out


@pytest.fixture
def sweep(tmp_path):
    trials = []
    for method, drop in (("rigl", 0.02), ("static", 0.3)):
        for sparsity in (0.98, 0.9):  # not in order
            accuracy = [0.97 - drop * sparsity**8 + 0.004 * k for k in range(3)]
            trials.append(write_run(tmp_path / f"trials/{method}-{sparsity}", method, sparsity, accuracy))
    trials.append(write_run(tmp_path / "trials/dense", "dense", 0.0, [0.975, 0.977, 0.982]))
    return write_sweep(tmp_path, trials)


@pytest.mark.parametrize("freedom", [1, 2, 4, 9, 10, 11, 15, 40, 1000])
def test_t_quantile_agrees_with_scipy(freedom):
    assert t_quantile(freedom) == pytest.approx(stdtrit(freedom, 0.975), abs=2e-4)


def test_interval_of_three_seeds():
    mean, half = mean_and_interval([0.94, 0.96, 0.95])
    assert mean == pytest.approx(0.95)
    assert half == pytest.approx(4.30265 * 0.01 / math.sqrt(3), rel=1e-5)
    assert mean_and_interval([0.5]) == (0.5, None)


def test_rows_have_dense_first_then_the_sweeps_order_then_sparsity(sweep):
    rows = collect.rows(collect.read_sweep(sweep))
    order = [("dense", 0.0), ("rigl", 0.9), ("rigl", 0.98), ("static", 0.9), ("static", 0.98)]
    assert [(row.method, row.sparsity) for row in rows] == order


def test_numbers_of_the_table(sweep):
    rows = collect.rows(collect.read_sweep(sweep))
    dense = tables.cells(rows[0])
    assert (dense["test accuracy"], dense["range"], dense["95 % CI"]) == ("97.80", "97.50..98.20", "± 0.90")
    assert (dense["sparsity"], dense["kept"], dense["inference FLOPs"]) == ("-", "100.0 %", "1.000")
    rigl = tables.cells(rows[2])
    assert (rigl["sparsity"], rigl["weights kept"], rigl["kept"]) == ("98 %", "1,004", "2.0 %")
    assert (rigl["inference FLOPs"], rigl["training FLOPs"], rigl["seconds"]) == ("0.020", "0.118", "2.5")
    assert "98.20" in tables.markdown_table(rows)
    assert max(map(len, tables.text_table(rows).splitlines())) <= 90


def test_seeds_in_separate_trials_are_one_row(tmp_path):
    trials = []
    for seed, accuracy in ((0, 0.9), (1, 0.92)):
        overrides = {"method": "set", "sparsity": 0.9, "seeds": [seed]}
        trials.append(write_run(tmp_path / f"trials/s{seed}", "set", 0.9, [accuracy], overrides=overrides))
    (row,) = collect.rows(collect.read_sweep(write_sweep(tmp_path, trials)))
    assert row.scores == [0.9, 0.92]
    assert row.seconds == 5.0


def test_other_swept_fields_are_a_setting_of_their_own(tmp_path):
    trials = []
    for drop in (0.3, 0.5):
        overrides = {"method": "set", "sparsity": 0.9, "method_args.drop_fraction": drop}
        trials.append(write_run(tmp_path / f"trials/d{drop}", "set", 0.9, [0.9, 0.91], overrides=overrides))
    rows = collect.rows(collect.read_sweep(write_sweep(tmp_path, trials)))
    assert [row.series for row in rows] == ["set drop_fraction=0.3", "set drop_fraction=0.5"]
    assert "drop_fraction=0.5" in tables.text_table(rows)


def test_report_of_a_sweep_writes_table_and_plots(sweep, capsys):
    assert cli.main(["report", str(sweep)]) == 0
    shown = capsys.readouterr()
    assert "static" in shown.out
    assert shown.err == ""
    assert (sweep / "table.txt").read_text() in shown.out
    for name in ("accuracy.png", "layers.png", "churn.png", "topology.png", "fan_in.png", "inputs.png"):
        assert_picture(sweep / name)
    table = (sweep / "table.md").read_text()
    assert "zero parameters | mask bits | bytes dense | bytes CSR" in table and "| 50,200 | 205 kB | 20 kB |" in table
    lines = [json.loads(line) for line in (sweep / "metrics.jsonl").read_text().splitlines()]
    assert [line["trial"] for line in lines][:2] == ["rigl-0.98", "rigl-0.9"]
    assert len(lines) == 5
    assert not list(sweep.glob(".*"))


def test_report_of_a_run(sweep, capsys):
    run = sweep / "trials" / "rigl-0.98"
    assert cli.main(["report", str(run)]) == 0
    assert "95.70" in capsys.readouterr().out
    for name in ("curves.png", "layers.png", "churn.png", "topology.png", "fan_in.png", "inputs.png"):
        assert_picture(run / name)


def assert_picture(path: Path) -> None:
    """Large enough, and with more than a few colours in it."""
    pixels = imread(path)
    assert min(pixels.shape[:2]) >= 400
    assert len(np.unique((pixels[::2, ::2, :3] * 255).astype(np.uint32) @ [1, 256, 65536])) > 20


def test_report_of_a_sweep_that_is_not_complete(tmp_path, capsys):
    """Missing, unfinished (with a half-written line) and failed trials are told apart; the rest is shown."""
    trials = [
        write_run(tmp_path / "trials/set-0.9", "set", 0.9, [0.9, 0.92]),
        write_run(tmp_path / "trials/rigl-0.9", "rigl", 0.9, [0.9, 0.92], finished=False),
        write_run(tmp_path / "trials/gmp-0.9", "gmp", 0.9, [0.9], finished=False),
        {"name": "gmp-0.95", "overrides": {"method": "gmp"}, "config": {}},
    ]
    with open(tmp_path / "trials/rigl-0.9/metrics.jsonl", "a") as file:
        file.write('{"kind": "tra')
    failure = {"how": "exit code 1", "reason": "MemoryError", "attempts": 2}
    (tmp_path / "trials/gmp-0.9/failed.json").write_text(json.dumps(failure))
    assert cli.main(["report", str(write_sweep(tmp_path, trials))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "rigl-0.9: unfinished, at step 400" in lines
    log = tmp_path / "trials/gmp-0.9/log.txt"
    assert f"gmp-0.9: failed (exit code 1): MemoryError; log: {log}" in lines
    assert "gmp-0.95: missing" in lines
    assert (tmp_path / "accuracy.png").exists()


def test_report_of_a_sweep_without_results(tmp_path, capsys):
    trials = [{"name": "dense", "overrides": {"method": "dense"}, "config": {}}]
    assert cli.main(["report", str(write_sweep(tmp_path, trials))]) == 0
    assert capsys.readouterr().out == "dense: missing\n"
    assert {path.name for path in tmp_path.iterdir()} == {"config.json"}


def test_a_picture_that_no_longer_applies_is_removed(sweep, capsys):
    assert cli.main(["report", str(sweep)]) == 0
    for path in (sweep / "trials").glob("*/metrics.jsonl"):
        path.unlink()
    assert cli.main(["report", str(sweep)]) == 0
    assert (sweep / "accuracy.png").exists()
    assert not (sweep / "churn.png").exists()


@pytest.mark.parametrize("wide", [False, True])
def test_whole_confidence_bands_are_in_the_picture(tmp_path, monkeypatch, wide):
    """Of two seeds the interval is far wider than their range; it ends at what an accuracy can be."""
    runs, drawn = [], []
    for sparsity, accuracy in ((0.9, [0.97, 0.99]), (0.95, [0.5 if wide else 0.95, 0.97]), (0.98, [0.9, 0.96])):
        path = tmp_path / f"set-{sparsity}"
        entry = write_run(path, "set", sparsity, accuracy, steps=50)
        runs.append(collect.read_run(path, entry["name"], entry["overrides"]))
    keep = lambda ax, rows, look, spaced: drawn.append((ax, rows, spaced)) or one_series(ax, rows, look, spaced)
    one_series = plots._one_series
    monkeypatch.setattr(plots, "_one_series", keep)
    assert plots.accuracy(collect.rows(runs), tmp_path / "accuracy.png")
    ((ax, rows, spaced),) = drawn
    low, high = ax.get_ylim()
    for row in rows:
        mean, half = mean_and_interval(row.scores)
        for end in (max(mean - half, 0.0), min(mean + half, 1.0)):
            assert low <= spaced(end) <= high
    bands = [path.vertices[:, 1] for band in ax.collections for path in band.get_paths()]
    assert all(low <= values.min() and values.max() <= high for values in bands)


@pytest.mark.parametrize("seeds", [1, 5])
@pytest.mark.parametrize("sparsities", [(0.9,), (0.5, 0.9, 0.95, 0.98, 0.995)])
def test_plots_of_many_shapes(tmp_path, seeds, sparsities):
    """One sparsity or five, one seed or several, perfect accuracy, more methods than colours of their own."""
    methods = ["dense", "static", "set", "rigl", "gmp", *(f"method_{k}" for k in range(12))]
    runs = []
    for index, method in enumerate(methods):
        for sparsity in (0.0,) if method == "dense" else sparsities:
            path = tmp_path / f"{method}-{sparsity}"
            accuracy = [1.0 if method == "dense" else 0.9 - 0.03 * index] * seeds
            entry = write_run(path, method, sparsity, accuracy, steps=100)
            runs.append(collect.read_run(path, entry["name"], entry["overrides"]))
    rows = collect.rows(runs)
    assert plots.accuracy(rows, tmp_path / "accuracy.png")
    assert plots.layers(rows, tmp_path / "layers.png")
    assert plots.churn(runs, tmp_path / "churn.png")
    assert_picture(tmp_path / "accuracy.png")


def test_language_models_are_judged_by_their_loss(tmp_path, capsys):
    """Beside classifiers: a column and a picture of their own, in nats and not in %."""
    trials = [write_run(tmp_path / "trials/set-0.9", "set", 0.9, [0.9, 0.92])]
    for method, sparsity, losses in (("dense", 0.0, [1.5, 1.52]), ("gmp", 0.8, [1.61, 1.63])):
        path = tmp_path / f"trials/{method}"
        entry = write_run(path, method, sparsity, losses, overrides={"method": method, "sparsity": sparsity})
        result = json.loads((path / "result.json").read_text()) | {"task": "language", "metric": "loss", "loss": losses}
        del result["accuracy"]
        (path / "result.json").write_text(json.dumps(result))
        records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for record in records:
            if record.pop("accuracy", None):
                record["perplexity"] = [math.exp(value) for value in record["loss"]]
        (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        trials.append(entry)
    rows = collect.rows(collect.read_sweep(write_sweep(tmp_path, trials)))
    dense, _, gmp = (tables.cells(row) for row in rows)
    assert (dense["validation loss"], dense["test accuracy"]) == ("1.5100", "")
    assert (gmp["validation loss"], gmp["range"]) == ("1.6200", "1.6100..1.6300")
    assert "validation loss: lower is better" in tables.text_table(rows)
    assert "validation" not in tables.text_table(rows[1:2]) and "accuracy" not in tables.text_table(rows[::2])
    assert cli.main(["report", str(tmp_path)]) == 0
    assert_picture(tmp_path / "loss.png")
    assert_picture(tmp_path / "accuracy.png")
    assert cli.main(["report", str(tmp_path / "trials/gmp")]) == 0
    assert "1.6200" in capsys.readouterr().out
    assert_picture(tmp_path / "trials/gmp/curves.png")
    assert score(result) == "validation loss 1.6200 (1.6100..1.6300, 2 seeds)"
    assert brief({"loss": [1.0], "validation loss": [1.5, 1.7]}) == "loss 1, validation loss 1.6000"


def test_a_directory_that_is_neither_is_refused(tmp_path, capsys):
    for path in (tmp_path, tmp_path / "no"):
        assert cli.main(["report", str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_table_on_a_terminal_fits_it(sweep):
    console = Console(width=100, force_terminal=True)
    with console.capture() as captured:
        tables.show(collect.rows(collect.read_sweep(sweep)), console)
    assert "…" not in captured.get()

"""The report of a run or a sweep: its files, and what is shown on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from sparsejax.files import read_json, write_atomic
from sparsejax.launch.config import InputError
from sparsejax.launch.terminal import say
from sparsejax.launch.trials import sweep_config
from sparsejax.report import collect, speed, tables
from sparsejax.report.collect import Run

_TOPOLOGY = ("topology.png", "fan_in.png", "inputs.png")
PLOTS = ("accuracy.png", "loss.png", "layers.png", "churn.png", *_TOPOLOGY)


def report(path: Path, console: Console) -> None:
    """Rebuilds table and plots of `path`, a run, a sweep or results of experiments/speed, and shows them.

    Raises:
      InputError: if `path` is none of them.
    """
    if not path.exists():
        raise InputError(f"report: {path} does not exist")
    if sweep_config(path) is not None or (path / "trials").is_dir():
        show_sweep(path, console)
    elif path.is_dir() and collect.is_run(path):
        show_run(path, console)
    elif files := speed.result_files(path):
        for file in files:
            show_speed(file, console)
    else:
        raise InputError(f"report: {path} is no run or sweep (no config.json in it) nor a result of experiments/speed")


def show_sweep(path: Path, console: Console, *, redraw: bool = True) -> None:
    """Writes table.txt, table.md, metrics.jsonl and the plots of a sweep, and shows the table.

    Args:
      path: the sweep's directory; it may be incomplete.
      console: where to show it.
      redraw: False keeps the plots if there are any.
    """
    runs = collect.read_sweep(path)
    rows = collect.rows(runs)
    if rows:
        write_atomic(path / "table.txt", tables.text_table(rows))
        write_atomic(path / "table.md", tables.markdown_table(rows))
        collect.write_sweep_metrics(path)
        tables.show(rows, console)
    for run in runs:
        if line := collect.state(run):
            say(console, f"{run.name}: {line}")
    if redraw or not any((path / name).exists() for name in PLOTS):
        from sparsejax.report import plots  # here: matplotlib takes a second to import

        subject = _subject(runs)
        _draw(
            path,
            {
                "accuracy.png": lambda file: plots.accuracy(rows, file, subject),
                "loss.png": lambda file: plots.loss(rows, file, subject),
                "layers.png": lambda file: plots.layers(rows, file, subject),
                "churn.png": lambda file: plots.churn(runs, file, subject),
            }
            | _of_masks(runs, subject),
        )
    _list_files(path, console, ("table.md", *PLOTS))


def show_run(path: Path, console: Console) -> None:
    """Writes the plots of a run, and shows its row of the table if it is finished."""
    from sparsejax.report import plots
    from sparsejax.report.curves import curves

    run = collect.read_run(path)
    rows = collect.rows([run])
    if rows:
        tables.show(rows, console)
    if line := collect.state(run):
        say(console, f"{run.name}: {line}")
    what = {**run.config, **(run.result or {})}
    sparsity = f" at {tables.percent(what['sparsity'])} sparsity" if what.get("sparsity") else ""
    subject = f": {what.get('method', run.name)}{sparsity}{_subject([run]).replace(': ', ', ')}"
    _draw(
        path,
        {
            "curves.png": lambda file: curves(run, file, subject),
            "layers.png": lambda file: plots.layers(rows, file, subject),
            "churn.png": lambda file: plots.churn([run], file, subject),
        }
        | _of_masks([run], subject),
    )
    _list_files(path, console, ("curves.png", "layers.png", "churn.png", *_TOPOLOGY))


def _of_masks(runs: Sequence[Run], subject: str) -> dict[str, Callable[[Path], bool]]:
    from sparsejax.report import topology

    makers = {"topology.png": topology.movement, "fan_in.png": topology.fan_in, "inputs.png": topology.inputs}
    bound = lambda make: lambda file: make(runs, file, subject)
    return {name: bound(make) for name, make in makers.items()}


def show_speed(file: Path, console: Console) -> None:
    """Writes a Markdown table and a picture beside a result file of experiments/speed, and shows the tables.

    Raises:
      InputError: it is of another version, or not whole.
    """
    from sparsejax.report.speed_plot import picture

    results = read_json(file)
    image, text = file.with_suffix(".png").name, file.with_suffix(".md").name
    if results.get("version") != speed.VERSION:
        raise InputError(f"report: {file} has version {results.get('version')!r}, not {speed.VERSION}")
    try:
        speed.show_tables(results, console)
        write_atomic(file.parent / text, speed.markdown(results, image))
        _draw(file.parent, {image: lambda path: picture(results, path)})
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"report: {file} is not a whole result of experiments/speed ({error!r})") from None
    _list_files(file.parent, console, (text, image))


def _draw(path: Path, makers: dict[str, Callable[[Path], bool]]) -> None:
    """Draws each picture, and removes one that there is nothing to draw for any more."""
    for name, make in makers.items():
        part = path / f".{name}"
        if make(part):
            part.replace(path / name)
        else:
            (path / name).unlink(missing_ok=True)


def _list_files(path: Path, console: Console, names: Sequence[str]) -> None:
    there = [name for name in names if (path / name).exists()]
    if there:
        say(console, f"{path}/: {', '.join(there)}")


def _subject(runs: Sequence[Run]) -> str:
    """`: mlp on digits` where all runs have one model and one data set."""
    fields = [{**run.config, **(run.result or {})} for run in runs if run.config or run.result]
    pairs = {(str(f.get("model")), str(f.get("dataset"))) for f in fields if f.get("model") and f.get("dataset")}
    return ": {} on {}".format(*pairs.pop()) if len(pairs) == 1 else ""

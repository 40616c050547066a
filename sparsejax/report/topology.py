"""The pictures of masks: how they move over the steps, the fan-in of neurons, what of the input is connected."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from sparsejax.report import collect, style
from sparsejax.report.collect import Run
from sparsejax.report.tables import percent

Points = dict[float, list[float]]  # step -> one value a seed
_MOST_COLUMNS, _MOST_LAYERS, _MOST_MAPS = 4, 12, 12


class Measure(NamedTuple):
    """One row of panels.

    Attributes:
      title: above its panels.
      kind, field: of the records, and of their number over the seeds, or of layers whose mean it is.
      log: whether the axis is logarithmic.
      dashed: the field of a second, dashed line.
    """

    title: str
    kind: str
    field: str
    log: bool = False
    dashed: str = ""


_MEASURES = (
    Measure("flipped since the record before (SAD / kept)", "masks", "sad_of_active", log=True),
    Measure("mask entries that differ from step 0", "masks", "flip_rate_from_start"),
    Measure("weights ever active (R_s)", "masks", "exploration"),
    Measure("gradient norm: kept weights, others dashed", "topology", "gradient_norm_active", True,
            "gradient_norm_inactive"),
    Measure("ReLU units that are never active", "topology", "dead_units"),
    Measure("kept weights that lie on no path", "topology", "kept_off_path"),
)  # fmt: skip


def movement(runs: Sequence[Run], path: Path, subject: str = "") -> bool:
    """SAD, flips, R_s, gradient norms, dead units over the steps: a row for each, a column for each sparsity.

    The line is the mean over the seeds, the band their range; dense runs are in every column.

    Returns:
      whether there was anything to draw.
    """
    found = {measure: _curves(runs, measure) for measure in _MEASURES}
    found = {measure: curves for measure, curves in found.items() if curves}
    if not found:
        return False
    every = sorted({sparsity for curves in found.values() for sparsity, _ in curves})
    columns = [sparsity for sparsity in every if sparsity > 0][-_MOST_COLUMNS:] or [0.0]
    drawn = {name for curves in found.values() for _, name in curves}
    order = [name for name in dict.fromkeys(_identity(run)[0] for run in runs) if name in drawn]
    look = style.looks(order)
    width, height = max(7.2, 2.6 + 3.4 * len(columns)), 1.2 + 2.3 * len(found)
    with style.figure(path, width, height, f"Masks over the steps{subject}") as fig:
        axes = style.panels(fig, len(found) * len(columns), columns=len(columns), sharex=True, sharey="row")
        for index, ax in enumerate(axes):
            measure, sparsity = list(found)[index // len(columns)], columns[index % len(columns)]
            _panel(ax, measure, found[measure], sparsity, look)
            head = f"{percent(sparsity)} sparsity\n" if index < len(columns) and len(columns) > 1 else ""
            if head or index % len(columns) == 0:
                title = measure.title if index % len(columns) == 0 else ""
                ax.set_title(head + title, loc="left", fontsize=10)
        fig.supxlabel("training step", fontsize=11)
        style.legend_beside(fig, axes, order)
    return True


def _panel(ax: Axes, measure: Measure, curves: Mapping, sparsity: float, look: Mapping[str, style.Look]) -> None:
    drawn: list[float] = []
    for (at, name), (points, dashed) in curves.items():
        if at in (sparsity, 0.0):
            drawn += _line(ax, points, look[name], name)
            drawn += _line(ax, dashed, look[name], "", ls=(0, (4, 2)))
    if measure.log and drawn:
        ax.set_yscale("log")
    elif not measure.log:
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.4g} %"))


def _line(ax: Axes, points: Points, look: style.Look, name: str, **options: Any) -> list[float]:
    xs = sorted(points)
    if not xs:
        return []
    means = [sum(points[x]) / len(points[x]) for x in xs]
    low, high = [min(points[x]) for x in xs], [max(points[x]) for x in xs]
    ax.fill_between(xs, low, high, color=look.color, alpha=0.15, lw=0)
    marker = look.marker if len(xs) < 3 and not options else ""
    ax.plot(xs, means, color=look.color, lw=1.6, marker=marker, label=name or "_", **options)
    return means


def _curves(runs: Iterable[Run], measure: Measure) -> dict[tuple[float, str], tuple[Points, Points]]:
    """(sparsity, series) -> the points of the measure's line and of its dashed one."""
    out: dict[tuple[float, str], tuple[Points, Points]] = {}
    for run in runs:
        (name, sparsity), last = _identity(run), 0
        end = max((record.get("step", 0) for record in run.records), default=0)
        for record in run.records:
            if record.get("kind") != measure.kind:
                continue
            last = max(last, record.get("step", 0))
            for place, field in enumerate((measure.field, measure.dashed)):
                values = _of_seeds(record.get(field))
                if measure.log:
                    values = values if all(value > 0 for value in values) else []
                if values:
                    both = out.setdefault((sparsity, name), ({}, {}))
                    both[place].setdefault(record.get("step", 0), []).extend(values)
        line = out.get((sparsity, name), ({}, {}))[0]
        if measure.kind == "masks" and not measure.log and end > last in line:  # masks stay what they were
            line.setdefault(end, []).extend(line[last][-len(run.config.get("seeds") or [0]) :])
    return out


def _of_seeds(value: Any) -> list[float]:
    """One number a seed: as it is, or the mean over the layers."""
    if isinstance(value, Mapping):
        value = [sum(seed) / len(seed) for seed in zip(*value.values())]
    return [float(x) for x in value or []] if all(map(math.isfinite, value or [])) else []


def _identity(run: Run) -> tuple[str, float]:
    row = collect.rows([run._replace(result={**run.config, **(run.result or {})})])[0]
    return row.series, row.sparsity


def fan_in(runs: Iterable[Run], path: Path, subject: str = "") -> bool:
    """How many neurons have how many inputs left at the end, a panel for each layer, at the sweep's largest sparsity.

    Returns:
      whether there was anything to draw.
    """
    found = [(*_identity(run), last) for run in runs if (last := _last(run, "fan_in_histogram"))]
    if not found:
        return False
    sparsity = max(at for _, at, _ in found)
    chosen = [(name, histograms) for name, at, histograms in found if at == sparsity]
    names = list(dict.fromkeys(layer for _, histograms in chosen for layer in histograms))
    shown = names if len(names) <= _MOST_LAYERS else [*names[: _MOST_LAYERS - 1], names[-1]]
    order = list(dict.fromkeys(name for name, _ in chosen))
    look = style.looks(order)
    columns = min(len(shown), 3)
    height = 1.6 + 2.4 * math.ceil(len(shown) / columns)
    title = f"Inputs of each neuron after training{subject}"
    if len({at for _, at, _ in found}) > 1:
        title += f", {percent(sparsity)} sparsity"
    with style.figure(path, max(7.2, 2.2 + 3.1 * columns), height, title) as fig:
        axes = style.panels(fig, len(shown), columns=columns)
        for ax, layer in zip(axes, shown):
            for name, histograms in chosen:
                if layer in histograms:
                    _histogram(ax, histograms[layer], look[name].color, name, filled=len(order) == 1)
            ax.set_title(layer, loc="left", fontsize=10)
            ax.set_ylim(bottom=0)
            ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.3g} %"))
        fig.supxlabel("fan-in (weights kept)", fontsize=11)
        fig.supylabel("neurons of the layer", fontsize=11)
        style.legend_beside(fig, axes, order)
    return True


def _histogram(ax: Axes, found: Mapping[str, Any], color: str, name: str, *, filled: bool) -> None:
    """The share of neurons in each bin, over the seeds together."""
    counts = [sum(seeds) for seeds in zip(*found["neurons"])]
    shares = [count / max(sum(counts), 1) for count in counts]
    edges = [edge - 0.5 for edge in found["edges"]]  # so that a whole number is in the middle of its bar
    ax.stairs(shares, edges, color=color, lw=1.4, fill=filled, alpha=0.8 if filled else 1.0, label=name)


def _last(run: Run, field: str) -> Any:
    """A field of the last topology record that has it."""
    having = (record[field] for record in reversed(run.records) if record.get("kind") == "topology" and field in record)
    return next(having, None)


def inputs(runs: Iterable[Run], path: Path, subject: str = "") -> bool:
    """How many connections each place of a square input has at the end, mean over the seeds, a map for each run.

    Returns:
      whether there was anything to draw.
    """
    maps: dict[str, list[list[float]]] = {}
    for run in runs:
        name, sparsity = _identity(run)
        if seeds := _last(run, "input_connections"):
            maps.setdefault(f"{name}, {percent(sparsity)}" if sparsity else name, []).extend(seeds)
    images = {name: image for name, seeds in list(maps.items())[:_MOST_MAPS] if (image := _square(seeds))}
    if not images:
        return False
    columns = min(len(images), 4)
    height = 1.0 + 2.6 * math.ceil(len(images) / columns)
    with style.figure(path, max(4.6, 0.9 + 2.6 * columns), height, f"Connections of each input{subject}") as fig:
        axes = style.panels(fig, len(images), columns=columns)
        for ax, (name, image) in zip(axes, images.items()):
            drawn = ax.imshow(image, cmap="viridis", vmin=0)
            ax.set_title(name, loc="left", fontsize=10)
            ax.set_xticks([])
            ax.set_yticks([])
            ax.grid(visible=False)
            fig.colorbar(drawn, ax=ax, shrink=0.8)
    return True


def _square(seeds: Sequence[Sequence[float]]) -> list[list[float]] | None:
    """The mean map as rows of a square image; channels, which come last, are added up; None where it is no square."""
    mean = [sum(values) / len(values) for values in zip(*seeds)]
    for channels in (1, 3):
        side = math.isqrt(len(mean) // channels)
        if side > 1 and side * side * channels == len(mean):
            places = [sum(mean[i : i + channels]) for i in range(0, len(mean), channels)]
            return [places[row * side : (row + 1) * side] for row in range(side)]
    return None

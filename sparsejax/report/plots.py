"""The pictures of a sweep: accuracy or loss over sparsity, the layers' densities, what the masks do over time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from sparsejax.report import collect, style
from sparsejax.report.collect import Row, Run
from sparsejax.report.statistics import mean_and_interval
from sparsejax.report.tables import percent

_ACCURACY_TICKS = (
    0.1,
    0.2,
    0.3,
    0.5,
    0.7,
    0.8,
    0.9,
    0.95,
    0.97,
    0.98,
    0.99,
    0.995,
    0.998,
    0.999,
    0.9995,
    0.9999,
)
_DIRECT = 10  # series that are named at their line's end; more of them get a legend
_WIDE = 6.0  # largest over smallest error from which the accuracy axis becomes logarithmic in the error


def accuracy(rows: Sequence[Row], path: Path, subject: str = "") -> bool:
    """Test accuracy over sparsity: a line for each method with its 95 % band, and dense as a level.

    Sparsity is spaced by the logarithm of the density, so that 0.98 and 0.995 lie apart. Where errors differ
    widely, accuracy is spaced by the logarithm of the error.

    Returns:
      whether there was anything to draw.
    """
    rows = _judged_by(rows, "accuracy")
    errors = [1 - value for row in rows for value in row.scores]
    if not errors:
        return False
    floor = max(min((e for e in errors if e > 0), default=1e-3) / 2, 1e-5)
    wide = max(errors) / max(min(errors), floor) > _WIDE

    def spaced(value: float) -> float:
        return -math.log10(min(max(1 - value, floor), 1.0)) if wide else 100 * value

    label = f"test accuracy{' (spaced by log error)' if wide else ''}"
    limits = lambda ax: _accuracy_limits(ax, [spaced(value) for value in _reached(rows, 0.0, 1.0)], wide)
    return _over_sparsity(rows, path, f"Test accuracy over sparsity{subject}", label, spaced, limits)


def loss(rows: Sequence[Row], path: Path, subject: str = "") -> bool:
    """Validation loss of language models over sparsity, drawn as `accuracy` is; lower is better.

    Returns:
      whether there was anything to draw.
    """
    rows = _judged_by(rows, "loss")
    values = [value for row in rows for value in row.scores]
    if not values:
        return False
    reached = _reached(rows, 0.0, math.inf)
    pad = max(0.07 * (max(reached) - min(reached)), 1e-3 * max(reached))
    limits = lambda ax: ax.set_ylim(min(reached) - pad, max(reached) + pad)
    title = f"Validation loss over sparsity{subject}"
    return _over_sparsity(rows, path, title, "validation loss (lower is better)", lambda value: value, limits)


def _reached(rows: Sequence[Row], least: float, most: float) -> list[float]:
    """All that is drawn of the scores: each of them and the ends of their intervals, cut at what scores can be."""
    values = [value for row in rows for value in row.scores]
    for mean, half in (mean_and_interval(row.scores) for row in rows):
        values += [mean - (half or 0), mean + (half or 0)]
    return [min(max(value, least), most) for value in values]


def _judged_by(rows: Sequence[Row], metric: str) -> list[Row]:
    return [row for row in rows if row.metric == metric and row.scores and all(map(math.isfinite, row.scores))]


def _over_sparsity(rows: Sequence[Row], path: Path, title: str, label: str, spaced, limits) -> bool:
    """A line for each method; `spaced` places a score on the axis, `limits(ax)` sets that up."""
    series = list(dict.fromkeys(row.series for row in rows))
    sparse = [row for row in rows if row.sparsity > 0]
    if not sparse:
        return False
    look = style.looks(series)
    with style.figure(path, 7.4, 4.8, title) as fig:
        ax = fig.subplots()
        limits(ax)
        xs = [_log_density(row.sparsity) for row in sparse]
        pad = max(0.06 * (max(xs) - min(xs)), 0.05)
        ax.set_xlim(min(xs) - pad, max(xs) + pad)
        ends = []
        for name in series:
            members = [row for row in rows if row.series == name]
            _one_series(ax, members, look[name], spaced)
            ends.append((name, spaced(mean_and_interval(members[-1].scores)[0]), look[name].color))
        ticks = sorted({row.sparsity for row in sparse})
        ax.set_xticks([_log_density(s) for s in ticks], [percent(s) for s in ticks])
        ax.set_xlabel("sparsity (spaced by log density)")
        ax.set_ylabel(label)
        if len(ends) <= _DIRECT:
            style.label_ends(ax, ends)
        else:
            style.legend_beside(fig, [ax], series)
        if any(len(row.scores) > 1 for row in rows):
            ax.set_title("mean, 95 % confidence band and every seed", loc="left", color="#555555")
    return True


def _log_density(sparsity: float) -> float:
    return -math.log10(1 - sparsity)


def _one_series(ax: Axes, rows: Sequence[Row], look: style.Look, spaced) -> None:
    means, lows, highs = [], [], []
    for row in rows:
        mean, half = mean_and_interval(row.scores)
        means.append(spaced(mean))
        lows.append(spaced(_possible(row, mean - (half or 0))))
        highs.append(spaced(_possible(row, mean + (half or 0))))
    if rows[0].sparsity == 0:  # dense: a level across the picture
        ax.axhspan(lows[0], highs[0], color=look.color, alpha=0.06, lw=0)
        ax.axhline(means[0], color=look.color, ls=(0, (5, 3)), lw=1.4, label=rows[0].series)
        return
    xs = [_log_density(row.sparsity) for row in rows]
    if len(xs) > 2:
        ax.fill_between(xs, lows, highs, color=look.color, alpha=0.1, lw=0)
        for edge in (lows, highs):  # so that bands that overlap can be told apart
            ax.plot(xs, edge, color=look.color, lw=0.8, alpha=0.5)
    else:  # a band between two points would say more than was measured
        ax.vlines(xs, lows, highs, color=look.color, lw=6, alpha=0.2)
    for x, row in zip(xs, rows):
        values = [spaced(value) for value in row.scores]
        ax.plot([x] * len(values), values, ls="", marker="o", ms=3, color=look.color, alpha=0.45, mew=0)
    ax.plot(xs, means, color=look.color, marker=look.marker, mec="white", mew=0.8, label=rows[0].series)


def _possible(row: Row, score: float) -> float:
    """An interval's end, cut at what scores can be."""
    return min(max(score, 0.0), 1.0 if row.metric == "accuracy" else math.inf)


def _accuracy_limits(ax: Axes, values: Sequence[float], wide: bool) -> None:
    low, high = min(values), max(values)
    pad = max(0.07 * (high - low), 0.02 if wide else 0.5)
    if not wide:
        ax.set_ylim(low - pad, min(high + pad, 100.5))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g} %"))
        return
    ax.set_ylim(low - pad, high + pad)
    ticks = [t for t in _ACCURACY_TICKS if low - pad <= -math.log10(1 - t) <= high + pad]
    while len(ticks) > 8:
        ticks = ticks[1::2]
    ax.set_yticks([-math.log10(1 - t) for t in ticks], [percent(t) for t in ticks])
    ax.yaxis.set_minor_locator(NullLocator())


def layers(rows: Sequence[Row], path: Path, subject: str = "") -> bool:
    """The density of each layer at the end of training, a panel for each sparsity; mean over the seeds.

    Returns:
      whether there was anything to draw.
    """
    rows = [row for row in rows if row.sparsity > 0 and row.density]
    if not rows:
        return False
    names = list(dict.fromkeys(layer for row in rows for layer in row.density))
    series = list(dict.fromkeys(row.series for row in rows))
    look = style.looks(series)
    sparsities = sorted({row.sparsity for row in rows})
    values = [value for row in rows for layer in row.density.values() for value in layer if value > 0]
    values += [1 - sparsity for sparsity in sparsities] + [share for row in rows for share in row.erk.values()]
    limits = min(values) / 1.5, max(values) * 1.5
    columns = min(len(sparsities), 4)
    lines = math.ceil(len(sparsities) / columns)
    height = 1.9 + lines * max(1.2, len(names) * (0.16 + 0.13 * min(len(series), 6)))
    width = 3.6 + 2.5 * columns
    with style.figure(path, max(width, 7.2), min(height, 40), f"Density of each layer after training{subject}") as fig:
        axes = style.panels(fig, len(sparsities), sharex=True, sharey=True)
        for ax, sparsity in zip(axes, sparsities):
            ax.axvline(1 - sparsity, color="#555555", ls=(0, (4, 3)), lw=1.1, label="uniform (all layers together)")
            for index, layer in enumerate(names):
                _erk_mark(ax, rows, sparsity, layer, index)
            for index, name in enumerate(series):
                offset = (index - (len(series) - 1) / 2) * 0.72 / max(len(series), 1)
                for row in (r for r in rows if r.series == name and r.sparsity == sparsity):
                    _layer_dots(ax, row, names, offset, look[name])
            ax.set_title(f"{percent(sparsity)} sparsity", loc="left")
            ax.set_xlim(limits)  # before the scale, which else looks for limits
            ax.set_xscale("log")
            style.log_axis(ax.xaxis, *limits, lambda x: f"{100 * x:g} %")
            ax.grid(axis="y", visible=False)
            for edge in range(1, len(names)):
                ax.axhline(edge - 0.5, color="#EEEEEE", lw=0.8, zorder=0)
            ax.set_yticks(range(len(names)), names)
            ax.set_ylim(len(names) - 0.5, -0.5)
            ax.tick_params(axis="y", length=0)
        fig.supxlabel("density (weights kept, log scale)", fontsize=11)
        style.legend_beside(fig, axes, series)
    return True


def _erk_mark(ax: Axes, rows: Sequence[Row], sparsity: float, layer: str, y: int) -> None:
    """A short line at the density that ERK gives a layer, where the results say it."""
    known = [row.erk[layer] for row in rows if row.sparsity == sparsity and layer in row.erk]
    if known:
        ax.vlines(known[0], y - 0.42, y + 0.42, color="#888888", lw=1.6, zorder=1, label="ERK")


def _layer_dots(ax: Axes, row: Row, names: Sequence[str], offset: float, look: style.Look) -> None:
    points = [
        (sum(row.density[n]) / len(row.density[n]), y + offset) for y, n in enumerate(names) if row.density.get(n)
    ]
    xs, ys = zip(*points)
    ax.plot(xs, ys, ls="", marker=look.marker, color=look.color, mec="white", mew=0.6, label=row.series)


def churn(runs: Iterable[Run], path: Path, subject: str = "") -> bool:
    """Mask entries turned on or off from one record to the next, over the steps, a panel for each sparsity.

    The line is the mean over the seeds, the band their range.

    Returns:
      whether there was anything to draw.
    """
    curves: dict[tuple[float, str], dict[int, list[float]]] = {}
    still: list[str] = []
    order: list[str] = []
    for run in runs:
        name, sparsity, points = _changes(run)
        if any(value > 0 for values in points.values() for value in values):
            order.append(name)
            merged = curves.setdefault((sparsity, name), {})
            for step, values in points.items():
                merged.setdefault(step, []).extend(values)
        elif run.records:
            still.append(name)
    if not curves:
        return False
    look = style.looks(order)
    sparsities = sorted({sparsity for sparsity, _ in curves})
    counts = [v for points in curves.values() for values in points.values() for v in values if v > 0]
    limits = min(counts) / 2, max(counts) * 2
    order = list(dict.fromkeys(order))
    columns = 2 if len(sparsities) in (2, 4) else min(len(sparsities), 3)
    height = 1.5 + 2.6 * math.ceil(len(sparsities) / columns)
    with style.figure(path, 2.4 + 3.3 * columns, height, f"Weights switched on or off per mask update{subject}") as fig:
        axes = style.panels(fig, len(sparsities), columns=columns, sharex=True, sharey=True)
        for (sparsity, name), points in curves.items():
            _change_curve(axes[sparsities.index(sparsity)], points, name, look[name], order.index(name) / len(order))
        for ax, sparsity in zip(axes, sparsities):
            ax.set_title(f"{percent(sparsity)} sparsity" if sparsity else "sparsity not known", loc="left")
            ax.set_ylim(limits)
            ax.set_yscale("log")
            style.log_axis(ax.yaxis, *limits, lambda y: f"{y:,.0f}")
        fig.supxlabel(
            "training step" + (f"   ({', '.join(dict.fromkeys(still))}: no change)" if still else ""),
            fontsize=11,
        )
        fig.supylabel("mask entries changed (log scale)", fontsize=11)
        style.legend_beside(fig, axes, order)
    return True


def _changes(run: Run) -> tuple[str, float, dict[int, list[float]]]:
    """(series, sparsity, step -> mask entries switched since the record before, for each seed)."""
    row = collect.rows([run._replace(result={**run.config, **(run.result or {})})])[0]
    points = {}
    for record in run.records:
        if record.get("kind") == "masks" and record.get("step", 0) > 0:
            layers = [values for field in ("grown", "dropped") for values in (record.get(field) or {}).values()]
            points[record["step"]] = [sum(seed) for seed in zip(*layers)]
    return row.series, row.sparsity, points


def _change_curve(ax: Axes, points: dict[int, list[float]], name: str, look: style.Look, phase: float) -> None:
    """One series; `phase` in [0, 1) sets its few markers apart from those of another that it may cover."""
    steps = sorted(step for step, values in points.items() if values and min(values) > 0)
    if not steps:
        return
    means = [sum(points[s]) / len(points[s]) for s in steps]
    ax.fill_between(
        steps,
        [min(points[s]) for s in steps],
        [max(points[s]) for s in steps],
        color=look.color,
        alpha=0.2,
        lw=0,
    )
    apart = max(1, len(steps) // 6)
    marks = list(range(int(phase * apart), len(steps), apart))
    (line,) = ax.plot(steps, means, color=look.color, lw=1.6, label=name)
    line.set(marker=look.marker, markevery=marks, markersize=5.5, markeredgecolor="white", markeredgewidth=0.6)

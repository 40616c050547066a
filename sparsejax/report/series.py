"""What the experiments of several rounds report: a value with its seeds, a table of them, lines over the rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.ticker import FuncFormatter

from sparsejax.report import style
from sparsejax.report.statistics import mean_and_interval


class Line(NamedTuple):
    """One line of a picture.

    Attributes:
      name: in the legend.
      points: x -> the values of the seeds.
    """

    name: str
    points: Mapping[float, Sequence[float]]


class Panel(NamedTuple):
    """Lines on common axes.

    Attributes:
      title: what is drawn upwards.
      lines: in the order of the legend.
      percent: whether values are fractions, to be shown in %.
    """

    title: str
    lines: Sequence[Line]
    percent: bool = False


def measured(values: Sequence[float]) -> dict[str, Any]:
    """What a result file says of a value: every seed, the mean, half its 95 % interval (None for one seed).

    Example:
      >>> measured([1.0, 2.0, 3.0])["mean"]
      2.0
    """
    mean, half = mean_and_interval(values)
    return {"seeds": [float(value) for value in values], "mean": mean, "interval": half}


def cell(value: Mapping[str, Any], digits: int = 2, factor: float = 1.0, sign: bool = False) -> str:
    """`97.31 ± 0.22`: mean and half the interval of what `measured` gives.

    Example:
      >>> cell({"seeds": [0.9, 0.92], "mean": 0.91, "interval": 0.127}, digits=1, factor=100)
      '91.0 ± 12.7'
    """
    number = f"{factor * value['mean']:{'+' if sign else ''}.{digits}f}"
    return number if value["interval"] is None else f"{number} ± {factor * value['interval']:.{digits}f}"


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    lines = [list(heads), [":--", *["--:"] * (len(heads) - 1)], *map(list, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def panels(path: Path, title: str, x_label: str, drawn: Sequence[Panel], *, x_percent: bool = True) -> None:
    """Each panel's lines over a logarithmic x: means, 95 % bands, every seed; dense is at the left.

    Args:
      path: a .png file.
      title: of the picture; x_label: of the common axis.
      drawn: the panels, side by side; a line of the same name has the same look in all.
      x_percent: whether x are fractions, to be shown in %.
    """
    look = style.looks([line.name for panel in drawn for line in panel.lines])
    with style.figure(path, 1.6 + 4.2 * len(drawn), 4.2, title) as fig:
        axes = style.panels(fig, len(drawn))
        for ax, panel in zip(axes, drawn, strict=True):
            scale = 100.0 if panel.percent else 1.0
            every = sorted({x for line in panel.lines for x in line.points})
            ax.set_xlim(1.1 * every[-1], every[0] / 1.1)  # densest first
            ax.set_xscale("log")
            shown = (lambda x: f"{100 * x:g} %") if x_percent else (lambda x: f"{x:g}")
            style.log_axis(ax.xaxis, every[0] / 1.1, 1.1 * every[-1], shown)
            for line in panel.lines:
                xs = sorted(line.points)
                both = [mean_and_interval(line.points[x]) for x in xs]
                lows = [scale * (mean - (half or 0)) for mean, half in both]
                highs = [scale * (mean + (half or 0)) for mean, half in both]
                color, marker = look[line.name]
                ax.fill_between(xs, lows, highs, color=color, alpha=0.15, lw=0)
                for x in xs:
                    seeds = [scale * value for value in line.points[x]]
                    ax.plot([x] * len(seeds), seeds, ls="", marker="o", ms=2.5, color=color, alpha=0.4, mew=0)
                means = [scale * mean for mean, _ in both]
                ax.plot(xs, means, color=color, marker=marker, mec="white", mew=0.6, label=line.name)
            ax.set_title(panel.title, loc="left")
            if panel.percent:
                ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g} %"))
        fig.supxlabel(x_label, fontsize=11)
        style.legend_beside(fig, axes)

"""The picture of a speed measurement: every case's step against the bare optimizer's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from sparsejax.report import style
from sparsejax.report.speed import Results

_KINDS = (("ordinary", "step without"), ("update", "step with"))
_LINEAR = 20  # ratios; above, the axis is logarithmic


def picture(results: Results, path: Path) -> bool:
    """Steps without and with a mask update against bare: a bar for each case with quartiles, a mark at its target.

    Returns:
      whether there was anything to draw.
    """
    counts = {
        tree["name"]: max(len(_drawn(results, tree["name"], kind)) for kind, _ in _KINDS) for tree in results["trees"]
    }
    timed = [name for name, count in counts.items() if count]
    if not timed:
        return False
    look = style.looks(row["case"].removeprefix("jaxpruner ") for row in results["rows"])
    title = f"Optimizer step against bare AdamW: {results['device']}, {results['date']}"
    with style.figure(path, 11, 1.2 + len(timed) * (1.0 + 0.3 * max(counts.values())), title) as fig:
        panels = style.panels(fig, 2 * len(timed), columns=2)
        for ax, (name, kind, what) in zip(panels, [(name, *kind) for name in timed for kind in _KINDS], strict=True):
            _bars(ax, _drawn(results, name, kind), kind, look)
            ax.set_title(f"{name}: {what} mask update", loc="left")
        fig.supxlabel("x bare AdamW: median and quartiles; thick line: target", fontsize=11)
    return True


def _drawn(results: Results, tree: str, kind: str) -> list[Results]:
    return [row for row in results["rows"] if row["tree"] == tree and row[kind] and row["library"] != "optax"]


def _bars(ax: Axes, rows: Sequence[Results], kind: str, look: dict[str, style.Look]) -> None:
    shown = [row[kind]["ratio"] for row in rows if row[kind]["verdict"] != "spread"]
    wanted = [row["targets"][kind] for row in rows if kind in row["targets"]]
    most = max([1.0, *wanted, *(high for _, _, high in shown)])
    if most > _LINEAR:
        ax.set_xlim(0.5, 1.5 * most)  # before the scale, which else looks for limits
        ax.set_xscale("log")
        style.log_axis(ax.xaxis, 0.5, 1.5 * most, lambda x: f"{x:g}")
    else:
        ax.set_xlim(0, 1.12 * most)
    ax.axvline(1, color="#555555", lw=0.8, ls=(0, (4, 3)))
    for y, row in enumerate(rows):
        low, median, high = row[kind]["ratio"]
        ours = row["library"] == "sparsejax"
        if row[kind]["verdict"] == "spread":
            ax.text(1, y, " spread too wide", va="center", color="#777777")
        else:
            color = look[row["case"].removeprefix("jaxpruner ")].color
            ax.barh(y, median, height=0.66, color=color, alpha=0.85 if ours else 0.4)
            ax.plot([low, high], [y, y], color="#222222", lw=1.2, marker="|", ms=6)
        if kind in row["targets"]:
            ax.plot([row["targets"][kind]] * 2, [y - 0.45, y + 0.45], color="#000000", lw=2.2)
    ax.set_yticks(range(len(rows)), [row["case"] for row in rows])
    ax.set_ylim(max(len(rows), 1) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)

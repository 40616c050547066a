"""The picture of one run: loss and accuracy, or perplexity, over its epochs."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from sparsejax.report import style
from sparsejax.report.collect import Run


def curves(run: Run, path: Path, subject: str = "") -> bool:
    """Loss and test accuracy (of a language model: perplexity) over the epochs; mean and range over the seeds.

    Returns:
      whether there was anything to draw.
    """
    train = _over_epochs(run, "train", "loss")
    test = _over_epochs(run, "eval", "loss")
    right = _over_epochs(run, "eval", "accuracy")
    perplexity = {} if right else _over_epochs(run, "eval", "perplexity")
    if not train and not test:
        return False
    with style.figure(path, 9.6, 3.9, f"Training{subject}") as fig:
        left, other = style.panels(fig, 2)
        for points, color, name in ((train, "#0072B2", "training loss"), (test, "#D55E00", "test loss")):
            _band(left, points, color, name)
        left.set_title("loss", loc="left")
        left.set_yscale("log")
        style.log_axis(left.yaxis, *left.get_ylim(), lambda y: f"{y:.3g}")
        left.legend(loc="upper right")
        if perplexity:
            _band(other, perplexity, "#0072B2", "perplexity")
            other.set_title("validation perplexity (lower is better)", loc="left")
        else:
            _band(other, {x: [100 * v for v in values] for x, values in right.items()}, "#0072B2", "test accuracy")
            other.set_title("test accuracy", loc="left")
            other.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g} %"))
        for ax in (left, other):
            ax.set_xlabel("epoch")
    return True


def _over_epochs(run: Run, kind: str, field: str) -> dict[float, list[float]]:
    records = [r for r in run.records if r.get("kind") == kind and r.get(field)]
    points = {float(r.get("epoch", r.get("step", 0))): [float(v) for v in r[field]] for r in records}
    return {x: values for x, values in points.items() if all(map(math.isfinite, values))}


def _band(ax: Axes, points: dict[float, list[float]], color: str, name: str) -> None:
    xs = sorted(points)
    if not xs:
        return
    ax.fill_between(xs, [min(points[x]) for x in xs], [max(points[x]) for x in xs], color=color, alpha=0.18, lw=0)
    ax.plot(
        xs,
        [sum(points[x]) / len(points[x]) for x in xs],
        color=color,
        marker="o" if len(xs) == 1 else "",
        label=name,
    )

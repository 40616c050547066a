"""How every plot looks: fonts, the colour and marker of a method, axes for fractions near 0 and 1."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

# M. Okabe, K. Ito, Color Universal Design, 2008: told apart with any kind of colour vision. A method keeps
# its colour from plot to plot; markers tell them apart in print too.
_KNOWN = {
    "dense": ("#000000", ""),
    "static": ("#7F7F7F", "s"),
    "set": ("#E69F00", "^"),
    "rigl": ("#0072B2", "o"),
    "gmp": ("#009E73", "D"),
    "one_shot": ("#CC79A7", "v"),
}
_OTHERS = [
    ("#D55E00", "P"), ("#56B4E9", "X"), ("#882255", "<"), ("#44AA99", ">"), ("#999933", "p"),
    ("#332288", "h"), ("#0072B2", "s"), ("#E69F00", "D"), ("#009E73", "^"), ("#CC79A7", "o"),
]  # fmt: skip
_RC: Any = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.titleweight": "normal",
    "figure.titlesize": 13,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.8,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "lines.linewidth": 2.0,
    "lines.markersize": 6.5,
    "legend.frameon": False,
    "savefig.dpi": 160,
}


class Look(NamedTuple):
    """Colour and marker of a series."""

    color: str
    marker: str


def looks(series: Iterable[str]) -> dict[str, Look]:
    """The look of each series: a known method's own, others in order."""
    out: dict[str, Look] = {}
    taken = 0
    for name in dict.fromkeys(series):
        if name in _KNOWN:
            out[name] = Look(*_KNOWN[name])
        else:
            out[name] = Look(*_OTHERS[taken % len(_OTHERS)])
            taken += 1
    return out


@contextlib.contextmanager
def figure(path: Path, width: float, height: float, title: str) -> Iterator[Figure]:
    """A figure with our style that is written to `path` when the block ends.

    Args:
      path: a .png file.
      width, height: in inches.
      title: of the whole figure.
    """
    with matplotlib.rc_context(_RC):
        fig = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(fig)
        head, colon, rest = title.partition(": ")
        fits = len(title) < 9.5 * width  # characters to the inch
        fig.suptitle(title if fits else f"{head}{colon.rstrip()}\n{rest}", x=0.01, ha="left")
        yield fig
        fig.savefig(path)


def panels(fig: Figure, count: int, *, columns: int = 4, **options: Any) -> list[Axes]:
    """`count` axes in a grid of at most `columns`, the rest of the grid left empty."""
    columns = min(columns, count)
    grid = fig.subplots(math.ceil(count / columns), columns, squeeze=False, **options).ravel()
    for unused in grid[count:]:
        unused.set_visible(False)
    return list(grid[:count])


def legend_beside(fig: Figure, axes: Sequence[Axes], order: Sequence[str] = ()) -> None:
    """One legend for all panels, to their right, where it hides nothing; names in `order` first."""
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels())}
    names = [name for name in dict.fromkeys([*order, *handles]) if name in handles]
    if len(names) > 1:
        fig.legend([handles[n] for n in names], names, loc="outside right center", handlelength=1.8)


def label_ends(ax: Axes, ends: Sequence[tuple[str, float, str]], gap: float = 0.058) -> None:
    """Writes each series' name beside the right end of its line, moved apart where they would touch.

    Args:
      ax: its limits must be set.
      ends: (name, y in data coordinates, colour).
      gap: least distance of two names as a fraction of the height.
    """
    low, high = ax.get_ylim()
    wanted = sorted((min(max((y - low) / (high - low), 0.0), 1.0), name, color) for name, y, color in ends)
    for place, (y, name, color) in zip(spread([y for y, _, _ in wanted], gap), wanted):
        ax.annotate(
            name,
            xy=(1.0, y),
            xytext=(1.05, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=color,
            va="center",
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.8, "alpha": 0.6, "relpos": (0, 0.5)},
            annotation_clip=False,
        )


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Places at least `gap` apart, in the order of the ascending `wanted`, each group around its mean."""
    groups: list[list[float]] = []  # of wanted places; a group stands at equal distances around its mean
    for y in wanted:
        groups.append([y])
        while len(groups) > 1 and _top(groups[-2], gap) + gap > _bottom(groups[-1], gap):
            last = groups.pop()
            groups[-1] += last
    return [_bottom(group, gap) + gap * k for group in groups for k in range(len(group))]


def _bottom(group: Sequence[float], gap: float) -> float:
    half = gap * (len(group) - 1) / 2
    return min(max(sum(group) / len(group) - half, 0.02), max(0.98 - 2 * half, 0.02))


def _top(group: Sequence[float], gap: float) -> float:
    return _bottom(group, gap) + gap * (len(group) - 1)


def log_axis(axis: Axis, low: float, high: float, text: Callable[[float], str]) -> None:
    """Ticks of a logarithmic axis: powers of ten, and 2 and 5 (or 3) times them where there are few; none between.

    Args:
      axis: ax.xaxis or ax.yaxis, its scale set.
      low, high: the limits, > 0.
      text: a tick's label.
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    decades = math.log10(high / low)
    factors = (1, 2, 5) if decades < 1.3 else (1, 3) if decades < 2.5 else (1,)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    axis.set_ticks([tick for tick in ticks if low <= tick <= high])
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_locator(NullLocator())

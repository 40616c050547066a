"""The report of a speed measurement: a result file of experiments/speed as tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from sparsejax.files import read_json
from sparsejax.launch.terminal import say

KIND, VERSION = "sparsejax-speed", 1
GROWTH = 1.5  # largest over smallest time per weight that counts as none
_NONE = "-"
_WIDE = 160

Results = dict[str, Any]
Grid = list[list[str]]  # heads, then rows


def result_files(path: Path) -> list[Path]:
    """`path` if it is a result file, or those in the directory `path`, by name."""
    files = [path] if path.is_file() else sorted(path.glob("*.json"))
    return [file for file in files if _is_result(read_json(file))]


def _is_result(value: Any) -> bool:
    return isinstance(value, dict) and value.get("kind") == KIND


def show_tables(results: Results, console: Console) -> None:
    """Prints every table; where no terminal is, no line is cut."""
    if not console.is_terminal:
        console = Console(file=console.file, width=_WIDE, color_system=None)
    say(console, heading(results))
    for title, grid in tables(results):
        say(console, f"\n{title}")
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for column, head in enumerate(grid[0]):
            table.add_column(head, justify="left" if column == 0 else "right", no_wrap=column == 0)
        for row in grid[1:]:
            table.add_row(*row)
        console.print(table)
    for line in notes(results):
        say(console, line)


def markdown(results: Results, picture: str) -> str:
    """Every table as Markdown, below the line that says where, when and how."""
    parts = [heading(results)]
    for title, grid in tables(results):
        lines = [grid[0], [":--", *["--:"] * (len(grid[0]) - 1)], *grid[1:]]
        parts.append(f"**{title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    parts += [*notes(results), f"![Steps against bare AdamW]({picture})"]
    return "\n\n".join(parts) + "\n"


def heading(results: Results) -> str:
    """Where, when and how it was measured, on one line."""
    packages = ", ".join(f"{name} {version}" for name, version in results["packages"].items())
    return (
        f"{results['date']}, {results['device']}, {results['cores']} cores, Python {results['python']}, {packages}; "
        f"load average {results['load_average']} at the start; {results['command']}"
    )


def notes(results: Results) -> list[str]:
    """How to read the tables, and what is not in them."""
    rounds = results["rounds"]
    lines = [
        f"Medians and quartiles of {rounds} rounds (without mask update {3 * rounds}; of what takes seconds 3), each "
        "against bare AdamW of the same round. spread: the quartiles lie too far apart for a ratio. Targets: at most.",
    ]
    lines += [f"Left out: {entry['tree']} {entry['case']}: {entry['reason']}." for entry in results["left_out"]]
    return lines


def tables(results: Results) -> list[tuple[str, Grid]]:
    """Titles and grids: for each tree its steps and what they cost besides time, then how time grows with size."""
    out = []
    for tree in results["trees"]:
        rows = [row for row in results["rows"] if row["tree"] == tree["name"]]
        about = (
            f"{tree['name']}: {tree['weights']:,} weights in {tree['leaves']} leaves, {tree['prunable_leaves']} of "
            f"them prunable, {tree['dtype']}"
        )
        if any(row["ordinary"] or row["update"] for row in rows):
            out.append((f"{about}: one step", _steps(rows)))
        if rows:
            out.append((f"{about}: costs", _costs(rows)))
    out += [("Update step, nanoseconds per weight", _growth(results, sizes)) for sizes in _sizes(results)]
    if results.get("selection"):
        heads = list(dict.fromkeys(key for entry in results["selection"] for key in entry))
        cells = [[_number(entry.get(head)) for head in heads] for entry in results["selection"]]
        out.append(("Selection alone", [heads, *cells]))
    return out


def _steps(rows: Sequence[Results]) -> Grid:
    grid = [["case", "ms", "x bare", "target", "update ms", "x bare", "target"]]
    for row in rows:
        cells = [row["case"]]
        for kind in ("ordinary", "update"):
            cells += _timed(row[kind], row["targets"].get(kind), bare=row["library"] == "optax")
        grid.append(cells)
    return grid


def _timed(timed: Results | None, target: float | None, *, bare: bool) -> list[str]:
    """Milliseconds, ratio with quartiles, target with what was found."""
    if timed is None:
        return [_NONE] * 3
    ms = _number(timed["ms"][1])
    if bare:
        return [ms, "1", _NONE]
    low, median, high = (f"{value:.2f}" for value in timed["ratio"])
    ratio = "spread" if timed["verdict"] == "spread" else f"{median} ({low}..{high})"
    judged = "" if timed["verdict"] == "spread" else timed["verdict"]
    return [ms, ratio, _NONE if target is None else f"{target:g} {judged}".strip()]


def _costs(rows: Sequence[Results]) -> Grid:
    heads = ["case", "first init s", "second", "compile s", "bare's", "temp MiB above bare", "mask bytes/weight"]
    grid = [heads]
    first_bare = next((row for row in rows if row["library"] == "optax"), None)  # it is in every group
    for row in rows:
        if row["library"] == "optax" and row is not first_bare:
            continue
        targets = row["targets"]
        first, second = row.get("init_seconds") or (None, None)
        limit = targets.get("temp_bytes")
        cells = [
            row["case"],
            _judged(first, targets.get("init_seconds")),
            _number(second),
            _judged(row["compile_seconds"], targets.get("compile_seconds")),
            _number(row.get("bare_compile_seconds")),
            _judged(_mebi(row.get("temp_bytes")), _mebi(limit)),
            _judged(row.get("mask_bytes_per_weight"), targets.get("mask_bytes_per_weight")),
        ]
        grid.append(cells)
    return grid


def _sizes(results: Results) -> list[dict[str, int]]:
    """Trees with update steps and their weights, to be compared: by dtype if each has several sizes, else together."""
    timed = {row["tree"] for row in results["rows"] if row["update"]}
    trees = [tree for tree in results["trees"] if tree["name"] in timed]
    by_dtype = [[t for t in trees if t["dtype"] == dtype] for dtype in dict.fromkeys(t["dtype"] for t in trees)]
    groups = by_dtype if all(len(group) > 1 for group in by_dtype) else [trees]
    sizes = [{tree["name"]: tree["weights"] for tree in group} for group in groups]
    return [group for group in sizes if len(set(group.values())) > 1]


def _growth(results: Results, sizes: dict[str, int]) -> Grid:
    """Of each case of ours the update step's time per weight on each tree, and the largest over the smallest."""
    found: dict[str, dict[str, float]] = {}
    for row in results["rows"]:
        if row["tree"] in sizes and row["update"] and row["library"] == "sparsejax":
            found.setdefault(row["case"], {})[row["tree"]] = 1e6 * row["update"]["ms"][1] / sizes[row["tree"]]
    grid = [["case", *sizes, "largest / smallest"]]
    for case, per_tree in found.items():
        ratio = max(per_tree.values()) / min(per_tree.values())
        judged = _judged(ratio, GROWTH) if len(per_tree) > 1 else _NONE
        grid.append([case, *(_number(per_tree.get(name)) for name in sizes), judged])
    return grid


def _judged(value: float | None, limit: float | None) -> str:
    if value is None or limit is None:
        return _number(value)
    return f"{_number(value)} ({_number(limit)} {'met' if value <= limit else 'missed'})"


def _mebi(value: float | None) -> float | None:
    return None if value is None else value / 2**20


def _number(value: Any) -> str:
    """Three digits, and all before the point."""
    if value is None:
        return _NONE
    if not isinstance(value, (int, float)):
        return str(value)
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"

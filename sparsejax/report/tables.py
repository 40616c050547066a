"""The table of a sweep or a run: on the terminal, as text and as Markdown."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from sparsejax.report.collect import Row
from sparsejax.report.statistics import mean_and_interval

_HEADS = (
    "method", "setting", "sparsity", "test accuracy", "validation loss", "range", "95 % CI", "weights kept", "kept",
    "inference FLOPs", "training FLOPs", "seconds",
)  # fmt: skip
_LEFT = ("method", "setting")
_WIDE = 160  # characters; where no terminal cuts the lines


def percent(fraction: float) -> str:
    """`98 %`, `99.5 %`: as many digits as there are."""
    return f"{100 * fraction:.6g} %"


def cells(row: Row) -> dict[str, str]:
    """The texts of one row, by column."""
    mean, half = mean_and_interval(row.scores)
    accuracy, number = row.metric == "accuracy", _number(row)
    kept = sum(row.weights_kept) / len(row.weights_kept) if row.weights_kept else math.nan
    return {
        "method": row.method,
        "setting": row.setting,
        "sparsity": percent(row.sparsity) if row.sparsity else "-",
        "test accuracy": number(mean) if accuracy else "",
        "validation loss": "" if accuracy else number(mean),
        "range": f"{number(min(row.scores))}..{number(max(row.scores))}" if len(row.scores) > 1 else "",
        "95 % CI": "" if half is None else f"± {number(half)}",
        "weights kept": f"{kept:,.0f}",
        "kept": f"{100 * kept / row.weights:.1f} %" if row.weights else "",
        "inference FLOPs": _ratio(row.inference_flops),
        "training FLOPs": _ratio(row.training_flops),
        "seconds": f"{row.seconds:.1f}",
    }


def terminal_table(rows: Sequence[Row]) -> Table:
    """A rich table of 80 columns, unless there is a setting; the interval is left to the Markdown."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    heads = [head for head in _columns(rows) if head != "95 % CI"]
    for head in heads:
        title = head.replace(" ", "\n") if head != "kept" else "\nkept"
        table.add_column(title, justify="left" if head in _LEFT else "right", no_wrap=head != "setting")
    for index, row in enumerate(rows):
        last = index + 1 == len(rows) or rows[index + 1].series != row.series
        texts = cells(row)
        table.add_row(*(texts[head] for head in heads), end_section=last and len(rows) > 6)
    table.caption = f"{_legend(rows)}, {_seeds(rows)}; FLOPs relative to dense"
    table.caption_justify = "left"
    return table


def show(rows: Sequence[Row], console: Console) -> None:
    """Prints the table; where no terminal is, no line is cut."""
    if console.is_terminal:
        console.print(terminal_table(rows))
    else:
        console.file.write(text_table(rows))


def text_table(rows: Sequence[Row]) -> str:
    """The same as plain text, one line a row."""
    text = io.StringIO()
    Console(file=text, width=_WIDE, force_terminal=False, color_system=None).print(terminal_table(rows))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip("\n") + "\n"


def markdown_table(rows: Sequence[Row]) -> str:
    """The same as Markdown, with the 95 % interval (Student's t over the seeds) and every seed's score."""
    heads = _columns(rows)
    sizes = _sizes(rows)
    lines = [[*heads, *sizes, "every seed"]]
    lines.append([":--" if head in _LEFT else "--:" for head in lines[0][:-1]] + [":--"])
    for row in rows:
        texts = cells(row) | {head: show(row) for head, show in sizes.items()}
        seeds = " ".join(map(_number(row), row.scores))
        lines.append([texts[head].replace("|", "\\|") for head in lines[0][:-1]] + [seeds])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    note = f"{_seeds(rows)}; {_legend(rows)}; 95 % CI of its mean: Student's t; FLOPs relative to dense."
    if sizes:
        note += " Zero parameters: of all, masked or not; a mask is one bit a masked weight."
    return f"{table}\n\n{note}\n"


def _sizes(rows: Sequence[Row]) -> dict[str, Callable[[Row], str]]:
    """Columns on what the weights take, as far as the results say it: head -> text of a row."""
    if not any(row.bytes for row in rows):
        return {}
    of = lambda name: lambda row: _bytes(row.bytes[name]) if name in row.bytes else ""
    zeros = lambda row: f"{100 * sum(row.parameter_sparsity) / max(len(row.parameter_sparsity), 1):.1f} %"
    named = {"dense": "bytes dense", "csr": "bytes CSR", "n_m": "bytes N:M"}
    known = {head: of(name) for name, head in named.items() if any(name in row.bytes for row in rows)}
    return {"zero parameters": zeros, "mask bits": lambda row: f"{row.mask_bits:,}"} | known


def _bytes(count: float) -> str:
    """`317 B`, `26.3 kB`, `1.07 MB`: three digits, powers of 1000."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} GB"


def _columns(rows: Sequence[Row]) -> list[str]:
    """Leaves out what says nothing here."""
    out = [head for head in _HEADS if head != "setting" or any(row.setting for row in rows)]
    for metric, head in (("accuracy", "test accuracy"), ("loss", "validation loss")):
        if all(row.metric != metric for row in rows):
            out.remove(head)
    if all(len(row.scores) < 2 for row in rows):
        out = [head for head in out if head not in ("range", "95 % CI")]
    return out


def _seeds(rows: Sequence[Row]) -> str:
    counts = sorted({len(row.scores) for row in rows})
    return f"{'-'.join(map(str, counts))} seed{'' if counts == [1] else 's'} each"


def _number(row: Row) -> Callable[[float], str]:
    """How the row's scores are written: accuracies in %, losses as they are."""
    return (lambda value: f"{100 * value:.2f}") if row.metric == "accuracy" else (lambda value: f"{value:.4f}")


def _legend(rows: Sequence[Row]) -> str:
    names = {"accuracy": "accuracy in %", "loss": "validation loss: lower is better"}
    return ", ".join(text for metric, text in names.items() if any(row.metric == metric for row in rows))


def _ratio(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "?"

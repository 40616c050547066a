"""How a trial of a sweep ended: where that is written, and what is said about it."""

from __future__ import annotations

import contextlib
import traceback
from pathlib import Path
from typing import Any

from sparsejax.files import read_json, write_json
from sparsejax.launch.progress import Display, duration, score
from sparsejax.report import collect


def run_dir(out: Path, name: str) -> Path:
    """The run directory of a trial."""
    return out / "trials" / name


def result_of(out: Path, name: str) -> dict[str, Any] | None:
    """The result of a trial, or None if it is not finished."""
    return read_json(run_dir(out, name) / "result.json")


def append_log(out: Path, name: str, error: Exception) -> Path:
    """Writes the traceback to the trial's log, and returns that."""
    log = run_dir(out, name) / "log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        file.writelines(traceback.format_exception(error))
    return log


def succeeded(out: Path, name: str, display: Display) -> None:
    """A trial is finished."""
    (run_dir(out, name) / "failed.json").unlink(missing_ok=True)
    collect.write_sweep_metrics(out)
    result = result_of(out, name) or {}
    display.finish(name, f"{score(result).partition(' (')[0]} in {duration(result.get('seconds', 0))}")


def failed(out: Path, name: str, how: str, attempts: int, reason: str, display: Display) -> None:
    """A trial has failed for good: `how` (exit code 1, ...) and for what `reason`."""
    log = run_dir(out, name) / "log.txt"
    entry = {"how": how, "attempts": attempts, "reason": reason, "log": str(log)}
    write_json(run_dir(out, name) / "failed.json", entry)
    times = "once" if attempts == 1 else "twice" if attempts == 2 else f"{attempts} times"
    display.finish(name, f"failed {times} ({how}): {reason}; log: {log}")


def last_line(log: Path) -> str:
    """The last line of a log, where a process says what ended it."""
    with contextlib.suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else "no output"
    return "no log"

"""What `--profile` writes and shows: where the time of a run, or of every process of a sweep, went."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from sparsejax.files import read_json, write_json
from sparsejax.launch.terminal import say
from sparsejax.training.profile import PARTS, collected, span

NAME = "profile.json"


@contextlib.contextmanager
def profiled(wanted: bool, workdir: Path, *, since_start: bool = False) -> Iterator[None]:
    """Collects a profile of the block, where wanted, and writes it to `workdir` if there is such a directory."""
    with collected(wanted, since_start=since_start) as profile:
        try:
            yield
        finally:
            if profile and workdir.is_dir():
                write_json(workdir / NAME, profile.as_dict())


@contextlib.contextmanager
def profiled_sweep(wanted: bool, out: Path, workers: int, console: Console) -> Iterator[None]:
    """The same for a sweep; at its end the table of all trials that ran in the block is shown."""
    if not wanted:
        yield
        return
    before = {path: path.stat().st_mtime_ns for path in _profiles(out)}
    with collected(since_start=True) as profile:
        yield
    assert profile is not None
    ran = [path for path in _profiles(out) if before.get(path) != path.stat().st_mtime_ns]
    trials = {path.parent.name: read_json(path) or {} for path in ran}
    # Beside the trials' own time: what their processes, or this one in their place, did nothing in.
    busy = sum(sum(entry["seconds"].values()) for entry in trials.values() if entry)
    own = profile.as_dict()
    idle = max(1, workers) * own["seconds"].pop(TRIALS, 0.0) - busy
    write_json(out / NAME, {"trials": trials, "sweep": own, "workers": workers, "idle": round(idle, 4)})
    show({**trials, "(sweep)": own}, console)
    say(console, f"idle: {max(idle, 0.0):.1f} s of {max(1, workers)} worker(s); {out / NAME} has the numbers")


TRIALS = "trials"  # the part of a sweep's own time that its trials account for


def while_trials_run() -> contextlib.AbstractContextManager[None]:
    """The span in which a sweep waits for its trials."""
    return span(TRIALS)


def _profiles(out: Path) -> list[Path]:
    return sorted((out / "trials").glob(f"*/{NAME}"))


def show(profiles: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """One row a run, then the total and its shares; seconds of wall-clock time."""
    rows = [(name, entry.get("seconds", {}), entry.get("cache", {})) for name, entry in profiles.items()]
    total = {part: sum(seconds.get(part, 0.0) for _, seconds, _ in rows) for part in PARTS}
    everything = sum(total.values()) or 1.0
    used = [part for part in PARTS if total[part] >= 0.0005]
    lines = [["seconds", *used, "total", "cache hits", "misses"]]
    for name, seconds, cache in rows:
        cells = [f"{seconds.get(part, 0.0):.2f}" for part in used]
        cache_cells = [str(cache.get(kind, 0)) for kind in ("hits", "misses")]
        lines.append([name, *cells, f"{sum(seconds.values()):.2f}", *cache_cells])
    if len(rows) > 1:
        hits, misses = (str(sum(cache.get(kind, 0) for *_, cache in rows)) for kind in ("hits", "misses"))
        lines.append(["total", *(f"{total[part]:.2f}" for part in used), f"{everything:.2f}", hits, misses])
    lines.append(["share", *(f"{100 * total[part] / everything:.1f} %" for part in used), "", "", ""])
    for line in _aligned(lines):
        say(console, line)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    first = lambda row: f"{row[0]:<{widths[0]}}"
    return ["  ".join([first(row), *(f"{c:>{w}}" for c, w in zip(row[1:], widths[1:]))]).rstrip() for row in rows]

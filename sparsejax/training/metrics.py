"""metrics.jsonl: one JSON object a line, in order of step, the same bytes whatever interrupted the run."""

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsejax.files import write_atomic
from sparsejax.training.writers import Writer

Record = dict[str, Any]


def read_metrics(path: Path) -> list[Record]:
    """The records of a metrics.jsonl; a last line that is cut short is left out."""
    return [record for record, _ in _lines(path)]


def _lines(path: Path) -> list[tuple[Record, str]]:
    if not path.exists():
        return []
    out = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            record = json.loads(line) if line.endswith("\n") else None
        except ValueError:
            record = None
        if not isinstance(record, dict) or "step" not in record:
            break  # what follows a damaged line is not trusted either
        out.append((record, line))
    return out


class MetricsWriter:
    """Appends records to metrics.jsonl, and keeps them for the result.

    On opening, the file is cut back to the records at or before `step`: what a killed run wrote after its last
    checkpoint is written again, bit for bit. `also` are writers that get every new record too.
    """

    def __init__(self, path: Path, step: int, also: Sequence[Writer] = ()):
        lines = _lines(path)
        kept = [(record, line) for record, line in lines if record["step"] <= step] if step > 0 else []
        if step > 0 and (not kept or kept[-1][0]["step"] < step):
            warnings.warn(f"{path}: records up to step {step} are missing or damaged", RuntimeWarning, stacklevel=2)
        write_atomic(path, "".join(line for _, line in kept))
        self.records = [record for record, _ in kept]
        self._also = list(also)
        self._file = open(path, "a")  # noqa: SIM115 - closed by close()

    def write(self, record: Record) -> None:
        """Appends one record; it is visible to readers at once."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        self.records.append(record)
        self.pass_on(record)

    def pass_on(self, record: Record) -> None:
        """Gives a record that does not belong in metrics.jsonl to the other writers."""
        for writer in self._also:
            writer.write(record)

    def sync(self) -> None:
        """Makes what was written survive a power cut; called before the checkpoint that relies on it."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file and the other writers."""
        self._file.close()
        for writer in self._also:
            writer.close()

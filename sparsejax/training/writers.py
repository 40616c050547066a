"""Where else records go: TensorBoard and Weights & Biases, behind the two methods of the writer of metrics.jsonl."""

import hashlib
import importlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sparsejax.training.errors import ConfigError

Record = Mapping[str, Any]
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


class Writer(Protocol):
    """What takes records."""

    def write(self, record: Record) -> None:
        """Takes one record of metrics.jsonl or timing.jsonl."""

    def close(self) -> None:
        """Whatever was written is where it belongs."""


def check_installed(names: Sequence[str]) -> None:
    """Raises ConfigError where the package of a writer is absent."""
    for name in names:
        package = _PACKAGES[name]
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"log: {name!r} needs the package {package}: pip install 'sparsejax[log]'")


def open_writers(names: Sequence[str], workdir: Path, config: Mapping[str, Any], step: int) -> list[Writer]:
    """The writers of a config's `log`, for a run that goes on at `step`."""
    made: list[Writer] = []
    for name in names:
        made.append(TensorBoard(workdir, step) if name == "tensorboard" else Wandb(workdir, config))
    return made


class TensorBoard:
    """Event files in the run's directory; what a killed run wrote after its last checkpoint is hidden."""

    def __init__(self, workdir: Path, step: int):
        module = importlib.import_module("tensorboardX")
        self._writer = module.SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, record: Record) -> None:
        for tag, value in scalars(record):
            self._writer.add_scalar(tag, value, record["step"])

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run of Weights & Biases with the directory's name; the same directory goes on with the same run."""

    def __init__(self, workdir: Path, config: Mapping[str, Any]):
        module = importlib.import_module("wandb")
        place = workdir.resolve()
        name = hashlib.sha256(str(place).encode()).hexdigest()[:16]
        self._run = module.init(
            dir=str(place), id=name, name=place.name, project="sparsejax", config=dict(config), resume="allow"
        )

    def write(self, record: Record) -> None:
        # The step is a value like others: of their own steps a resumed run could not write one again.
        self._run.log(dict(scalars(record)) | {"step": record["step"]})

    def close(self) -> None:
        self._run.finish()


def scalars(record: Record) -> Iterator[tuple[str, float]]:
    """(tag, value) of every number in a record: means over the seeds, and each seed where there are several.

    Example:
      >>> list(scalars({"kind": "eval", "step": 5, "loss": [1.0, 2.0]}))
      [('eval/loss', 1.5), ('eval/loss/0', 1.0), ('eval/loss/1', 2.0)]
    """
    for field, value in record.items():
        if field in ("kind", "step"):
            continue
        parts = value.items() if isinstance(value, Mapping) else [("", value)]
        for part, numbers in parts:
            yield from _numbers("/".join(filter(None, (record["kind"], field, part))), numbers)


def _numbers(tag: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, int | float):
        yield tag, value
    elif isinstance(value, list) and value and all(isinstance(each, int | float) for each in value):
        yield tag, sum(value) / len(value)
        if len(value) > 1:
            yield from ((f"{tag}/{index}", each) for index, each in enumerate(value))

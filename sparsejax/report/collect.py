"""Reads run directories and sweeps, complete or not, into plain tuples."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sparsejax.files import read_json, write_atomic
from sparsejax.launch.trials import sweep_config


class Run(NamedTuple):
    """One run directory.

    Attributes:
      name: of the directory.
      path: the directory.
      overrides: what the sweep set for it; empty for a run of its own.
      config: config.json, or {}.
      result: result.json, or None while it is not finished.
      records: metrics.jsonl, as far as it is whole.
      failure: failed.json, or None.
    """

    name: str
    path: Path
    overrides: dict[str, Any]
    config: dict[str, Any]
    result: dict[str, Any] | None
    records: list[dict[str, Any]]
    failure: dict[str, Any] | None


class Row(NamedTuple):
    """One line of the table: all seeds of one setting.

    Attributes:
      method: name of the method.
      sparsity: fraction of zeros; 0 for dense.
      setting: other fields that the sweep varied, as "field=value, ..."; empty if there are none.
      metric: what `scores` are: "accuracy" (fractions; higher is better) or "loss" (lower is better).
      scores: on the test set, one for each seed.
      weights_kept: one for each seed.
      weights: how many there are.
      density: layer -> fractions, one for each seed.
      inference_flops, training_flops: relative to dense.
      seconds: of all its runs.
      erk: layer -> density of ERK at this sparsity; empty where it is not known.
      parameter_sparsity: of all parameters, masked or not, the share that is zero; one for each seed.
      mask_bits: a bit for each weight that has a mask.
      bytes: of all parameters, by format (`flops.bytes_of`); mean over the seeds.
    """

    method: str
    sparsity: float
    setting: str
    metric: str
    scores: list[float]
    weights_kept: list[float]
    weights: int
    density: dict[str, list[float]]
    inference_flops: float
    training_flops: float
    seconds: float
    erk: dict[str, float]
    parameter_sparsity: list[float]
    mask_bits: int
    bytes: dict[str, float]

    @property
    def series(self) -> str:
        """What has one colour in the plots: the method, with its setting."""
        return f"{self.method} {self.setting}".strip()


def is_run(path: Path) -> bool:
    """Whether `path` is a run directory."""
    return sweep_config(path) is None and any(
        (path / n).is_file() for n in ("config.json", "result.json", "metrics.jsonl")
    )


def read_run(path: Path, name: str = "", overrides: Mapping[str, Any] | None = None) -> Run:
    """Reads one run directory; whatever is absent is empty."""
    return Run(
        name or path.name,
        path,
        dict(overrides or {}),
        read_json(path / "config.json") or {},
        read_json(path / "result.json"),
        read_records(path / "metrics.jsonl"),
        read_json(path / "failed.json"),
    )


def read_sweep(path: Path) -> list[Run]:
    """The runs of a sweep in its order, also those that have not begun; then others in its directory."""
    entries = (sweep_config(path) or {"trials": []})["trials"]
    runs = [read_run(path / "trials" / e["name"], e["name"], e.get("overrides")) for e in entries]
    known = {run.name for run in runs}
    others = sorted(p for p in (path / "trials").glob("[!.]*") if p.is_dir() and p.name not in known)
    return runs + [read_run(p) for p in others]


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, without lines that do not parse (a run at work is writing the last)."""
    records = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def state(run: Run) -> str:
    """One line on a run that is not finished; empty for a finished one."""
    if run.result is not None:
        return ""
    if run.failure is not None:
        return f"failed ({run.failure.get('how')}): {run.failure.get('reason')}; log: {run.path / 'log.txt'}"
    step = max((record.get("step", 0) for record in run.records), default=None)
    return "missing" if step is None else f"unfinished, at step {step:,}"


def rows(runs: Iterable[Run]) -> list[Row]:
    """The finished runs as rows: dense first, then the methods in the order of the sweep, then by sparsity.

    Runs that differ in `seeds` alone are one row.
    """
    groups: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for run in runs:
        if run.result is not None:
            groups.setdefault(_key(run), []).append(run.result)
    methods = list(dict.fromkeys(method for method, _, _ in groups))
    order = sorted(groups, key=lambda key: (key[0] != "dense", methods.index(key[0]), key[1]))
    return [_row(*key, groups[key]) for key in order]


def _key(run: Run) -> tuple[str, float, str]:
    result = run.result or {}
    method = str(result.get("method", "?"))
    sparsity = 0.0 if method == "dense" else float(result.get("sparsity") or 0)
    others = {field: value for field, value in run.overrides.items() if field not in ("method", "sparsity", "seeds")}
    return (
        method,
        sparsity,
        ", ".join(f"{field.rsplit('.', 1)[-1]}={value}" for field, value in others.items()),
    )


def _row(method: str, sparsity: float, setting: str, results: Sequence[Mapping[str, Any]]) -> Row:
    def joined(field: str) -> list[float]:
        return [value for result in results for value in result.get(field) or []]

    metric = str(results[0].get("metric") or "accuracy")
    layers = dict.fromkeys(layer for result in results for layer in result.get("density") or {})
    return Row(
        method,
        sparsity,
        setting,
        metric,
        joined(metric),
        joined("weights_kept"),
        int(results[0].get("weights") or 0),
        {layer: [v for r in results for v in (r.get("density") or {}).get(layer) or []] for layer in layers},
        _mean([_number(r.get("inference_flops")) for r in results]),
        _mean([_number(r.get("training_flops")) for r in results]),
        sum(_number(r.get("seconds")) for r in results),
        dict(results[0].get("density_erk") or {}),
        joined("parameter_sparsity"),
        int(results[0].get("mask_bits") or 0),
        _mean_bytes([r.get("bytes") or {} for r in results]),
    )


def _mean_bytes(sizes: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """format -> mean over all seeds; formats that not every result has are left out."""
    names = [name for name in sizes[0] if all(size.get(name) for size in sizes)]
    return {name: _mean([value for size in sizes for value in size[name]]) for name in names}


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def write_sweep_metrics(path: Path) -> None:
    """SWEEP/metrics.jsonl: the result of each finished trial on a line, in the order of the sweep."""
    finished = [{"trial": run.name, **run.result} for run in read_sweep(path) if run.result is not None]
    write_atomic(path / "metrics.jsonl", "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in finished))

"""What a file of results says about where and how they were measured."""

from __future__ import annotations

import datetime
import os
import platform
import re
from pathlib import Path
from typing import Any

import jax
import jaxlib
import optax

import sparsejax
from sparsejax.report.speed import KIND, VERSION


def heading(command: str, rounds: int) -> dict[str, Any]:
    """The fields of a result file that say where, when and how; its rows are still to come."""
    return {
        "kind": KIND,
        "version": VERSION,
        "machine": machine(),
        "device": device_name(),
        "platform": jax.default_backend(),
        "cores": cores(),
        "python": platform.python_version(),
        "packages": {package.__name__: package.__version__ for package in (jax, jaxlib, optax, sparsejax)},
        "date": datetime.date.today().isoformat(),
        "command": command,
        "load_average": round(os.getloadavg()[0], 2),
        "rounds": rounds,
        "trees": [],
        "rows": [],
        "left_out": [],
    }


def default_path(results: dict[str, Any], complete: bool) -> Path:
    """results/<machine>-<date>.json; a run of some rows only does not overwrite one of all."""
    name = f"{results['machine']}-{results['date']}{'' if complete else '-part'}.json"
    return Path(__file__).parent / "results" / name


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name() -> str:
    """The accelerator's model, or the processor's."""
    if jax.default_backend() != "cpu":
        return jax.devices()[0].device_kind
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def machine() -> str:
    """A short name for files: model and number of cores."""
    words = re.sub(r"\((r|tm)\)|@|\b(cpu|processor|with)\b", " ", device_name().lower())
    count = f"{cores()}-cores" if jax.default_backend() == "cpu" else ""
    return "-".join(re.findall(r"[a-z0-9.]+", f"{words} {count}"))

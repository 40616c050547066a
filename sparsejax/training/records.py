"""What a chunk reports, as records of metrics.jsonl; the check that a loss is finite; the result of a run."""

import datetime
import itertools
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np

from sparsejax import flops
from sparsejax.training.best import best_evaluation
from sparsejax.training.errors import NonFiniteLoss
from sparsejax.training.methods import dense_gradient_every
from sparsejax.training.metrics import Record


def floats(values: Any) -> list[float]:
    """float32 values as the shortest decimals that read back the same."""
    return [float(str(value)) for value in np.asarray(values, np.float32)]


def train_record(step: int, epoch: float, report: Mapping[str, Any], skipped: int = 0) -> Record:
    """{"kind": "train", ...}: the mean loss of the chunk, per seed, and the learning rate of its last step.

    "skipped_examples", where any were: the damaged ones that all seeds together have met up to here.
    """
    lr = float(str(np.float32(report["lr"])))
    record = {"kind": "train", "step": step, "epoch": epoch, "loss": floats(report["loss"]), "lr": lr}
    return record | ({"skipped_examples": skipped} if skipped else {})


def eval_record(step: int, epoch: float, scores: Mapping[str, list[float]], skipped: int = 0) -> Record:
    """{"kind": "eval", ...}: what the task says of the whole test set, per seed; and what of it was damaged."""
    record = {"kind": "eval", "step": step, "epoch": epoch, "split": "test", **scores}
    return record | ({"skipped_examples": skipped} if skipped else {})


def masks_record(step: int, report: Mapping[str, Any], sizes: Mapping[str, int]) -> Record:
    """{"kind": "masks", ...}: densities, what grew and was dropped, exploration R_s (the fraction ever active).

    Args:
      step: after how many training steps.
      report: what `programs.mask_report` counted, on the host.
      sizes: path -> number of weights of one seed.
    """
    total = sum(sizes.values())
    fraction = lambda counts: [int(count) / total for count in np.sum([counts[path] for path in sizes], axis=0)]
    return {
        "kind": "masks",
        "step": step,
        "density": {path: [int(count) / sizes[path] for count in report["kept"][path]] for path in sizes},
        "grown": {path: [int(count) for count in report["grown"][path]] for path in sizes},
        "dropped": {path: [int(count) for count in report["dropped"][path]] for path in sizes},
        "exploration": fraction(report["ever"]),
        "skipped": [int(count) for count in report["skipped"]],
        "total_density": (density := fraction(report["kept"])),
        "sparsity": [1 - kept for kept in density],
    }


def changed(report: Mapping[str, Any]) -> bool:
    """Whether a chunk changed any mask of any seed."""
    return any(np.any(count) for kind in ("grown", "dropped") for count in report.get(kind, {}).values())


def check_finite(report: Mapping[str, Any], step: int, seeds: Sequence[int]) -> None:
    """Raises NonFiniteLoss if a loss of the chunk, or a parameter at its end, is not finite."""
    for index, seed in enumerate(seeds):
        bad_step = int(report["bad"]["step"][index])
        if bad_step >= 0:
            value = report["bad"]["loss"][index]
            raise NonFiniteLoss(f"loss is {value} at step {bad_step} (seed {seed}); the last good checkpoint is kept")
        if not report["finite"][index]:
            raise NonFiniteLoss(
                f"a parameter is not finite at step {step} (seed {seed}); the last good checkpoint is kept"
            )


def make_result(
    config: Mapping[str, Any],
    records: Sequence[Record],
    *,
    task: str,
    metric: str,
    steps: int,
    total: int,
    sizes: Mapping[str, int],
    layers: Mapping[str, int],
    skipped: int = 0,
) -> dict[str, Any]:
    """The content of result.json, without the time taken.

    Args:
      config: the resolved config.
      records: all records of metrics.jsonl.
      task, metric: its name, and which of its scores results are judged by.
      steps: training steps of the run; total: as many as it would have without early stopping.
      sizes: path -> number of weights, of the leaves that are (or, in a dense run, could be) masked.
      layers: path -> dense forward FLOPs, from `flops.layer_flops`.
      skipped: damaged examples that were left out before training.
    """
    final = next(r for r in reversed(records) if r["kind"] == "eval")
    masks = [r for r in records if r["kind"] == "masks"]
    ones = [1.0] * len(config["seeds"])
    density = masks[-1]["density"] if masks else dict.fromkeys(sizes, ones)
    kept = [round(sum(density[path][index] * size for path, size in sizes.items())) for index in range(len(ones))]
    return {
        "method": config["method"],
        "sparsity": config["sparsity"],
        "model": config["model"],
        "dataset": config["dataset"],
        "seeds": config["seeds"],
        "steps": steps,
        **_how_it_went(config, records, metric, steps < total),
        "task": task,
        "metric": metric,
        **{name: values for name, values in final.items() if isinstance(values, list)},
        **_left_out(records, skipped),
        "weights_kept": kept,
        "weights": sum(sizes.values()),
        "density": density,
        "inference_flops": flops.relative_inference_flops(layers, _mean_density(density)),
        "training_flops": relative_training_flops(config, masks, layers, steps),
        "date": datetime.date.today().isoformat(),
        "versions": _versions(),
        "device": _device(),
    }


def _how_it_went(config: Mapping[str, Any], records: Sequence[Record], metric: str, early: bool) -> dict[str, Any]:
    """Whether it stopped early, where it could; the best evaluation, where its checkpoint was kept."""
    out: dict[str, Any] = {"stopped_early": early} if config["patience"] else {}
    if config["keep_best"] and (best := best_evaluation(records, metric)):
        out["best"] = {"step": best["step"], metric: best[metric]}
    return out


def _left_out(records: Sequence[Record], before: int) -> dict[str, Any]:
    """Damaged examples: found at the start, met in all epochs of training, met in the last evaluation; if any were."""
    last = {record["kind"]: record.get("skipped_examples", 0) for record in records}
    counts = {"at_start": before, "training": last.get("train", 0), "test": last.get("eval", 0)}
    return {"skipped_examples": counts} if any(counts.values()) else {}


def _mean_density(density: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {path: sum(per_seed) / len(per_seed) for path, per_seed in density.items()}


def relative_training_flops(
    config: Mapping[str, Any], masks: Sequence[Record], layers: Mapping[str, int], steps: int
) -> float:
    """Training FLOPs over those of the dense net, with the densities that the run really had.

    The densities of a record count from its step on, as the chunk before it ended with the update.
    """
    if not masks:
        return 1.0
    dense = sum(layers.values())
    starts = [record["step"] for record in masks] + [steps]
    durations = [after - start for start, after in itertools.pairwise(starts)]
    forward = [flops.inference_flops(layers, _mean_density(record["density"])) for record in masks]
    mean = flops.gradual_training(forward, durations)
    every = dense_gradient_every(config)
    if every == 1:
        mean = flops.dense_gradient_training(mean / 3, dense)
    elif every:
        mean = flops.rigl_training(mean / 3, dense, every)
    return mean / flops.dense_training(dense)


def _versions() -> dict[str, str]:
    packages = {name: metadata.version(name) for name in ("jax", "flax", "optax")}
    try:
        own = metadata.version("sparsejax")
    except metadata.PackageNotFoundError:
        own = "not installed"
    return {"python": platform.python_version(), **packages, "sparsejax": own}


def _device() -> str:
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{device.device_kind} x{len(jax.devices())}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"cpu x{cores}"

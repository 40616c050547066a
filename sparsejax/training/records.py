"""What a chunk reports, as records of metrics.jsonl; the check that a loss is finite; the result of a run."""

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np

from sparsejax import flops
from sparsejax.topology import histogram
from sparsejax.training.accounting import mean_density, relative_training_flops
from sparsejax.training.best import best_evaluation
from sparsejax.training.errors import NonFiniteLoss
from sparsejax.training.evaluation import UNITS
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
    """{"kind": "masks", ...}: what the masks look like and how they moved since the record before it; lists over seeds.

    By layer: "density", "grown", "dropped", "flips_from_start" (entries that differ from the masks at step 0),
    "explored" (R_s, the fraction ever active), "fan_in_min", "fan_in_mean", "fan_in_max", "no_input" and "no_output"
    (shares of a layer's neurons without any weight into them, and of its inputs without any out). Over all layers:
    "sad" = |m - m_before|_1, "sad_of_active" (over the weights kept), "flip_rate" and "flip_rate_from_start" (over all
    weights), "exploration", "collapsed" (layers that keep nothing), "total_density", "sparsity".

    Args:
      step: after how many training steps.
      report: what `programs.mask_report` counted, on the host.
      sizes: path -> number of weights of one seed.
    """
    total = sum(sizes.values())
    summed = lambda counts: np.sum([counts[path] for path in sizes], axis=0)
    fraction = lambda counts: [int(count) / total for count in summed(counts)]
    whole = lambda counts: {path: [int(count) for count in counts[path]] for path in sizes}
    share = lambda counts: {path: [int(count) / sizes[path] for count in counts[path]] for path in sizes}
    of_fans = lambda name, fn: {path: [float(x) for x in fn(np.asarray(report[name][path]))] for path in sizes}
    sad, kept = summed(report["grown"]) + summed(report["dropped"]), summed(report["kept"])
    return {
        "kind": "masks",
        "step": step,
        "density": share(report["kept"]),
        "grown": whole(report["grown"]),
        "dropped": whole(report["dropped"]),
        "flips_from_start": whole(report["flipped"]),
        "explored": share(report["ever"]),
        "fan_in_min": of_fans("fan_in", lambda x: x.min(1)),
        "fan_in_mean": of_fans("fan_in", lambda x: x.mean(1)),
        "fan_in_max": of_fans("fan_in", lambda x: x.max(1)),
        "no_input": of_fans("fan_in", lambda x: (x == 0).mean(1)),
        "no_output": of_fans("fan_out", lambda x: (x == 0).mean(1)),
        "sad": [int(count) for count in sad],
        "sad_of_active": [int(count) / max(int(n), 1) for count, n in zip(sad, kept)],
        "flip_rate": [int(count) / total for count in sad],
        "flip_rate_from_start": fraction(report["flipped"]),
        "collapsed": [int(count) for count in np.sum([report["kept"][path] == 0 for path in sizes], axis=0)],
        "exploration": fraction(report["ever"]),
        "skipped": [int(count) for count in report["skipped"]],
        "total_density": (density := fraction(report["kept"])),
        "sparsity": [1 - kept for kept in density],
    }


def topology_record(
    step: int,
    epoch: float,
    report: Mapping[str, Any],
    sums: Mapping[str, Any],
    on_path: Mapping[str, Any] | None,
    sizes: Mapping[str, int],
    *,
    places: int = 0,
) -> Record:
    """{"kind": "topology", ...} of an evaluation: gradient norms, dead units, paths; lists over the seeds.

    "gradient_active", "gradient_inactive": the norm, over the weights of a layer that are kept and over the others, of
    the gradient at the last training step, by layer; "gradient_norm_active", "gradient_norm_inactive" of all layers.
    "dead_units": of each ReLU the share of units that are 0 for all of the test set. "effective_density" and
    "effective_sparsity": of the weights that lie on a path from the input to the output, where that is logged, and
    "kept_off_path", the share of the kept weights that do not. In a
    run's last record: "fan_in_histogram", by layer {"edges", "neurons": one list a seed}, and, of a net whose first
    layer is dense on what it sees, "input_connections": one list a seed, a number for each input.

    Args:
      step, epoch: of the evaluation.
      report: of the chunk that ended there, on the host.
      sums: of the evaluation, on the host.
      on_path: what `Programs.on_path` counted; None where it is not logged.
      sizes: path -> number of weights of one seed.
      places: numbers in an input, at the last evaluation; 0 before it.
    """
    record: Record = {"kind": "topology", "step": step, "epoch": epoch}
    for kind, norms in report["gradients"].items():
        if norms:
            record[f"gradient_{kind}"] = {path: floats(norm) for path, norm in norms.items()}
            squares = np.sum([np.square(norm, dtype=np.float64) for norm in norms.values()], axis=0)
            record[f"gradient_norm_{kind}"] = floats(np.sqrt(squares))
    units = {name.removeprefix(UNITS): counts for name, counts in sums.items() if name.startswith(UNITS)}
    if units:
        record["dead_units"] = {name: [float(x) for x in (n == 0).mean(-1)] for name, n in units.items()}
    if on_path:
        total = sum(sizes.values())
        record["effective_density"] = {path: [int(n) / sizes[path] for n in on_path[path]] for path in sizes}
        kept = np.sum([on_path[path] for path in sizes], axis=0)
        record["effective_sparsity"] = [1 - int(count) / total for count in kept]
        all_kept = np.sum([report["masks"]["kept"][path] for path in sizes], axis=0)
        record["kept_off_path"] = [1 - int(count) / max(int(whole), 1) for count, whole in zip(kept, all_kept)]
    fans = report["masks"].get("fan_in", {}) if places else {}
    if fans:
        record["fan_in_histogram"] = {path: _histograms(fans[path]) for path in sizes}
        first = [path for path in sizes if report["masks"]["fan_out"][path].shape[-1] == places]
        if first and places <= _MOST_PLACES:
            record["input_connections"] = report["masks"]["fan_out"][first[0]].tolist()
    return record


_MOST_PLACES = 1 << 12


def _histograms(fans: np.ndarray) -> dict[str, Any]:
    """One histogram of each seed's fan-ins, (S, neurons), over the same bins."""
    edges, _ = histogram(fans)
    return {"edges": edges, "neurons": [np.histogram(own, edges)[0].tolist() for own in fans]}


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
    stored: Mapping[str, Any],
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
      stored: what `storage` says of the last masks.
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
        **stored,
        "inference_flops": flops.relative_inference_flops(layers, mean_density(density)),
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

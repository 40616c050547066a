"""Sparse pre-training, dense fine-tuning."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sparsejax.training.config import resolve
from sparsejax.training.errors import ConfigError
from sparsejax.training.loop import Progress
from sparsejax.training.procedures.pruning import check_fields
from sparsejax.training.procedures.rounds import Round, ended, opened
from sparsejax.training.start import Start
from sparsejax.training.trial import Trial


def spdf(
    config: ConfigDict | Mapping[str, Any],
    workdir: str | Path,
    *,
    finetune: Mapping[str, Any] | None = None,
    on_progress: Progress | None = None,
) -> Iterator[Round]:
    """SPDF: pre-trains under sparse masks, then fine-tunes the dense net: the mask off, its zeros trained from 0.

    Args:
      config: of pre-training; the paper's method is "static" with uniform random masks (`method_args.distribution`),
        any other is allowed.
      workdir: the procedure's directory; called again, it goes on there, with the same bits.
      finetune: fields of the config that are other in fine-tuning: data, rate, epochs. The optimizer is fresh, and the
        schedules begin anew.
      on_progress: as `train`.

    Yields:
      `1_sparse`, then `2_dense`.

    Raises:
      ConfigError: an argument or the config is wrong, or the directory belongs to something else.

    Example:
      >>> config = {"model_args": {"features": (16,)}, "method": "static", "sparsity": 0.75, "epochs": 1}
      >>> [round.name for round in spdf(config, "runs/spdf", finetune={"learning_rate": 1e-4})]
      ['1_sparse', '2_dense']

    Source: Thangarasa et al. 2023, SPDF, arXiv:2303.10464.
    """
    changed = check_fields("finetune", finetune)
    for field in ("method", "sparsity", "method_args"):
        if field in changed:
            raise ConfigError(f"finetune: {field}={changed[field]!r}; fine-tuning is dense")

    def check(trial: Trial) -> None:
        if trial.config["method"] == "dense":
            raise ConfigError("method: 'dense' has no sparse pre-training; the paper's is 'static'")
        resolve(trial.config | changed)

    with opened("spdf", config, workdir, {"finetune": changed}, on_progress, method=None, check=check) as work:
        dense = work.dense(**changed)
        sparse = work.run("1_sparse", resolve(work.base), stage="sparse")
        yield sparse
        found = ended(sparse.workdir)
        yield work.run("2_dense", dense, start=Start(found.params, found.model_state), stage="dense")

"""Pruning with distillation: a dense teacher, then a pruned student that learns from it too."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sparsejax.training.config import resolve
from sparsejax.training.errors import ConfigError
from sparsejax.training.loop import Progress
from sparsejax.training.procedures.pruning import check_fields, check_number
from sparsejax.training.procedures.rounds import Round, ended, opened
from sparsejax.training.start import Start
from sparsejax.training.trial import Trial


def distilled_pruning(
    config: ConfigDict | Mapping[str, Any],
    workdir: str | Path,
    *,
    alpha: float = 0.5,
    temperature: float = 2.0,
    teacher: Mapping[str, Any] | None = None,
    from_teacher: bool = False,
    on_progress: Progress | None = None,
) -> Iterator[Round]:
    """Trains a dense teacher, then the config's method with the teacher's logits as a second target.

    The student's loss is (1 - a) L + a T^2 KL(teacher at temperature T || student at temperature T).

    Args:
      config: of the student: any method but "dense".
      workdir: the procedure's directory; called again, it goes on there, with the same bits.
      alpha, temperature: a in [0, 1] and T > 0.
      teacher: fields of the config that are other for the teacher, such as {"epochs": 20}; its seeds teach in turn.
      from_teacher: whether the student begins at the teacher's weights (which need its model and its seeds).
      on_progress: as `train`.

    Yields:
      `1_teacher`, then `2_student`.

    Raises:
      ConfigError: an argument or the config is wrong, or the directory belongs to something else.

    Example:
      >>> config = {"model_args": {"features": (16,)}, "method": "static", "sparsity": 0.8, "epochs": 1}
      >>> [round.name for round in distilled_pruning(config, "runs/distilled")]
      ['1_teacher', '2_student']

    Source: Hinton, Vinyals, Dean 2015, arXiv:1503.02531.
    """
    check_number("alpha", alpha, lambda v: 0 <= v <= 1, "a number in [0, 1]")
    check_number("temperature", temperature, lambda v: v > 0, "a number > 0")
    if not isinstance(from_teacher, bool):
        raise ConfigError(f"from_teacher: {from_teacher!r} is not true or false")
    arguments: dict[str, Any] = {
        "alpha": alpha, "temperature": temperature, "teacher": check_fields("teacher", teacher),
        "from_teacher": from_teacher,
    }  # fmt: skip

    def check(trial: Trial) -> None:
        if trial.config["method"] == "dense":
            raise ConfigError("method: 'dense' prunes nothing; name the student's method")
        if trial.config["distill"]:
            raise ConfigError("distill: this procedure trains the teacher itself; leave it out")
        resolve(trial.config | arguments["teacher"])

    with opened("distilled", config, workdir, arguments, on_progress, method=None, check=check) as work:
        first = work.run("1_teacher", work.dense(**arguments["teacher"]), role="teacher")
        yield first
        how = {"workdir": str(first.workdir), "alpha": alpha, "temperature": temperature}
        start = Start(*ended(first.workdir)[:2]) if from_teacher else None
        yield work.run("2_student", resolve(work.base | {"distill": how}), start=start, role="student")

"""Sparse model soups: prune, retrain copies that differ in one thing, go on from their average."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from sparsejax.masks import map_masks
from sparsejax.training.config import resolve
from sparsejax.training.errors import ConfigError
from sparsejax.training.loop import Progress
from sparsejax.training.procedures.averaging import greedy, mean_of, recalibrator, scorer
from sparsejax.training.procedures.pruning import check_fields, check_number, draws, full_masks, prune_to, totals
from sparsejax.training.procedures.rounds import Ended, Round, Rounds, ended, opened
from sparsejax.training.start import Start
from sparsejax.training.trial import Trial, prepare

VARIED = ("seed", "weight_decay", "learning_rate", "epochs")


def model_soup(
    config: ConfigDict | Mapping[str, Any],
    workdir: str | Path,
    *,
    phases: int = 3,
    members: int = 3,
    vary: str = "seed",
    values: Sequence[float] | None = None,
    retrain: Mapping[str, Any] | None = None,
    average: str = "uniform",
    masks: str = "shared",
    batches: int = 100,
    on_progress: Progress | None = None,
) -> Iterator[Round]:
    """Sparse model soups: each phase prunes by global |w|, retrains m copies under one mask, and averages them.

    With sparsity S after n phases, each takes p = 1 - (1 - S)^(1/n) of what is left. The copies of a phase have the
    same masks, so their average is as sparse as they are; its BatchNorm statistics are taken anew, and the next phase
    starts from it.

    Args:
      config: of the dense net, and of retraining but for `retrain`; its `sparsity` is S. A seed of the config is an
        experiment of its own: a dense net, its members, its soup.
      workdir: the procedure's directory; called again, it goes on there, with the same bits.
      phases, members: n and m.
      vary: what the members differ in: "seed" (the order of the data and all that is random), "weight_decay",
        "learning_rate" or "epochs".
      values: of the members, one each, unless it is the seed.
      retrain: fields of the config that are other in retraining, such as {"epochs": 3, "learning_rate": 1e-3}.
      average: "uniform" or "greedy" (by the score on the config's test set: give `data.validation`).
      masks: "shared"; or "own", the control: every member goes on from itself and prunes by its own weights, and only
        at the end the members, whose masks differ, are averaged, and that is pruned to S once more.
      batches: of training, for the statistics of BatchNorm.
      on_progress: as `train`.

    Yields:
      each run when it is finished: `dense`, then `phase_1_member_0`, ..., `phase_1_soup` (nothing is trained there: an
      average, evaluated), ...; of the control, at the end, `union` and `pruned_union`.

    Raises:
      ConfigError: an argument or the config is wrong, or the directory belongs to something else.

    Example:
      >>> config = {"model_args": {"features": (16,)}, "epochs": 1, "seeds": 2, "sparsity": 0.8}
      >>> [round.name for round in model_soup(config, "runs/soup", phases=1, members=2)]
      ['dense', 'phase_1_member_0', 'phase_1_member_1', 'phase_1_soup']

    Source: Zimmer, Spiegel, Pokutta 2023, Sparse Model Soups, arXiv:2306.16788.
    """
    check_number("phases", phases, lambda v: v >= 1, "an integer >= 1", whole=True)
    check_number("members", members, lambda v: v >= 2, "an integer >= 2", whole=True)
    check_number("batches", batches, lambda v: v >= 1, "an integer >= 1", whole=True)
    varied = _checked_values(vary, values, members)
    for name, value, known in (("average", average, ("uniform", "greedy")), ("masks", masks, ("shared", "own"))):
        if value not in known:
            raise ConfigError(f"{name}: {value!r} is not one of {', '.join(known)}")
    arguments: dict[str, Any] = {
        "phases": phases, "members": members, "vary": vary, "values": varied,
        "retrain": check_fields("retrain", retrain), "average": average, "masks": masks, "batches": batches,
    }  # fmt: skip

    def check(trial: Trial) -> None:
        if not trial.config["sparsity"] > 0:
            raise ConfigError(f"sparsity: {trial.config['sparsity']} leaves a soup nothing to prune")
        for value in varied or ():
            resolve(trial.config | arguments["retrain"] | {vary: value})
        resolve(trial.config | arguments["retrain"])

    with opened("soup", config, workdir, arguments, on_progress, check=check) as work:
        dense = work.run("dense", work.dense(), phase=0)
        yield dense
        parents = [ended(dense.workdir)] * members
        full = full_masks(parents[0].params, work.where)
        kept_of = [[target(n, work.base["sparsity"], k / phases) for n in totals(full)] for k in range(1, phases + 1)]
        for phase, kept in enumerate(kept_of, 1):
            runs, before = [], parents
            for number in range(members):
                run = _member(work, before[number], full, kept, phase, number, arguments)
                runs.append(run)
                yield run
            parents = [ended(run.workdir) for run in runs]
            if masks == "shared":
                soup = _soup(work, runs, parents, phase, arguments)
                yield soup
                parents = [ended(soup.workdir)] * members
        if masks == "own":
            yield from _unions(work, parents, kept_of[-1], arguments)


def target(size: int, sparsity: float, share: float) -> int:
    """How many of `size` weights stay after a share of the phases: those of sparsity 1 - (1 - S)^share.

    Example:
      >>> [target(1000, 0.75, phase / 2) for phase in (0, 1, 2)]
      [1000, 500, 250]
    """
    return size - int((1 - (1 - sparsity) ** share) * size + 1e-6)


def _member(
    work: Rounds, parent: Ended, full: Any, kept: list[int], phase: int, number: int, how: Mapping[str, Any]
) -> Round:
    masks = prune_to(parent.params, full if parent.masks is None else parent.masks, kept)
    fields = dict(how["retrain"])
    if how["vary"] == "seed":
        fields["seeds"] = [int(draws(seed, phase, number).integers(2**31)) for seed in work.base["seeds"]]
    else:
        fields[how["vary"]] = how["values"][number]
    start = Start(parent.params, parent.model_state, masks)
    name, branch = f"phase_{phase}_member_{number}", f"member {number}"
    return work.run(name, work.static(masks, **fields), start=start, phase=phase, member=number, branch=branch)


def _soup(work: Rounds, runs: Sequence[Round], members: Sequence[Ended], phase: int, how: Mapping[str, Any]) -> Round:
    """The average of a phase's members: evaluated and saved."""
    variables = [(member.params, member.model_state) for member in members]
    config = work.static(members[0].masks)
    trial = prepare(config)
    ready = recalibrator(trial, how["batches"])
    if how["average"] == "greedy":
        metric = trial.task.metric
        sign = 1 if metric == "accuracy" else -1
        scores = [[sign * value for value in run.result[metric]] for run in runs]
        average, chosen = greedy(variables, scores, scorer(trial), ready)
    else:
        average = ready(mean_of(variables))
        chosen = [list(range(len(members)))] * len(work.base["seeds"])
    start = Start(*average, members[0].masks)
    return work.run(
        f"phase_{phase}_soup", config, start=start, until=0, phase=phase, branch="soup", members_of_each=chosen
    )


def _unions(work: Rounds, members: Sequence[Ended], kept: list[int], how: Mapping[str, Any]) -> Iterator[Round]:
    """The average of nets whose masks differ: denser than they are; then pruned to their sparsity."""
    union = map_masks(
        lambda *each: None if each[0] is None else np.logical_or.reduce(each), *[m.masks for m in members]
    )
    params, state = mean_of([(member.params, member.model_state) for member in members])
    for name, masks in (("union", union), ("pruned_union", prune_to(params, union, kept))):
        config = work.static(masks)
        zeroed = _under(params, masks)
        start = Start(*recalibrator(prepare(config), how["batches"])((zeroed, state)), masks)
        yield work.run(name, config, start=start, until=0, phase=how["phases"], branch=name)


def _under(params: Any, masks: Any) -> Any:
    """The params with zeros off the masks."""
    structure: Any = jax.tree.structure(params)
    flat = structure.flatten_up_to(masks)
    leaves = zip(jax.tree.leaves(params), flat, strict=True)
    return structure.unflatten([leaf if mask is None else np.where(mask, leaf, 0) for leaf, mask in leaves])


def _checked_values(vary: str, values: Sequence[float] | None, members: int) -> list[float] | None:
    if vary not in VARIED:
        raise ConfigError(f"vary: {vary!r} is not one of {', '.join(VARIED)}")
    if vary == "seed":
        if values is not None:
            raise ConfigError(f"values: {values!r}; seeds are drawn, leave values out")
        return None
    if not isinstance(values, list | tuple) or len(values) != members:
        raise ConfigError(f"values: {values!r} is not a list of {members} values of {vary}, one for each member")
    return list(values)

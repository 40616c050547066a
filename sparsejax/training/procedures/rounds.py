"""The directory of a procedure: one ordinary run directory for each round, and what says which of them are done.

`procedure.json` holds what was asked for, `rounds.jsonl` a line for each finished run, `trials/` the run directories,
and `config.json` lists these as a sweep's does, so that `sparsejax report` shows them. All but `trials/` is written
anew from what the runs say, so a kill at any instant leaves nothing that the same call does not make good.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from sparsejax.files import locked, read_json, write_atomic, write_json
from sparsejax.leaves import Where
from sparsejax.masks import get_masks
from sparsejax.training.checkpoint import Checkpoints
from sparsejax.training.compiling import CACHE, kept_in
from sparsejax.training.config import Resolved, first_difference, resolve
from sparsejax.training.errors import ConfigError
from sparsejax.training.loop import Progress, train
from sparsejax.training.methods import arguments_of
from sparsejax.training.model import make_model
from sparsejax.training.run_dir import completed
from sparsejax.training.start import Start
from sparsejax.training.state import sparse_state, to_evaluate
from sparsejax.training.tasks import make_task
from sparsejax.training.trained import read_config
from sparsejax.training.trial import Trial, load, prepare, state_shapes

_OF_THE_RESULT = ("accuracy", "loss", "steps", "weights", "weights_kept")
_KEPT_ARGUMENTS = ("where", "packed")  # of method_args; the procedure chooses how many weights stay, and which


class Round(NamedTuple):
    """One finished run of a procedure.

    Attributes:
      name: of its directory.
      workdir: the run directory.
      entry: its line of rounds.jsonl: where it stands in the procedure, and its scores, one for each seed.
      result: its result.json.
    """

    name: str
    workdir: Path
    entry: dict[str, Any]
    result: dict[str, Any]


class Ended(NamedTuple):
    """What a finished run leaves to the next, on the host, seeds first.

    Attributes:
      params, model_state: as they are evaluated (the averages of a run that keeps them), after its last step.
      masks: bool arrays, None where a leaf has none; None for a dense run.
    """

    params: Any
    model_state: Any
    masks: Any


class Rounds:
    """A procedure at work in its directory; made by `opened`."""

    def __init__(self, workdir: Path, base: Resolved, on_progress: Progress | None):
        self.workdir, self.base = workdir, base
        self._on_progress = on_progress
        self._listed = {trial["name"]: trial for trial in (read_json(workdir / "config.json") or {}).get("trials", [])}
        self._entries: dict[str, dict[str, Any]] = {}

    @property
    def where(self) -> Where | None:
        """Which leaves are pruned, from the config's method_args; None: the default."""
        return arguments_of(self.base).get("where")

    def dense(self, **fields: Any) -> Resolved:
        """The config without a method, with other fields changed."""
        return resolve(self.base | {"method": "dense", "method_args": {}} | fields)

    def static(self, masks: Any, **fields: Any) -> Resolved:
        """The config of a run under these masks, seeds first, with other fields changed."""
        arguments = {name: value for name, value in self.base["method_args"].items() if name in _KEPT_ARGUMENTS}
        made = {"method": "static", "method_args": arguments, "sparsity": sparsity_of(masks)}
        return resolve(self.base | made | fields)

    def run(
        self, name: str, config: Resolved, *, start: Start | None = None, until: int | None = None, **entry: Any
    ) -> Round:
        """Trains the run `name`, or finds it done.

        Args:
          name: of its directory in `trials`.
          config: resolved.
          start, until: as `train`.
          entry: what its line of rounds.jsonl says besides the scores; `branch` sets it apart in reports.
        """
        overrides = {field: config[field] for field in ("method", "sparsity")}
        overrides |= {"branch": entry["branch"]} if entry.get("branch") else {}
        self._listed[name] = {"name": name, "overrides": overrides, "config": config}
        trials = [self._listed[each] for each in sorted(self._listed)]
        write_json(self.workdir / "config.json", {"trials": trials})
        done = self.aside(self.workdir / "trials" / name, config, start=start, until=until)
        scores = {field: done.result[field] for field in _OF_THE_RESULT if field in done.result}
        return self.noted(done, run=name, **entry, **scores)

    def noted(self, done: Round, **more: Any) -> Round:
        """The round with more in its entry, which is written to rounds.jsonl."""
        self._entries[done.name] = self._entries.get(done.name, {}) | more
        lines = (json.dumps(each, sort_keys=True) + "\n" for each in self._entries.values())
        write_atomic(self.workdir / "rounds.jsonl", "".join(lines))
        return done._replace(entry=self._entries[done.name])

    def aside(self, workdir: Path, config: Resolved, *, start: Start | None = None, until: int | None = None) -> Round:
        """A run that is no round of its own, such as the one up to the step to rewind to."""
        workdir.parent.mkdir(exist_ok=True)
        result = train(config, workdir, start=start, until=until, on_progress=self._on_progress)
        return Round(workdir.name, workdir, {}, result)


@contextlib.contextmanager
def opened(
    procedure: str,
    config: ConfigDict | Mapping[str, Any],
    workdir: str | Path,
    arguments: Mapping[str, Any],
    on_progress: Progress | None,
    method: str | None = "static",
    check: Callable[[Trial], None] | None = None,
) -> Iterator[Rounds]:
    """Makes the procedure's directory, or goes on in it, and holds its lock.

    Args:
      procedure: its name.
      config, workdir, on_progress: as `train`.
      arguments: of the procedure.
      method: in place of the config's; None leaves that.
      check: raises ConfigError where the procedure cannot work with this trial; nothing has been written then.

    Raises:
      ConfigError: the config is wrong, the directory belongs to something else, or another process works there.
    """
    given = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    workdir, base = Path(workdir), resolve(given | ({"method": method} if method else {}))
    _check_owner(workdir, procedure, base, arguments)
    trial = prepare(base)
    if check:
        check(trial)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"workdir: cannot write to {str(workdir)!r}: {error.strerror}") from error
    with locked(workdir / ".lock") as free, kept_in(workdir.parent / CACHE):
        if not free:
            raise ConfigError(f"workdir {workdir} is in use by another process")
        _check_owner(workdir, procedure, base, arguments)
        write_json(workdir / "procedure.json", {"procedure": procedure, "arguments": arguments, "config": base})
        yield Rounds(workdir, base, on_progress)


def _check_owner(workdir: Path, procedure: str, base: Resolved, arguments: Mapping[str, Any]) -> None:
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"workdir: {str(workdir)!r} is not a directory")
    written = read_json(workdir / "procedure.json")
    if written is None:
        if (workdir / "config.json").exists():
            raise ConfigError(f"workdir {workdir} belongs to a run or a sweep; use another workdir")
        return
    asked = json.loads(json.dumps(dict(arguments)))
    pairs = (
        ({"procedure": written["procedure"]}, {"procedure": procedure}),
        (written["arguments"], asked),
        (completed(written["config"]), completed(base)),
    )
    for there, here in pairs:
        if difference := first_difference(there, here):
            raise ConfigError(f"workdir {workdir} belongs to another procedure: {difference}; use another workdir")


def ended(workdir: Path) -> Ended:
    """The last state of a finished run.

    Raises:
      ConfigError: there is no whole checkpoint, or a weight is not finite.
    """
    config = read_config(workdir)
    data = load(config)
    model = make_model(config, data)
    like = state_shapes(config, model, make_task(config, data, model))
    checkpoints = Checkpoints(workdir / "checkpoints", keep=1)
    found = checkpoints.restore(like)
    checkpoints.close()
    if found is None:
        raise ConfigError(f"{workdir} has no checkpoint that is whole")
    state = found[1]
    params, model_state = jax.device_get(to_evaluate(state))
    for leaf in jax.tree.leaves(params):
        if not np.isfinite(np.asarray(leaf, np.float32)).all():
            raise ConfigError(f"{workdir}: a weight is not finite, so the next round cannot go on from there")
    masks = get_masks(state.opt_state) if sparse_state(state.opt_state) else None
    return Ended(params, model_state, jax.device_get(masks))


def sparsity_of(masks: Any) -> float:
    """The fraction of zeros, over all seeds, to six digits: what a config is called by."""
    leaves = [np.asarray(mask) for mask in jax.tree.leaves(masks)]
    kept, size = sum(int(mask.sum()) for mask in leaves), sum(mask.size for mask in leaves)
    return round(1 - kept / size, 6)

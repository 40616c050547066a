"""Iterative magnitude pruning: train, prune the smallest weights, rewind the others to where they began."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sparsejax.leaves import Layout
from sparsejax.saliency import shuffled
from sparsejax.training.config import Resolved
from sparsejax.training.errors import ConfigError
from sparsejax.training.loop import Progress
from sparsejax.training.model import layout_of, make_model
from sparsejax.training.procedures.pruning import (
    active,
    check_number,
    check_scope,
    drawn_scores,
    draws,
    full_masks,
    prune_fraction,
    prune_to,
    totals,
)
from sparsejax.training.procedures.rounds import Round, Rounds, ended, opened
from sparsejax.training.start import Start
from sparsejax.training.trial import Trial, load, prepare

CONTROLS = ("reinit", "shuffled", "random")
_REINIT, _RANDOM, _SHUFFLED = 1, 2, 0x7368  # set the draws of the controls apart from one another and from training's


def iterative_magnitude_pruning(
    config: ConfigDict | Mapping[str, Any],
    workdir: str | Path,
    *,
    rounds: int = 15,
    fraction: float = 0.2,
    output_fraction: float | None = None,
    scope: str = "layer",
    rewind: int = 0,
    controls: Sequence[str] | str = (),
    on_progress: Progress | None = None,
) -> Iterator[Round]:
    """Lottery tickets: each round trains, prunes a fraction of what is left by |w|, and rewinds to step k.

    Round 0 trains the dense net. From round r - 1 to r, n - floor(p n) of the n kept weights of a layer stay, those of
    largest |w| at the end of training; they go back to their value at step k, with a fresh optimizer, and the learning
    rate and the order of the data go on from step k. All seeds of the config are one program, each with its own masks.

    Args:
      config: of every round; `method` and `sparsity` are the procedure's own, of `method_args` it keeps `where`.
      workdir: the procedure's directory; called again, it goes on there, with the same bits.
      rounds: how many times is pruned.
      fraction: p in (0, 1).
      output_fraction: of the output layer; None is half of p where layers are pruned one by one, else p.
      scope: "layer" or "global" (the smallest of all layers together).
      rewind: k, in steps: 0 is the original ticket, some hundreds are early rewinding.
      controls: what else is trained in each round: "reinit" (the ticket's masks, weights drawn anew), "shuffled" (the
        ticket's weights of step k, masks with positions drawn anew inside each layer), "random" (weights of step k,
        random weights pruned instead of the smallest). Each begins at step k, as the ticket does. A list, or a string
        with commas.
      on_progress: as `train`.

    Yields:
      each run when it is finished: `round_00`, then `round_01` and its controls `round_01_reinit`, ...

    Raises:
      ConfigError: an argument or the config is wrong, or the directory belongs to something else.

    Example:
      >>> config = {"model_args": {"features": (16,)}, "epochs": 1, "seeds": 2}
      >>> [round.name for round in iterative_magnitude_pruning(config, "runs/imp", rounds=1, controls=["reinit"])]
      ['round_00', 'round_01', 'round_01_reinit']

    Source: Frankle & Carbin 2019, arXiv:1803.03635; rewinding: Frankle et al. 2020, arXiv:1912.05671.
    """
    check_number("rounds", rounds, lambda v: v >= 1, "an integer >= 1", whole=True)
    check_number("fraction", fraction, lambda v: 0 < v < 1, "a number in (0, 1)")
    if output_fraction is not None:
        check_number("output_fraction", output_fraction, lambda v: 0 <= v < 1, "a number in [0, 1), or None")
    check_number("rewind", rewind, lambda v: v >= 0, "an integer >= 0", whole=True)
    check_scope(scope)
    controls = _listed(controls)
    for name in controls:
        if name not in CONTROLS:
            raise ConfigError(f"controls: {name!r} is not one of {', '.join(CONTROLS)}")
    own = fraction / 2 if output_fraction is None and scope != "global" else output_fraction
    arguments = {
        "rounds": rounds, "fraction": fraction, "output_fraction": own, "scope": scope, "rewind": rewind,
        "controls": list(controls),
    }  # fmt: skip
    with opened("imp", config, workdir, arguments, on_progress, check=check_rewind(rewind)) as work:
        layout = model_layout(work.base)
        start = rewind_point(work, rewind)
        last = work.run("round_00", work.dense(), start=start, round=0, branch="")
        yield last
        masks = full_masks(start.params, work.where)
        for number in range(1, rounds + 1):
            found = ended(last.workdir).params
            masks = prune_fraction(found, masks, fraction, scope=scope, output_fraction=own, layout=layout)
            name = f"round_{number:02d}"
            last = work.run(name, work.static(masks), start=start._replace(masks=masks), round=number, branch="")
            yield last
            for control in controls:
                begin = _control(control, work, start._replace(masks=masks), number, scope, layout)
                config_of = work.static(begin.masks)
                yield work.run(f"{name}_{control}", config_of, start=begin, round=number, branch=control)


def _listed(controls: Any) -> list[str]:
    if isinstance(controls, str):
        return [word.strip() for word in controls.split(",") if word.strip()]
    if not isinstance(controls, list | tuple):
        raise ConfigError(f"controls: {controls!r} is not a list of {', '.join(CONTROLS)}")
    return list(controls)


def model_layout(config: Resolved) -> Layout | None:
    """Which axes of the model's leaves are inputs, outputs, stacked; None: Flax's."""
    return layout_of(make_model(config, load(config)))


def check_rewind(step: int) -> Callable[[Trial], None]:
    """What raises ConfigError where a round is shorter than the steps to rewind to."""

    def check(trial: Trial) -> None:
        if step > trial.grid.total:
            raise ConfigError(f"rewind: {step} is more than the {trial.grid.total} steps of a round")

    return check


def rewind_point(work: Rounds, step: int) -> Start:
    """The dense net at `step`, which is trained in `rewind/` up to there; with 0 it is as it was drawn."""
    at = ended(work.aside(work.workdir / "rewind", work.dense(), until=step).workdir)
    return Start(at.params, at.model_state, None, step)


def _control(name: str, work: Rounds, ticket: Start, number: int, scope: str, layout: Layout | None) -> Start:
    """Where a control of this round begins."""
    seeds = work.base["seeds"]
    if name == "reinit":
        drawn = [int(draws(seed, number, _REINIT).integers(2**31)) for seed in seeds]
        params, model_state = prepare(work.dense()).programs.init_model(jnp.asarray(drawn, jnp.int32))
        return ticket._replace(params=jax.device_get(params), model_state=jax.device_get(model_state))
    if name == "shuffled":
        keys = jnp.stack([jax.random.fold_in(jax.random.fold_in(jax.random.key(s), _SHUFFLED), number) for s in seeds])
        return ticket._replace(masks=jax.device_get(_shuffled(layout, keys, ticket.masks)))
    full = full_masks(ticket.params, work.where)
    kept = totals(ticket.masks) if scope == "global" else active(ticket.masks, scope, layout)
    scores = drawn_scores(full, seeds, _RANDOM)  # the same in each round, so that masks shrink
    return ticket._replace(masks=prune_to(scores, full, kept, scope, layout))


@partial(jax.jit, static_argnums=0)
def _shuffled(layout: Layout | None, keys: jax.Array, masks: Any) -> Any:
    """Masks of all seeds, with positions drawn anew inside each layer."""
    return jax.vmap(lambda key, masks: shuffled(key, masks, layout=layout))(keys, masks)

"""The compiled programs of a trial, and which trials share them.

A method's `update` reads every count off its state, and rates are arguments, so trials that differ only in sparsity,
seeds, rates or how often they evaluate run the same programs. Many steps are one dispatch, a loop whose trip count is
an argument: one compilation serves chunks of every length, and a step is the same machine code wherever its chunk
began, which is one half of resuming bit for bit (the other is a fixed grid).
"""

import json
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsejax.training.compiling import fast, hurried
from sparsejax.training.distillation import Teacher
from sparsejax.training.evaluation import make_evaluate
from sparsejax.training.feeding import AHEAD
from sparsejax.training.methods import make_transform, rates_of, with_rates
from sparsejax.training.model import init_model, layout_of, make_model
from sparsejax.training.placement import Placement, make_mesh
from sparsejax.training.profile import span
from sparsejax.training.schedules import make_schedule
from sparsejax.training.seeds import each_seed, one_by_one, own_axis
from sparsejax.training.state import TrainState, averaged, masks_by_path, sparse_state, to_evaluate
from sparsejax.training.step import make_step
from sparsejax.training.tasks import make_task


class Programs(NamedTuple):
    """Jitted functions of one trial; S seeds.

    Attributes:
      init_model: seeds (S,) -> stacked (params, model state).
      chunk: (rates, state, {"seeds": (S,), "teacher"}, feed, steps) -> (state, report); donates the state, ends within
        the epoch.
      evaluate: (params, model state, x, y, real) -> sums over the test set by name, each (S,).
      to_evaluate: state -> (params, model state) that are evaluated.
    """

    init_model: Callable
    chunk: Callable
    evaluate: Callable
    to_evaluate: Callable


# These fields change what a program is fed or when it is called, not the program.
_FREE_FIELDS = {
    "sparsity", "init", "seeds", "eval_every_epochs", "checkpoint_every_epochs", "keep_checkpoints", "keep_best",
    "patience", "chunk_steps", "stop_on_nonfinite", "log",
}  # fmt: skip
_MODEL_FIELDS = (
    "model", "model_args", "dtype", "dataset", "data_dir", "data", "mesh", "augment", "mixup", "cutmix",
    "label_smoothing", "epoch_steps",
)  # fmt: skip
_MOST_CACHED = 32
_cache: dict[str, Any] = {}


def get_programs(
    config: Mapping[str, Any], data: Any, steps_per_epoch: int, teacher: Teacher | None = None
) -> Programs:
    """The programs for a resolved config, from this process's cache if a trial like it ran before."""
    model_key = json.dumps([config[field] for field in _MODEL_FIELDS])
    init, evaluate = _cached(model_key, lambda: _model_programs(config, data))
    fixed = with_rates(config, dict.fromkeys(rates_of(config)))
    fields = {field: value for field, value in fixed.items() if field not in _FREE_FIELDS}
    key = json.dumps([fields, teacher.key if teacher else None], sort_keys=True)
    chunk = _cached(key, lambda: _make_chunk(config, data, steps_per_epoch, teacher))
    view = _cached("to_evaluate", lambda: jax.jit(to_evaluate)) if config["ema_decay"] else to_evaluate
    return Programs(init, chunk, evaluate, view)


def _cached(key: str, make: Callable[[], Any]) -> Any:
    if key not in _cache:
        if len(_cache) >= _MOST_CACHED:
            _cache.pop(next(iter(_cache)))
        _cache[key] = make()
    return _cache[key]


def _model_programs(config: Mapping[str, Any], data: Any) -> tuple[Callable, Callable]:
    model = make_model(config, data)
    task, place = make_task(config, data, model), Placement(make_mesh(config["mesh"]))

    def init(seeds):
        return place.keep(init_model(model, task.example, seeds))

    evaluate = jax.jit(make_evaluate(model, task, place.split, place.gathered), compiler_options=fast())
    init = jax.jit(init, compiler_options=hurried())
    params, _ = jax.eval_shape(init, jnp.zeros(1, jnp.int32))
    return init, _batch_by_batch(evaluate) if one_by_one(params) else evaluate


def _batch_by_batch(evaluate: Callable) -> Callable:
    """The evaluation, one batch of the test set in each dispatch."""

    def in_turn(params, model_state, *test):
        parts = [evaluate(params, model_state, *(x[i : i + 1] for x in test)) for i in range(len(test[0]))]
        return jax.tree.map(lambda *each: sum(each[1:], each[0]), *parts)

    return in_turn


def _make_chunk(config: Mapping[str, Any], data: Any, steps_per_epoch: int, teacher: Teacher | None) -> Callable:
    model = make_model(config, data)
    task, place = make_task(config, data, model), Placement(make_mesh(config["mesh"]))
    total_steps, decay = config["epochs"] * steps_per_epoch, config["ema_decay"]
    params, _ = jax.eval_shape(lambda: init_model(model, task.example, jnp.zeros(1, jnp.int32)))
    alone = one_by_one(params) or data.streamed

    def many_steps(rates, state: TrainState, fixed, feed, steps):
        rated = with_rates(config, rates)
        transform = make_transform(rated, total_steps, sparsity=config["sparsity"], layout=layout_of(model))
        schedule = make_schedule(rated, total_steps)
        one_step = make_step(model, task, transform, config, teacher, place.gathered)
        seeds = fixed["seeds"].shape[0]
        inside, outside = own_axis(seeds, place.devices)
        step_of_each = each_seed(one_step, (0, 0, 0, 0, None, 0, 0, 0)) if inside is outside else one_step

        def body(_, carry):
            (step, params, opt_state, model_state, ema), loss_sum, bad = carry
            x, y = inside(feed.taken(task, step % steps_per_epoch, config["batch_size"], place.split))
            params, opt_state, model_state, loss = step_of_each(
                params, opt_state, model_state, inside(fixed["seeds"]), step, x, y, fixed["teacher"]
            )
            if decay:
                ema = averaged(ema, params, model_state, step, decay)
            first = (bad["step"] < 0) & ~jnp.isfinite(loss)
            bad = {"step": jnp.where(first, step + 1, bad["step"]), "loss": jnp.where(first, loss, bad["loss"])}
            kept = place.keep((params, opt_state, model_state, ema))
            return (step + 1, *kept), loss_sum + loss, bad

        bad = {"step": jnp.full(seeds, -1, jnp.int32), "loss": jnp.zeros(seeds)}
        stacked = inside((state.params, state.opt_state, state.model_state, state.ema))
        carry = ((state.step, *stacked), *inside((jnp.zeros(seeds), bad)))
        (step, *stacked), *sums = body(0, carry) if alone else jax.lax.fori_loop(0, steps, body, carry)
        (params, opt_state, model_state, ema), (loss_sum, bad) = outside(tuple(stacked)), outside(tuple(sums))
        new = TrainState(step, params, opt_state, _ever(state.ever_active, opt_state), model_state, ema)
        new = place.keep(new)
        report = {"loss": loss_sum / steps, "bad": bad, "finite": _all_finite(params), "lr": schedule(step - 1)}
        return new, report | {"masks": mask_report(new, masks_by_path(state.opt_state))}

    program = jax.jit(many_steps, donate_argnums=1, compiler_options=fast())
    return _step_by_step(program) if alone else program


def _step_by_step(program: Callable) -> Callable:
    """The chunk that runs a program of one step again and again, a few steps ahead of the device.

    Further ahead, the batches that wait for their steps would fill its memory.
    """

    def chunk(rates, state, fixed, feed, steps):
        under_way: deque[jax.Array] = deque()
        whole = None
        for one in feed.each(steps):
            state, report = program(rates, state, fixed, one, 1)
            under_way.append(report["loss"])
            if len(under_way) > AHEAD:
                with span("train"):
                    jax.block_until_ready(under_way.popleft())
            whole = _joined(whole, report) if whole else report
        return state, _of_steps(whole, steps)

    return chunk


@jax.jit
def _joined(before: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """The report of some steps and of the one after them; its loss is the sum."""
    masks, first = report["masks"], before["bad"]["step"]
    bad = jax.tree.map(lambda a, b: jnp.where(first < 0, b, a), before["bad"], report["bad"])
    for name in ("grown", "dropped") if masks else ():
        masks = masks | {name: jax.tree.map(jnp.add, before["masks"][name], masks[name])}
    return report | {"loss": before["loss"] + report["loss"], "bad": bad, "masks": masks}


@jax.jit
def _of_steps(whole: dict[str, Any], steps: int) -> dict[str, Any]:
    return whole | {"loss": whole["loss"] / steps}


def _ever(ever_active: dict[str, jax.Array], opt_state: Any) -> dict[str, jax.Array]:
    # Once a chunk is enough: weights grow in its last step alone, see Grid.after.
    return {path: ever_active[path] | mask for path, mask in masks_by_path(opt_state).items()}


def _all_finite(params: Any) -> jax.Array:
    """bool (S,)"""
    finite = [jnp.isfinite(leaf).reshape(leaf.shape[0], -1).all(1) for leaf in jax.tree.leaves(params)]
    return jnp.stack(finite).all(0)


def mask_report(state: TrainState, before: dict[str, jax.Array]) -> dict[str, Any]:
    """Counts over the masks of a stacked state; empty for a dense run.

    {path: int32 (S,)} under "kept", "grown" and "dropped" (against `before`), "ever" (active); "skipped": int32 (S,).
    """
    sparse = sparse_state(state.opt_state)
    if sparse is None:
        return {}
    count = lambda mask: mask.reshape(mask.shape[0], -1).sum(1, dtype=jnp.int32)
    masks = masks_by_path(state.opt_state)
    return {
        "kept": {path: count(mask) for path, mask in masks.items()},
        "grown": {path: count(mask & ~before[path]) for path, mask in masks.items()},
        "dropped": {path: count(~mask & before[path]) for path, mask in masks.items()},
        "ever": {path: count(mask) for path, mask in state.ever_active.items()},
        "skipped": sparse.skipped,
    }

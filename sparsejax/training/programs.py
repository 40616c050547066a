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

from sparsejax.leaves import Layout
from sparsejax.masks import mask_leaves
from sparsejax.topology import leaf_fans, path_masks
from sparsejax.training.compiling import fast, hurried
from sparsejax.training.distillation import Teacher
from sparsejax.training.evaluation import make_evaluate
from sparsejax.training.feeding import AHEAD
from sparsejax.training.methods import MANY_GRADIENTS, changes_often, make_transform, rates_of, with_rates
from sparsejax.training.model import evaluated, init_model, layout_of, make_model, model_fields, where_of
from sparsejax.training.placement import Placement, make_mesh
from sparsejax.training.profile import span
from sparsejax.training.schedules import make_schedule
from sparsejax.training.seeds import each_seed, one_by_one, own_axis
from sparsejax.training.state import TrainState, averaged, masks_by_path, sparse_state, to_evaluate
from sparsejax.training.step import gradient_norms, make_step
from sparsejax.training.tasks import make_task


class Programs(NamedTuple):
    """Jitted functions of one trial; S seeds.

    Attributes:
      init_model: seeds (S,) -> stacked (params, model state).
      chunk: (rates, state, {"seeds": (S,), "teacher"}, feed, steps) -> (state, report); donates the state, ends within
        the epoch.
      evaluate: (params, model state, x, y, real) -> sums over the test set by name, each (S,).
      to_evaluate: state -> (params, model state) that are evaluated.
      on_path: (params, model state, masks) -> {path: int32 (S,)}, how many kept weights lie on a path.
    """

    init_model: Callable
    chunk: Callable
    evaluate: Callable
    to_evaluate: Callable
    on_path: Callable


# These fields change what a program is fed or when it is called, not the program.
_FREE_FIELDS = {
    "sparsity", "init", "seeds", "eval_every_epochs", "checkpoint_every_epochs", "keep_checkpoints", "keep_best",
    "patience", "chunk_steps", "stop_on_nonfinite", "log", "log_topology",
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
    model_key = json.dumps([config[field] for field in _MODEL_FIELDS] + model_fields(config))
    init, evaluate = _cached(model_key, lambda: _model_programs(config, data))
    fixed = with_rates(config, dict.fromkeys(rates_of(config)))
    fields = {field: value for field, value in fixed.items() if field not in _FREE_FIELDS}
    key = json.dumps([fields, teacher.key if teacher else None], sort_keys=True)
    chunk = _cached(key, lambda: _make_chunk(config, data, steps_per_epoch, teacher))
    view = _cached("to_evaluate", lambda: jax.jit(to_evaluate)) if config["ema_decay"] else to_evaluate
    on_path = _cached(f"paths {model_key}", lambda: _make_on_path(config, data))
    return Programs(init, chunk, evaluate, view, on_path)


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
    often = changes_often(config)

    def many_steps(rates, state: TrainState, fixed, feed, steps, last=True, before=None):
        rated = with_rates(config, rates)
        leaves: dict[str, Any] = {"layout": layout_of(model), "where": where_of(model)}
        transform = make_transform(rated, total_steps, sparsity=config["sparsity"], **leaves)
        schedule = make_schedule(rated, total_steps)
        one_step = make_step(model, task, transform, config, teacher, place.gathered)
        seeds = fixed["seeds"].shape[0]
        inside, outside = own_axis(seeds, place.devices)
        axes: tuple[int | None, ...] = (0, 0, 0, 0, None, 0, 0, 0, None)
        pool: tuple[Any, ...] = ()
        if config["method"] in MANY_GRADIENTS:
            arrays, order = feed.pool
            axes, pool = (*axes, None, 0), (arrays, inside(order))
        step_of_each = each_seed(one_step, axes) if inside is outside else one_step

        def body(i, carry):
            (step, params, opt_state, model_state, ema), ever, loss_sum, bad, _ = carry
            x, y = inside(feed.taken(task, step % steps_per_epoch, config["batch_size"], place.split))
            params, opt_state, model_state, loss, norms = step_of_each(
                params, opt_state, model_state, inside(fixed["seeds"]), step, x, y, inside(fixed["teacher"]),
                last & (i == steps - 1), *pool,
            )  # fmt: skip
            if decay:
                ema = averaged(ema, params, model_state, step, decay)
            first = (bad["step"] < 0) & ~jnp.isfinite(loss)
            bad = {"step": jnp.where(first, step + 1, bad["step"]), "loss": jnp.where(first, loss, bad["loss"])}
            kept = place.keep((params, opt_state, model_state, ema))
            ever = _ever(ever, opt_state) if often else ever
            return (step + 1, *kept), ever, loss_sum + loss, bad, norms

        bad = {"step": jnp.full(seeds, -1, jnp.int32), "loss": jnp.zeros(seeds)}
        stacked = inside((state.params, state.opt_state, state.model_state, state.ema))
        norms = _no_norms(state.params, masks_by_path(state.opt_state), seeds)
        ever = inside(state.ever_active) if often else {}
        carry = ((state.step, *stacked), ever, *inside((jnp.zeros(seeds), bad, norms)))
        (step, *stacked), ever, *sums = body(0, carry) if alone else jax.lax.fori_loop(0, steps, body, carry)
        (params, opt_state, model_state, ema), (loss_sum, bad, norms) = outside(tuple(stacked)), outside(tuple(sums))
        ever = outside(ever) if often else _ever(state.ever_active, opt_state)
        new = TrainState(step, params, opt_state, ever, state.first_masks, model_state, ema)
        new = place.keep(new)
        report = {"loss": loss_sum / steps, "bad": bad, "finite": _all_finite(params), "lr": schedule(step - 1)}
        before = masks_by_path(state.opt_state) if before is None else before
        masks = mask_report(new, before, layout_of(model))
        return new, report | {"gradients": norms, "masks": masks}

    program = jax.jit(many_steps, donate_argnums=1, compiler_options=fast())
    return _step_by_step(program) if alone else program


def _step_by_step(program: Callable) -> Callable:
    """The chunk that runs a program of one step again and again, a few steps ahead of the device.

    Further ahead, the batches that wait for their steps would fill its memory.
    """

    def chunk(rates, state, fixed, feed, steps):
        under_way: deque[jax.Array] = deque()
        whole, before = None, _copied(masks_by_path(state.opt_state))  # the state's own are donated at the first step
        for index, one in enumerate(feed.each(steps), start=1):
            state, report = program(rates, state, fixed, one, 1, index == steps, before)
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
    first = before["bad"]["step"]
    bad = jax.tree.map(lambda a, b: jnp.where(first < 0, b, a), before["bad"], report["bad"])
    return report | {"loss": before["loss"] + report["loss"], "bad": bad}


@jax.jit
def _copied(masks: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return jax.tree.map(jnp.copy, masks)


@jax.jit
def _of_steps(whole: dict[str, Any], steps: int) -> dict[str, Any]:
    return whole | {"loss": whole["loss"] / steps}


def _ever(ever_active: dict[str, jax.Array], opt_state: Any) -> dict[str, jax.Array]:
    # Once a chunk is enough where weights grow in its last step alone, see Grid.after; else at each step.
    return {path: ever_active[path] | mask for path, mask in masks_by_path(opt_state).items()}


def _no_norms(params: Any, masks: dict[str, jax.Array], seeds: int) -> dict[str, dict[str, jax.Array]]:
    """What the loop carries before the first gradient: zeros (S,)."""
    one = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree)
    return jax.tree.map(lambda x: jnp.zeros(seeds, x.dtype), jax.eval_shape(gradient_norms, one(params), one(masks)))


def _make_on_path(config: Mapping[str, Any], data: Any) -> Callable:
    """The program of `Programs.on_path`: one seed after another, as connections need no speed."""
    model = make_model(config, data)
    task = make_task(config, data, model)

    def on_path(params, model_state, masks):
        one = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree)
        state = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), one(model_state))
        forward = lambda params, x: evaluated(model, params, state, x)
        count = lambda mask: jnp.sum(mask, dtype=jnp.int32)

        def of_seed(masks):
            return {p: count(m) for p, m in mask_leaves(path_masks(forward, one(params), masks, task.example)).items()}

        return jax.lax.map(of_seed, masks)

    return jax.jit(on_path, compiler_options=hurried())


def _all_finite(params: Any) -> jax.Array:
    """bool (S,)"""
    finite = [jnp.isfinite(leaf).reshape(leaf.shape[0], -1).all(1) for leaf in jax.tree.leaves(params)]
    return jnp.stack(finite).all(0)


def mask_report(state: TrainState, before: dict[str, jax.Array], layout: Layout | None = None) -> dict[str, Any]:
    """Counts over the masks of a stacked state; empty for a dense run.

    {path: int32 (S,)} under "kept", "grown" and "dropped" (against `before`), "ever" (active), "flipped" (against the
    masks at step 0); {path: int32 (S, neurons)} under "fan_in", (S, inputs) under "fan_out"; "skipped": int32 (S,).
    """
    sparse = sparse_state(state.opt_state)
    if sparse is None:
        return {}
    count = lambda mask: mask.reshape(mask.shape[0], -1).sum(1, dtype=jnp.int32)
    masks = masks_by_path(state.opt_state)
    fans = {path: jax.vmap(lambda m, path=path: leaf_fans(path, m, layout))(mask) for path, mask in masks.items()}
    return {
        "kept": {path: into.sum(1) for path, (into, _) in fans.items()},  # one pass over the mask less to compile
        "grown": {path: count(mask & ~before[path]) for path, mask in masks.items()},
        "dropped": {path: count(~mask & before[path]) for path, mask in masks.items()},
        "ever": {path: count(mask) for path, mask in state.ever_active.items()},
        "flipped": {path: count(mask ^ state.first_masks[path]) for path, mask in masks.items()},
        "fan_in": {path: each[0] for path, each in fans.items()},
        "fan_out": {path: each[1] for path, each in fans.items()},
        "skipped": sparse.skipped,
    }

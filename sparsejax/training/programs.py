"""The compiled programs of a trial, and which trials share them.

A method's `update` reads every count off its state, and rates are arguments, so trials that differ only in sparsity,
seeds, rates or how often they evaluate run the same programs. Many steps are one dispatch, a loop whose trip count is
an argument: one compilation serves chunks of every length, and a step is the same machine code wherever its chunk
began, which is one half of resuming bit for bit (the other is a fixed grid).
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparsejax.data import Dataset
from sparsejax.models import MODELS
from sparsejax.training.compiling import fast, hurried
from sparsejax.training.evaluation import make_evaluate
from sparsejax.training.methods import make_schedule, make_transform, rates_of, with_rates
from sparsejax.training.state import TrainState, init_params, masks_by_path, sparse_state


class Programs(NamedTuple):
    """Jitted functions of one trial; S seeds, N training examples.

    Attributes:
      init_params: seeds (S,) -> stacked params.
      chunk: (rates, state, x, y, order (S, N), steps) -> (state, report); donates the state, ends within the epoch.
      evaluate: (params, x, y, real) -> (sum of losses (S,), right answers (S,)).
    """

    init_params: Callable
    chunk: Callable
    evaluate: Callable


# These fields change what a program is fed or when it is called, not the program.
_FREE_FIELDS = {
    "sparsity", "seeds", "eval_every_epochs", "checkpoint_every_epochs", "keep_checkpoints", "chunk_steps",
    "stop_on_nonfinite",
}  # fmt: skip
_MODEL_FIELDS = ("model", "model_args", "dataset", "data_dir", "data")
_MOST_CACHED = 32
_cache: dict[str, Any] = {}


def get_programs(config: Mapping[str, Any], dataset: Dataset, steps_per_epoch: int) -> Programs:
    """The programs for a resolved config, from this process's cache if a trial like it ran before."""
    model_key = json.dumps([config[field] for field in _MODEL_FIELDS])
    init, evaluate = _cached(model_key, lambda: _model_programs(config, dataset))
    fixed = with_rates(config, dict.fromkeys(rates_of(config)))
    key = json.dumps({field: value for field, value in fixed.items() if field not in _FREE_FIELDS}, sort_keys=True)
    make = lambda: _make_chunk(config, dataset, steps_per_epoch)
    chunk = _cached(key, lambda: jax.jit(make(), donate_argnums=1, compiler_options=fast()))
    return Programs(init, chunk, evaluate)


def _cached(key: str, make: Callable[[], Any]) -> Any:
    if key not in _cache:
        if len(_cache) >= _MOST_CACHED:
            _cache.pop(next(iter(_cache)))
        _cache[key] = make()
    return _cache[key]


def make_model(config: Mapping[str, Any], dataset: Dataset) -> Any:
    """The Linen module that a resolved config names."""
    arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config["model_args"].items()}
    return MODELS[config["model"]](classes=dataset.classes, **arguments)


def example_shape(dataset: Dataset) -> jax.ShapeDtypeStruct:
    """A batch of one, as a model sees it."""
    return jax.ShapeDtypeStruct((1, *dataset.train_x.shape[1:]), jnp.float32)


def _to_float(dataset: Dataset) -> Callable[[jax.Array], jax.Array]:
    return lambda x: (x.astype(jnp.float32) - dataset.offset) * dataset.scale


def _model_programs(config: Mapping[str, Any], dataset: Dataset) -> tuple[Callable, Callable]:
    model = make_model(config, dataset)
    init = lambda seeds: init_params(model, example_shape(dataset), seeds)
    evaluate = make_evaluate(model, _to_float(dataset))
    return jax.jit(init, compiler_options=hurried()), jax.jit(evaluate, compiler_options=fast())


def _make_chunk(config: Mapping[str, Any], dataset: Dataset, steps_per_epoch: int) -> Callable:
    model, to_float = make_model(config, dataset), _to_float(dataset)
    total_steps = config["epochs"] * steps_per_epoch
    batch = config["batch_size"]

    def train_step(transform, params, opt_state, x, y):
        def loss_of(params):
            logits = model.apply({"params": params}, to_float(x))
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, opt_state = transform.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    def chunk(rates, state: TrainState, x, y, order, steps):
        seeds = order.shape[0]
        rated = with_rates(config, rates)
        transform = make_transform(rated, total_steps, sparsity=config["sparsity"])
        schedule = make_schedule(rated, total_steps)
        step_of_each = jax.vmap(partial(train_step, transform))

        def body(_, carry):
            step, params, opt_state, loss_sum, bad = carry
            index = jax.lax.dynamic_slice(order, (0, step % steps_per_epoch * batch), (seeds, batch))
            params, opt_state, loss = step_of_each(params, opt_state, x[index], y[index])
            first = (bad["step"] < 0) & ~jnp.isfinite(loss)
            bad = {"step": jnp.where(first, step + 1, bad["step"]), "loss": jnp.where(first, loss, bad["loss"])}
            return step + 1, params, opt_state, loss_sum + loss, bad

        bad = {"step": jnp.full(seeds, -1, jnp.int32), "loss": jnp.zeros(seeds)}
        carry = (state.step, state.params, state.opt_state, jnp.zeros(seeds), bad)
        step, params, opt_state, loss_sum, bad = jax.lax.fori_loop(0, steps, body, carry)
        new = TrainState(step, params, opt_state, _ever(state.ever_active, opt_state))
        report = {"loss": loss_sum / steps, "bad": bad, "finite": _all_finite(params), "lr": schedule(step - 1)}
        return new, report | {"masks": mask_report(new, masks_by_path(state.opt_state))}

    return chunk


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

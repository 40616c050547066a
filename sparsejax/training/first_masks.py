"""The masks at step 0 of the methods that choose them by the initial weights and the first batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import saliency
from sparsejax.training.at_init import AT_INIT
from sparsejax.training.compiling import hurried
from sparsejax.training.errors import ConfigError
from sparsejax.training.methods import arguments_of
from sparsejax.training.model import evaluated, layout_of, trained, where_of
from sparsejax.training.placement import Placement
from sparsejax.training.step import step_key
from sparsejax.training.tasks import Task

_DRAWN = (
    0x6D61  # sets the keys of shuffled positions and of ties apart from those of training and of the initial params
)


def first_masks(
    config: Mapping[str, Any], model: Any, task: Task, place: Placement, epoch_steps: int
) -> Callable[..., Any] | None:
    """The function that chooses a method's masks before the first step; None for a method that needs none.

    `(params, model_state, seeds, feed) -> masks`: stacked, one for each seed, which are computed one after another by
    one program. SNIP and GraSP see what the first steps of training see: its batches, augmented, the model in training
    mode, the label smoothing; a teacher has no part in it. SynFlow sees the model as it predicts.

    Raises:
      ConfigError: `batches` are more than an epoch has, or SynFlow is asked to send ones through a model of tokens.
    """
    name = config["method"]
    if name not in AT_INIT:
        return None
    defaults = {k: p.default for k, p in inspect.signature(AT_INIT[name]).parameters.items() if k != "inner"}
    options = defaults | arguments_of(config, where_of(model))
    batches = options.get("batches", 0)
    if batches > epoch_steps:
        raise ConfigError(f"method_args.batches: {batches} is more than the {epoch_steps} batches of an epoch")
    if name == "synflow" and not jnp.issubdtype(task.example.dtype, jnp.floating):
        raise ConfigError("method: 'synflow' sends an input of ones through the model, which tokens cannot be")
    scores_of, rounds = _scores(name, model, task, options), _rounds(config, model, options)

    def choose(i, params, model_state, seeds, *batch):
        params, model_state, seed, batch = jax.tree.map(lambda x: x[i], (params, model_state, seeds, batch))
        scores = scores_of(params, model_state, seed, batch)
        key = jax.random.fold_in(jax.random.key(seed), _DRAWN)
        for_ties, for_places = jax.random.split(key)
        if name == "synflow":
            forward = lambda params, x: evaluated(model, params, model_state, x)
            masks = saliency.synflow(forward, params, task.example, key=for_ties, **rounds)
        else:
            masks = saliency.masks_from_scores(scores, key=for_ties, **rounds)
        if options["shuffle"]:
            masks = saliency.shuffled(for_places, masks, pattern=options["pattern"], layout=layout_of(model))
        finite = jnp.stack([jnp.isfinite(score).all() for score in jax.tree.leaves(scores)]).all()
        return masks, finite

    program = jax.jit(choose, compiler_options=hurried())

    def all_seeds(params, model_state, seeds, feed):
        steps = enumerate(feed(0, batches).each(batches)) if batches else ()
        given = [step.taken(task, jnp.int32(k), config["batch_size"], place.split) for k, step in steps]
        found = []
        for i, seed in enumerate(config["seeds"]):
            try:
                masks, finite = jax.device_get(program(i, params, model_state, seeds, *given))
            except (ValueError, TypeError) as error:
                raise ConfigError(f"method {name!r}: {error}") from error
            if not finite:
                hint = "; a smaller method_args.scale helps" if name == "synflow" else ""
                raise ConfigError(f"method {name!r}: the scores of seed {seed} hold NaN or infinity{hint}")
            found.append(masks)
        return jax.tree.map(lambda *each: np.stack(each), *found)

    return all_seeds


def _rounds(config: Mapping[str, Any], model: Any, options: dict[str, Any]) -> dict[str, Any]:
    """What `masks_from_scores`, or `synflow`, takes besides scores."""
    names = ["distribution", "pattern", "ties"]
    if config["method"] == "synflow":
        names += ["iterations", "schedule", "biases", "scale", "where"]
    return {name: options[name] for name in names} | {"sparsity": config["sparsity"], "layout": layout_of(model)}


def _scores(name: str, model: Any, task: Task, options: dict[str, Any]) -> Callable[..., Any]:
    """`(params, model_state, seed, batches) -> scores` of one seed."""
    where = options["where"]

    def scores(params, model_state, seed, batches):
        def loss(params, key, x, y, temperature=1.0):
            for_data, for_model = jax.random.split(key)
            inputs, targets = task.prepare(for_data, x, y)
            logits, _ = trained(model, params, model_state, inputs, for_model)
            return task.loss(logits / temperature, targets)

        every = [(step_key(seed, jnp.int32(k)), x, y) for k, (x, y) in enumerate(batches)]
        if name == "snip":
            return saliency.snip(loss, params, batches=every, where=where)
        if name == "grasp":
            return saliency.grasp(loss, params, batches=every, temperature=options["temperature"], where=where)
        if name == "synflow":
            forward = lambda params, x: evaluated(model, params, model_state, x)
            options_of_flow = {"biases": options["biases"], "scale": options["scale"], "where": where}
            return saliency.synflow_scores(forward, params, task.example, **options_of_flow)
        return saliency.magnitude(params, where=where)

    return scores

"""Averages of networks: uniform and greedy, with statistics of BatchNorm taken anew. Seeds first, on the host."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.training.compiling import hurried
from sparsejax.training.errors import ConfigError
from sparsejax.training.model import make_model, trained
from sparsejax.training.step import step_key
from sparsejax.training.trial import Trial, load

Variables = tuple[Any, Any]
_STATS = "batch_stats"
_FAR = 1e6  # so far from any statistic that the share which a step keeps of it can be read off


def mean_of(members: Sequence[Any]) -> Any:
    """The mean of trees, leaf by leaf, summed in float64; of integers the first.

    Example:
      >>> mean_of([{"w": np.float32([1.0, 0.0])}, {"w": np.float32([3.0, 0.0])}])["w"].tolist()
      [2.0, 0.0]
    """

    def one(*each):
        if not np.issubdtype(np.asarray(each[0]).dtype, np.floating) and each[0].dtype != jnp.bfloat16:
            return each[0]
        return np.mean(np.stack([np.asarray(x, np.float64) for x in each]), axis=0).astype(each[0].dtype)

    return jax.tree.map(one, *members)


def scorer(trial: Trial) -> Callable[[Variables], list[float]]:
    """(params, model state) -> the score of each seed on the test set, larger is better."""

    def score(variables: Variables) -> list[float]:
        sums = trial.test.summed(trial.programs.evaluate, jax.tree.map(jnp.asarray, variables))
        values = trial.task.scores(jax.device_get(sums), trial.test.size)[trial.task.metric]
        return values if trial.task.metric == "accuracy" else [-value for value in values]

    return score


def greedy(
    members: Sequence[Variables],
    scores: Sequence[Sequence[float]],
    score: Callable[[Variables], list[float]],
    ready: Callable[[Variables], Variables] = lambda variables: variables,
) -> tuple[Variables, list[list[int]]]:
    """The greedy soup: members from the best on, each taken if the average does not get worse by it.

    Args:
      members: (params, model state) of each, leaves (S, ...); every seed chooses for itself.
      scores: of each member, one for each seed.
      score: (params, model state) -> one for each seed, larger is better.
      ready: what is done to an average before it is scored.

    Returns:
      the average, and for each seed which members are in it.

    Source: Wortsman et al. 2022, Model soups, arXiv:2203.05482.
    """
    order = np.argsort(-np.asarray(scores), axis=0, kind="stable")
    seeds = range(order.shape[1])
    chosen = [[int(order[0, seed])] for seed in seeds]
    best_average = ready(_averages(members, chosen))
    best = score(best_average)
    for rank in range(1, len(members)):
        tried = [[*chosen[seed], int(order[rank, seed])] for seed in seeds]
        average = ready(_averages(members, tried))
        found = score(average)
        better = np.asarray(found) >= np.asarray(best)
        chosen = [tried[seed] if better[seed] else chosen[seed] for seed in seeds]
        best = [found[seed] if better[seed] else best[seed] for seed in seeds]
        best_average = jax.tree.map(partial(_picked, better), average, best_average)
    return best_average, chosen


def _picked(better: np.ndarray, new: Any, old: Any) -> np.ndarray:
    """The seeds of `new` where they are better, else of `old`."""
    return np.stack([(new if yes else old)[seed] for seed, yes in enumerate(better)])


def _averages(members: Sequence[Variables], chosen: Sequence[Sequence[int]]) -> Variables:
    """For each seed the mean of the members that it chose."""
    of_seed = lambda member, seed: jax.tree.map(lambda leaf: leaf[seed], members[member])
    each = [mean_of([of_seed(member, seed) for member in mine]) for seed, mine in enumerate(chosen)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *each)


def recalibrator(trial: Trial, batches: int = 100) -> Callable[[Variables], Variables]:
    """What takes a model's BatchNorm statistics anew: the mean over the first batches of training, all alike.

    A moving average of the layer, m old + (1 - m) batch, gives the batch's part where the old one is 0; m shows where
    the old one is large.

    Args:
      trial: of the config that trains it, whose batches are used, augmented as in training.
      batches: how many, at most an epoch.

    Raises:
      ConfigError: the statistics are no moving averages.
    """
    model = make_model(trial.config, load(trial.config))
    steps = min(batches, trial.grid.epoch)

    def one(params, model_state, stats, seed, step, x, y):
        for_data, for_model = jax.random.split(step_key(seed, step))
        inputs, _ = trial.task.prepare(for_data, x, y)
        return trained(model, params, {**model_state, _STATS: stats}, inputs, for_model)[1][_STATS]

    def seen(params, model_state, stats, seeds, step, feed):
        x, y = feed.taken(trial.task, step % trial.grid.epoch, trial.config["batch_size"], trial.place.split)
        return jax.vmap(one, (0, 0, 0, 0, None, 0, 0))(params, model_state, stats, seeds, step, x, y)

    program = jax.jit(seen, compiler_options=hurried())
    seeds = jnp.asarray(trial.config["seeds"], jnp.int32)

    def recalibrated(variables: Variables) -> Variables:
        params, model_state = jax.tree.map(jnp.asarray, variables)
        if not jax.tree.leaves(model_state.get(_STATS, {})):
            return variables
        full = lambda value: jax.tree.map(lambda leaf: jnp.full_like(leaf, value), model_state[_STATS])
        total, share = None, 0.0
        for index, step in enumerate(trial.feed(0, steps).each(steps)):
            found = program(params, model_state, full(0.0), seeds, jnp.int32(index), step)
            if index == 0:
                far = program(params, model_state, full(_FAR), seeds, jnp.int32(0), step)
                share = _kept_share(jax.device_get(far), jax.device_get(found))
            total = found if total is None else jax.tree.map(jnp.add, total, found)
        stats = jax.tree.map(lambda leaf: np.asarray(leaf) / np.float32(steps * (1 - share)), total)
        return variables[0], {**variables[1], _STATS: stats}

    return recalibrated


def _kept_share(far: Any, found: Any) -> float:
    """How much of the old statistics a step keeps: m."""
    shares = [(np.asarray(a, np.float64) - b) / _FAR for a, b in zip(jax.tree.leaves(far), jax.tree.leaves(found))]
    least, most = min(share.min() for share in shares), max(share.max() for share in shares)
    if most - least > 1e-4 or not 0 <= most < 1:
        raise ConfigError(f"model: its BatchNorm layers do not all keep one share of the old (from {least} to {most})")
    return round(float(np.median(np.concatenate([share.ravel() for share in shares]))), 5)

"""What a trial is before anything is trained or written: its data, its programs, its grid of steps."""

import json
from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsejax import flops
from sparsejax.data import DATASETS, Dataset
from sparsejax.leaves import named_leaves, select_leaves
from sparsejax.training.compiling import hurried
from sparsejax.training.config import Resolved
from sparsejax.training.errors import ConfigError
from sparsejax.training.evaluation import TestSet, make_test_set
from sparsejax.training.methods import make_transform, rates_of, update_grid
from sparsejax.training.profile import span
from sparsejax.training.programs import Programs, example_shape, get_programs, make_model, mask_report
from sparsejax.training.state import TrainState, init_state, masks_by_path


class Grid(NamedTuple):
    """The fixed grid of steps: where chunks end, where to evaluate, where to save.

    Attributes:
      chunk: most steps in one dispatch.
      start, update: masks change at start + k * update.
      epoch: steps of an epoch.
      evaluate: steps between evaluations, a multiple of `epoch`.
      save: steps between checkpoints, a multiple of `epoch`; 0: only at the end.
      total: steps of the run.
    """

    chunk: int
    start: int
    update: int
    epoch: int
    evaluate: int
    save: int
    total: int

    def after(self, step: int) -> int:
        """The end of the chunk that begins at `step`.

        An update at step n happens in the step from n to n + 1; chunks end there, so that a chunk sees one update (but
        for the last of a pruning schedule), and what it reports about masks holds from its last step on.
        """
        after_multiple = lambda every, first: (step - first) // every * every + every + first
        return min(
            after_multiple(self.chunk, 1), after_multiple(self.update, self.start + 1), after_multiple(self.epoch, 0)
        )

    def evaluates(self, step: int) -> bool:
        return step == self.total or step % self.evaluate == 0

    def saves(self, step: int) -> bool:
        return step == self.total or (self.save > 0 and step % self.save == 0)


class Trial(NamedTuple):
    """All that a run needs and that does not change; made before anything is written."""

    config: Resolved
    grid: Grid
    programs: Programs
    rates: dict[str, float]
    train_x: jax.Array
    train_y: jax.Array
    test: TestSet
    init: Callable[[], tuple[TrainState, dict[str, Any]]]
    like: TrainState
    sizes: dict[str, int]
    layers: dict[str, int]


def prepare(config: Resolved) -> Trial:
    """Loads the data and builds the programs of a resolved config; nothing is compiled yet, and nothing written.

    Raises:
      ConfigError: as `train`.
    """
    with span("data"):
        dataset, train_x, train_y, test = _load(config["dataset"], config["data_dir"], json.dumps(config["data"]))
    size, batch = len(dataset.train_y), config["batch_size"]
    epoch = size // batch  # the incomplete last batch of an epoch is dropped
    if epoch == 0:
        raise ConfigError(f"batch_size: {batch} is more than the {size} training examples")
    total = epoch * config["epochs"]
    seeds = jnp.asarray(config["seeds"], jnp.int32)
    transform = lambda seed: make_transform(config, total, sparsity=config["sparsity"], seed=seed)
    state_of = lambda params, seeds: init_state(transform, params, seeds)
    try:
        programs = get_programs(config, dataset, epoch)
        params = jax.eval_shape(programs.init_params, seeds)
        like = jax.eval_shape(state_of, params, seeds)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:  # the model's or the method's refusal names the leaf and the value
        raise ConfigError(f"method {config['method']!r}, model {config['model']!r}: {error}") from error

    def first_state(params, seeds):
        state = state_of(params, seeds)
        return state, mask_report(state, masks_by_path(state.opt_state))

    first = jax.jit(first_state, compiler_options=hurried())
    init = lambda: first(programs.init_params(seeds), seeds)
    sizes, layers = _costs(config, dataset, params, like)
    rates = rates_of(config)
    return Trial(config, _grid(config, epoch), programs, rates, train_x, train_y, test, init, like, sizes, layers)


def _grid(config: Resolved, epoch: int) -> Grid:
    chunk = config["chunk_steps"]
    start, update = update_grid(config) or (0, chunk)
    evaluate, save = epoch * config["eval_every_epochs"], epoch * config["checkpoint_every_epochs"]
    return Grid(chunk, start, update, epoch, evaluate, save, epoch * config["epochs"])


def _costs(config: Resolved, dataset: Dataset, params: Any, like: TrainState) -> tuple[dict[str, int], dict[str, int]]:
    """By path: the number of weights of each masked leaf of one seed, and the dense FLOPs of each layer."""
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), params)
    model = make_model(config, dataset)
    layers = flops.layer_flops(lambda params, x: model.apply({"params": params}, x), one, example_shape(dataset))
    masked = set(masks_by_path(like.opt_state)) or {path for path, _ in named_leaves(select_leaves(one))}
    return {path: prod(leaf.shape) for path, leaf in named_leaves(one) if path in masked}, layers


@lru_cache(maxsize=2)
def _load(name: str, data_dir: str, args: str) -> tuple[Dataset, jax.Array, jax.Array, TestSet]:
    """The data set on the host and on the device; trials of a sweep share it. `args` is JSON."""
    try:
        dataset = DATASETS[name](data_dir, **json.loads(args))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"dataset {name!r}: {error}") from error
    test = make_test_set(dataset.test_x, dataset.test_y)
    return dataset, jnp.asarray(dataset.train_x), jnp.asarray(dataset.train_y), test

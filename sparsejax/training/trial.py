"""What a trial is before anything is trained or written: its data, its programs, its grid of steps."""

import json
from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsejax import flops
from sparsejax.data import DATASETS
from sparsejax.leaves import Layout, default_where, named_leaves
from sparsejax.training.compiling import hurried
from sparsejax.training.config import Resolved
from sparsejax.training.distillation import make_teacher
from sparsejax.training.errors import ConfigError
from sparsejax.training.evaluation import TestSet, TestStream, largest_batch, make_test_set
from sparsejax.training.feeding import MemoryFeeds, StreamFeeds, feeds_of
from sparsejax.training.first_masks import first_masks
from sparsejax.training.init_from import loaded_start
from sparsejax.training.methods import changes_often, make_transform, rates_of, update_grid, update_steps
from sparsejax.training.model import init_model, layout_of, make_model, where_of
from sparsejax.training.peaks import peak_of
from sparsejax.training.placement import Placement, make_mesh
from sparsejax.training.profile import span
from sparsejax.training.programs import Programs, get_programs, mask_report
from sparsejax.training.start import Start, at_step, check_start
from sparsejax.training.state import TrainState, init_state, masks_by_path
from sparsejax.training.tasks import Examples, Streamed, Task, make_examples, make_task
from sparsejax.training.throughput import rates_of_a_step
from sparsejax.training.writers import check_installed


class Grid(NamedTuple):
    """The fixed grid of steps: where chunks end, where to evaluate, where to save.

    Attributes:
      chunk: most steps in one dispatch.
      start, update: masks change at start + k * update.
      epoch: steps of an epoch.
      evaluate: steps between evaluations, a multiple of `epoch`.
      save: steps between checkpoints, a multiple of `epoch`; 0: only at the end.
      total: steps of the run.
      single: further steps at which masks change.
      first: the step that it begins at.
    """

    chunk: int
    start: int
    update: int
    epoch: int
    evaluate: int
    save: int
    total: int
    single: tuple[int, ...] = ()
    first: int = 0

    def after(self, step: int) -> int:
        """The end of the chunk that begins at `step`.

        An update at step n happens in the step from n to n + 1; chunks end there, so that a chunk sees one update (but
        for the last of a pruning schedule), and what it reports about masks holds from its last step on. Masks that
        change every few steps (`changes_often`) cut no chunks: reports say what differs between the chunks' ends.
        """
        after_multiple = lambda every, first: (step - first) // every * every + every + first
        grids = (
            after_multiple(self.chunk, 1),
            after_multiple(self.update, self.start + 1),
            after_multiple(self.epoch, 0),
        )
        return min(*grids, self.total, *(at + 1 for at in self.single if at >= step))

    def evaluates(self, step: int) -> bool:
        return step == self.total or step % self.evaluate == 0

    def saves(self, step: int) -> bool:
        return step == self.total or (self.save > 0 and step % self.save == 0)


class Trial(NamedTuple):
    """All that a run needs and that does not change; made before anything is written.

    Attributes:
      config, grid, programs, task, place: what is trained, when, and where it lies.
      rates: numbers that the programs take as arguments.
      fixed: the seeds, and a teacher's variables if there is one.
      feed: (step, stop) -> what the steps of a chunk read.
      test: the test set.
      streamed: whether the data are read as training goes on.
      skipped: what of the data was left out as damaged before any batch.
      init: makes the state at step 0, and the report on its masks.
      like: the state's shapes.
      sizes: path -> number of weights of one seed, of the leaves that are (or could be) masked.
      layers: path -> dense FLOPs of one example forward.
      layout: of the model's leaves; None: Flax's.
    """

    config: Resolved
    grid: Grid
    programs: Programs
    task: Task
    place: Placement
    rates: dict[str, float]
    fixed: dict[str, Any]
    feed: MemoryFeeds | StreamFeeds
    test: TestSet | TestStream
    streamed: bool
    skipped: int
    init: Callable[[], tuple[TrainState, dict[str, Any]]]
    like: TrainState
    sizes: dict[str, int]
    layers: dict[str, int]
    layout: Layout | None

    @property
    def rates_of_a_step(self) -> dict[str, float]:
        """What `Throughput` counts: steps, samples or tokens of all seeds, and their share of the devices' peak."""
        examples = self.config["batch_size"] * len(self.config["seeds"])
        peak = peak_of(jax.local_devices()[0].device_kind)
        flops_of_a_step = flops.dense_training(sum(self.layers.values())) * examples
        whole = peak * self.place.devices if peak else None
        return rates_of_a_step(self.task.unit, self.task.units * examples, flops_of_a_step, whole)


def prepare(config: Resolved, start: Start | None = None, until: int | None = None) -> Trial:
    """Loads the data and builds the programs of a resolved config; nothing is compiled yet, and nothing written.

    Args:
      config: resolved.
      start, until: as `train`.

    Raises:
      ConfigError: as `train`.
    """
    check_installed(config["log"])
    begin = start or Start()
    with span("data"):
        data = load(config)
    try:
        model = make_model(config, data)
        task, place = make_task(config, data, model), Placement(make_mesh(config["mesh"]))
        _check_batch(config, place)
        with span("data"):
            examples, test = _on_devices(config, data, task, place)
        total = examples.epoch_steps * config["epochs"]
        teacher = make_teacher(config, data, task)
        programs = get_programs(config, data, examples.epoch_steps, teacher)
        seeds = jnp.asarray(config["seeds"], jnp.int32)
        variables = jax.eval_shape(programs.init_model, seeds)
        if loaded := loaded_start(config, variables):
            begin = Start(*loaded)._replace(**{k: v for k, v in begin._asdict().items() if v is not None})
        chosen = first_masks(config, model, task, place, examples.epoch_steps)
        make_state = lambda *given: _first_state(config, model, total, begin, *given)
        check_start(begin, variables, total, until, config["method"])
        like = jax.eval_shape(lambda *given: make_state(*given)[0], *variables, seeds, begin.masks)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:  # the model's or the method's refusal names the leaf and the value
        raise ConfigError(f"method {config['method']!r}, model {config['model']!r}: {error}") from error

    def first_state(params, model_state, seeds, masks):
        state, report = make_state(params, model_state, seeds, masks)
        return place.keep(state), report

    first = jax.jit(first_state, compiler_options=hurried())
    feed = feeds_of(examples, config["seeds"], config["batch_size"], place)

    def init():
        drawn = programs.init_model(seeds) if begin.params is None or begin.model_state is None else (None, None)
        given = jax.tree.map(jnp.array, (begin.params, begin.model_state))  # copies: the state will be donated
        params, model_state = (mine if yours is None else yours for mine, yours in zip(drawn, given, strict=True))
        masks = begin.masks
        if masks is None and chosen:
            masks = chosen(params, model_state, seeds, feed)
        return first(params, model_state, seeds, masks)

    sizes, layers = _costs(model, task, variables, like)
    fixed = {"seeds": place.put(seeds), "teacher": place.put(teacher.variables) if teacher else {}}
    grid, rates = _grid(config, examples.epoch_steps), rates_of(config)
    grid = grid._replace(first=begin.step, total=grid.total if until is None else until)
    streamed, skipped = data.streamed, data.skipped
    return Trial(
        config, grid, programs, task, place, rates, fixed, feed, test, streamed, skipped, init, like, sizes, layers,
        layout_of(model),
    )  # fmt: skip


def _first_state(
    config: Resolved,
    model: Any,
    total: int,
    start: Start,
    params: Any,
    model_state: Any,
    seeds: jax.Array,
    masks: Any = None,
):
    layout, ema = layout_of(model), config["ema_decay"] > 0

    def transform(seed, masks):
        leaves: dict[str, Any] = {"layout": layout, "where": where_of(model)}
        return make_transform(config, total, sparsity=config["sparsity"], seed=seed, masks=masks, **leaves)

    init = config["init"] if start.params is None else "default"  # given params are taken as they are
    state = init_state(transform, params, model_state, seeds, init=init, ema=ema, layout=layout, masks=masks)
    if start.step:
        state = state._replace(step=jnp.int32(start.step), opt_state=at_step(state.opt_state, start.step))
    return state, mask_report(state, masks_by_path(state.opt_state), layout)


def state_shapes(config: Resolved, model: Any, task: Task) -> TrainState:
    """The shapes of a run's state, which follow from its config and the data's shapes."""
    total = config["warmup_steps"] + config["epochs"] + 1  # no shape hangs on how long it is
    state = lambda seeds: _first_state(config, model, total, Start(), *init_model(model, task.example, seeds), seeds)[0]
    return jax.eval_shape(state, jnp.asarray(config["seeds"], jnp.int32))


def _check_batch(config: Resolved, place: Placement) -> None:
    part = config["batch_size"] // config["accumulate"]
    if part % place.devices:
        parts = f" in {config['accumulate']} parts" if config["accumulate"] > 1 else ""
        raise ConfigError(
            f"batch_size: {config['batch_size']}{parts} cannot be split evenly over the {place.devices} devices of mesh"
        )


def _grid(config: Resolved, epoch: int) -> Grid:
    chunk = config["chunk_steps"]
    start, update = (0, chunk) if changes_often(config) else update_grid(config) or (0, chunk)
    evaluate, save = epoch * config["eval_every_epochs"], epoch * config["checkpoint_every_epochs"]
    total = epoch * config["epochs"]
    return Grid(chunk, start, update, epoch, evaluate, save, total, update_steps(config))


def _costs(model: Any, task: Task, variables: Any, like: TrainState) -> tuple[dict[str, int], dict[str, int]]:
    """By path: the number of weights of each masked leaf of one seed, and the dense FLOPs of each layer."""
    params, model_state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), variables)

    def forward(params, x, model_state):
        return model.apply({"params": params, **model_state}, x)

    layers = flops.layer_flops(forward, params, task.example, model_state)
    taken, leaves = where_of(model) or default_where, named_leaves(params)
    # The last: all kernels are in one shared memory, which no method masks.
    masked = set(masks_by_path(like.opt_state)) or {path for path, leaf in leaves if taken(path, leaf)} or set(layers)
    return {path: prod(leaf.shape) for path, leaf in leaves if path in masked}, layers


def load(config: Resolved) -> Any:
    """The data set of a config; trials of a sweep share it.

    Raises:
      ConfigError: it cannot be read.
    """
    return _load(config["dataset"], config["data_dir"], json.dumps(config["data"]))


@lru_cache(maxsize=2)
def _load(name: str, data_dir: str, args: str) -> Any:
    try:
        return DATASETS[name](data_dir, **json.loads(args))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"dataset {name!r}: {error}") from error


def _on_devices(
    config: Resolved, data: Any, task: Task, place: Placement
) -> tuple[Examples | Streamed, TestSet | TestStream]:
    """The data on the devices, which trials of a sweep share, or what reads them."""
    fields = ("dataset", "data_dir", "data", "batch_size", "epoch_steps", "mesh")
    key = json.dumps([[config[field] for field in fields], task.name, task.units])
    if key not in _placed:
        while len(_placed) >= 2:
            _placed.pop(next(iter(_placed)))
        examples = make_examples(config, data, task)
        largest = largest_batch(task.example, config["batch_size"])
        how: dict[str, Any] = {"largest": largest, "multiple": place.devices, "put": place.put_split}
        if isinstance(examples, Streamed):
            return examples, TestStream(examples, **how)
        test = make_test_set(examples.test_x, examples.test_y, examples.test_real, **how)
        _placed[key] = data, examples._replace(arrays=place.put(examples.arrays)), test
    held, examples, test = _placed[key]
    if held is not data:  # the same name, loaded anew
        del _placed[key]
        return _on_devices(config, data, task, place)
    return examples, test


_placed: dict[str, tuple[Any, Examples, TestSet]] = {}

"""Pairs of what a method may meet: inner optimizers, wrappers, module systems, dtypes, stored masks, devices."""

import contextlib
import itertools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from contract_cases import FORMS, LAYOUTS, NnxModel, arrays
from devices import many_devices
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import sparsejax


class Cell(NamedTuple):
    """One choice of everything."""

    inner: str
    outer: str
    system: str
    dtype: str
    packed: bool
    devices: int
    method: str


def _needs_value():
    """An inner optimizer that cannot do without an extra argument."""

    def update(updates, state, params=None, *, value):
        return jax.tree.map(lambda g: g * (0.1 / (1 + value)).astype(g.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


_wide = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
_labels = lambda params: jax.tree.map(lambda p: "wide" if p.ndim > 1 else "narrow", params)

# eps is large because float16 has no 1e-8, and 0 / 0 is what the bare optimizer gives there too.
INNERS = {
    "adamw": lambda: optax.adamw(1e-2, eps=1e-3, weight_decay=0.1),
    "lion": lambda: optax.lion(1e-2),
    "rmsprop": lambda: optax.rmsprop(1e-2, eps=1e-3),
    "adagrad": lambda: optax.adagrad(1e-2, initial_accumulator_value=0.1),
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=8, momentum=0.9),
    "muon": lambda: optax.contrib.muon(1e-2),
    "lamb": lambda: optax.lamb(1e-2, eps=1e-3),
    "nadam": lambda: optax.nadam(1e-2, eps=1e-3),
    "schedule_free": lambda: optax.contrib.schedule_free(optax.sgd(0.1), 0.1),
    "masked": lambda: optax.chain(optax.masked(optax.trace(0.9), _wide), optax.scale(-0.1)),
    "partition": lambda: optax.partition({"wide": optax.adam(1e-2, eps=1e-3), "narrow": optax.sgd(0.1)}, _labels),
    "inject": lambda: optax.inject_hyperparams(optax.sgd)(
        momentum=0.9, learning_rate=optax.linear_schedule(1e-2, 1e-3, 10)
    ),
    "multisteps": lambda: optax.MultiSteps(optax.sgd(0.1, momentum=0.9), 2).gradient_transformation(),
    "if_finite": lambda: optax.apply_if_finite(optax.sgd(0.1, momentum=0.9), 2),
    "ema": lambda: optax.chain(optax.sgd(0.1), optax.ema(0.9)),
    "value": lambda: optax.chain(optax.clip_by_global_norm(1.0), _needs_value()),
}

METHODS = {
    "one_shot": (sparsejax.one_shot, dict(at_step=1)),
    "rigl": (sparsejax.rigl, dict(update_every=1, skip_step=False)),
    "sr_ste": (sparsejax.sr_ste, dict(lambda_w=0.1)),
}

SYSTEMS = ("linen", "tuples", "dataclasses", "nnx", "equinox", "nnx optimizer")


def wrapped(cell):
    """The cell's transformation: outer(method(inner))."""
    method, options = METHODS[cell.method]
    inner, options = (
        INNERS[cell.inner](),
        dict(sparsity=0.5, where=one_leaf, layout=LAYOUTS.get(cell.system), packed=cell.packed, **options),
    )
    if cell.outer == "inject":
        if cell.method == "rigl":
            options["drop_fraction"] = optax.linear_schedule(0.4, 0.2, 4)
        return optax.inject_hyperparams(method, static_args=sparsejax.static_args(method))(inner, **options)
    tx = method(inner, **options)
    big = lambda params: jax.tree.map(lambda p: p.size > 24, params)
    return {
        "chain": lambda: optax.chain(optax.clip_by_global_norm(50.0), tx),
        "multisteps": lambda: optax.MultiSteps(tx, 2),
        "masked": lambda: optax.masked(tx, big),
        "partition": lambda: optax.partition({True: tx, False: optax.sgd(0.1)}, big),
        "if_finite": lambda: optax.apply_if_finite(tx, 2),
    }[cell.outer]()


def one_leaf(path, leaf):
    """The dense layer alone: the cost of a cell is its selection."""
    return leaf.size > 300


OUTERS = ("chain", "multisteps", "inject", "masked", "partition", "if_finite")


def pairwise(levels, weak=()):
    """Cells in which every two levels of every two factors meet, but for the `weak` pairs of factors.

    Greedy: each cell takes the levels that meet most others for the first time. In the last two factors, where levels
    are of unequal cost, the first is taken where none is better.
    """
    factors = range(len(levels))

    def pairs(cell):
        return {(i, cell[i], j, cell[j]) for i, j in itertools.combinations(sorted(cell), 2) if (i, j) not in weak}

    def best(cell, factor, turn, missing):
        shift = turn % len(levels[factor]) if factor < len(levels) - 2 else 0
        options = levels[factor][shift:] + levels[factor][:shift]
        return max(options, key=lambda level: len(pairs({**cell, factor: level}) & missing))

    missing = {pair for some in itertools.product(*levels) for pair in pairs(dict(zip(factors, some, strict=True)))}
    cells = []
    for i, j in sorted(
        itertools.combinations(factors, 2), key=lambda pair: -len(levels[pair[0]]) * len(levels[pair[1]])
    ):
        for turn, b in itertools.product(range(len(levels[i])), levels[j]):
            cell = {i: levels[i][(turn + levels[j].index(b)) % len(levels[i])], j: b}
            if not pairs(cell) & missing:
                continue
            for factor in sorted(set(factors) - {i, j}, key=lambda factor: -len(levels[factor])):
                cell[factor] = best(cell, factor, len(cells), missing)
            missing -= pairs(cell)
            cells.append(Cell(*(cell[factor] for factor in factors)))
    return cells


def _sound(cell):
    """The cell, in float32 where the bare optimizer fails too: 0 / 0 in float16, a cond of two dtypes in optax."""
    narrow = cell.dtype == "float16" and cell.inner in ("adafactor", "muon")
    mixed = cell.outer == "if_finite" and cell.inner in ("adafactor", "inject")
    return cell._replace(dtype="float32") if narrow or mixed else cell


# Which method it is does not meet the inner optimizer: the table of methods sees to that.
LEVELS = (tuple(INNERS), OUTERS, SYSTEMS, ("float32", "bfloat16", "float16"), (False, True), (1, 8), tuple(METHODS))
CELLS = [_sound(cell) for cell in pairwise(LEVELS, weak={(0, 6)})]


def placements(params, mesh):
    """Kernels over both mesh axes where these divide them, the rest replicated."""

    def place(leaf):
        names = [None] * leaf.ndim
        for name in ("x", "y"):
            fits = [a for a in range(leaf.ndim) if names[a] is None and leaf.shape[a] % mesh.shape[name] == 0]
            if fits and leaf.ndim > 1:
                names[max(fits, key=lambda a: leaf.shape[a])] = name
        return NamedSharding(mesh, PartitionSpec(*names))

    return jax.tree.map(place, params)


def gathered(text):
    """How many elements the largest result of an all-gather or all-to-all has in a compiled program."""
    shapes = re.findall(r"\w+\[([\d,]*)\][^=\n]* (?:all-gather|all-to-all)(?:-start)?\(", text)
    return max([int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes], default=0)


def quickly_compiled():
    """A fixture: programs that run once, on small arrays, are not worth optimizing, which takes half of the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def trained(cell, steps=4):
    """The params before and after some steps, the optimizer states before and after, how often the step was traced."""
    with many_devices() if cell.devices > 1 else contextlib.nullcontext():
        return _trained(cell, steps)


def _trained(cell, steps):
    tx = wrapped(cell)
    extra = {"value": jnp.float32(1.0)} if cell.inner == "value" else {}
    make_params = FORMS["nnx" if cell.system == "nnx optimizer" else cell.system]
    params = make_params(arrays(cell.dtype))
    if cell.devices > 1:
        place = placements(params, jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2))
    else:
        place = jax.tree.map(lambda p: p.sharding, params)
    params = jax.device_put(params, place)
    draw = np.random.default_rng(5)
    grads = [
        jax.tree.map(lambda p: jax.device_put(jnp.asarray(draw.normal(size=p.shape), p.dtype), p.sharding), params)
        for _ in range(steps)
    ]
    begin = jax.tree.map(jnp.array, params)
    jax.block_until_ready((params, grads, begin))
    if cell.system == "nnx optimizer":
        return (begin, *_trained_nnx(tx, params, grads, extra))
    first = (tx.init if cell.method == "one_shot" and cell.devices == 1 else jax.jit(tx.init))(params)
    state = jax.tree.map(jnp.array, first)

    traced = []

    def step(params, state, grads):
        traced.append(1)
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1))
    for grad in grads:
        # One program at a time: the host's eight devices share few threads, and collectives of two programs can block.
        params, state = jax.block_until_ready(step(params, state, grad))
    return begin, params, first, state, len(traced)


def _trained_nnx(tx, params, grads, extra):
    model = NnxModel(arrays(jax.tree.leaves(params)[0].dtype))
    nnx.update(model, params)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    first = jax.tree.map(jnp.array, optimizer.opt_state)
    traced = []

    @nnx.jit
    def step(model, optimizer, grads):
        traced.append(1)
        optimizer.update(model, grads, **extra)

    for grad in grads:
        variables = jax.tree.map(
            lambda g: g, nnx.state(model, nnx.Param)
        )  # what nnx.grad gives: new Params, not arrays
        nnx.update(variables, grad)
        step(model, optimizer, variables)
        jax.block_until_ready(nnx.state((model, optimizer)))
    return nnx.as_pure(nnx.state(model, nnx.Param)), first, optimizer.opt_state, len(traced)

"""Pairs of everything that a sparse transformation may meet: inner optimizers, wrappers around it, module systems, dtypes, devices."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from contract_cases import FORMS, LAYOUTS, NnxModel, arrays
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import sparsejax


class Cell(NamedTuple):
    """One choice of everything."""

    inner: str
    outer: str
    system: str
    dtype: str
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
    "gmp": (sparsejax.gmp, dict(update_end=1, update_every=1)),
    "set": (sparsejax.set_, dict(update_every=1)),
    "rigl": (sparsejax.rigl, dict(update_every=1, skip_step=False)),
}

SYSTEMS = ("linen", "tuples", "dataclasses", "nnx", "equinox", "nnx optimizer")


def wrapped(cell):
    """The cell's transformation: outer(method(inner))."""
    method, options = METHODS[cell.method]
    inner, options = (
        INNERS[cell.inner](),
        dict(sparsity=0.5, where=two_leaves, layout=LAYOUTS.get(cell.system), **options),
    )
    if cell.outer == "inject":
        if cell.method in ("set", "rigl"):
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


def two_leaves(path, leaf):
    """Two leaves, a convolution and a dense layer, are enough here."""
    return leaf.size > 200


OUTERS = ("chain", "multisteps", "inject", "masked", "partition", "if_finite")


def pairwise(levels, weak=()):
    """Cells in which every two levels of every two factors meet, but for the `weak` pairs of factors; first levels preferred in the last two."""
    factors = [(i, j) for i, j in itertools.combinations(range(len(levels)), 2) if (i, j) not in weak]
    open_ = {(i, a, j, b) for i, j in factors for a in levels[i] for b in levels[j]}
    cells = []
    for i, j in sorted(factors, key=lambda pair: -len(levels[pair[0]]) * len(levels[pair[1]])):
        for turn, b in itertools.product(range(len(levels[i])), levels[j]):
            a = levels[i][(turn + levels[j].index(b)) % len(levels[i])]
            if (i, a, j, b) not in open_:
                continue
            cell = {i: a, j: b}
            for k in sorted(set(range(len(levels))) - {i, j}, key=lambda k: -len(levels[k])):
                gain = lambda c, k=k, cell=cell: sum(
                    ((m, v, k, c) if m < k else (k, c, m, v)) in open_ for m, v in cell.items()
                )
                offset = len(cells) % len(levels[k]) if k < len(levels) - 2 else 0
                cell[k] = max(levels[k][offset:] + levels[k][:offset], key=gain)
            open_ -= {(m, cell[m], n, cell[n]) for m, n in itertools.combinations(range(len(levels)), 2)}
            cells.append(Cell(*(cell[k] for k in range(len(levels)))))
    return cells


def _sound(cell):
    """The cell, in float32 where the bare optimizer itself fails: 0 / 0 in float16, or a cond of two dtypes inside optax."""
    narrow = cell.dtype == "float16" and cell.inner in ("adafactor", "muon")
    mixed = cell.outer == "if_finite" and cell.inner in ("adafactor", "inject")
    return cell._replace(dtype="float32") if narrow or mixed else cell


# Which method it is does not meet the inner optimizer: the table of methods sees to that.
LEVELS = (tuple(INNERS), OUTERS, SYSTEMS, ("float32", "bfloat16", "float16"), (1, 8), tuple(METHODS))
CELLS = [_sound(cell) for cell in pairwise(LEVELS, weak={(0, 5)})]


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


def trained(cell, steps=4):
    """Trains; gives the params before and after, the optimizer states before and after, and how often the step was traced."""
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
    if cell.system == "nnx optimizer":
        return (begin, *_trained_nnx(tx, params, grads, extra))
    first = (tx.init if cell.method in ("one_shot", "gmp") and cell.devices == 1 else jax.jit(tx.init))(params)
    state = jax.tree.map(jnp.array, first)

    traced = []

    def step(params, state, grads):
        traced.append(1)
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1))
    for grad in grads:
        params, state = step(params, state, grad)
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
    return nnx.as_pure(nnx.state(model, nnx.Param)), first, optimizer.opt_state, len(traced)

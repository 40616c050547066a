"""The contract test's tables: parameter trees in five module systems, inner optimizers, methods and their oracles."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import dst_oracles
import equinox as eqx
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
from flax import nnx

import sparsejax
from sparsejax import criteria, schedules

STEPS = 14
SHAPES = {
    "conv": (3, 3, 4, 8),
    "conv_bias": (8,),
    "dense": (16, 24),
    "dense_bias": (24,),
    "tied": (8, 16),
    "scale": (24,),
}


def arrays(dtype, seed=0):
    """One array for each name of SHAPES; the tied kernel has one value, so that ranking it is nothing but ties."""
    draw = np.random.default_rng(seed)
    values = {name: jnp.asarray(draw.normal(size=shape) * 0.5, dtype) for name, shape in SHAPES.items()}
    return values | {"tied": jnp.full(SHAPES["tied"], 0.25, dtype), "scale": jnp.ones(SHAPES["scale"], dtype)}


def linen(x):
    return {
        "Conv_0": {"kernel": x["conv"], "bias": x["conv_bias"]},
        "Dense_0": {"kernel": x["dense"], "bias": x["dense_bias"]},
        "LayerNorm_0": {"scale": x["scale"]},
        "Tied": {"kernel": x["tied"]},
    }


def tuples(x):
    return (
        {"w": x["conv"], "b": x["conv_bias"]},
        ({"w": x["dense"], "b": x["dense_bias"]}, {"w": x["tied"]}),
        x["scale"],
    )


@flax.struct.dataclass
class Layer:
    kernel: Any
    bias: Any = None
    name: str = flax.struct.field(pytree_node=False, default="layer")


def dataclasses(x):
    return {
        "a": Layer(x["conv"], x["conv_bias"]),
        "b": Layer(x["dense"], x["dense_bias"]),
        "c": Layer(x["tied"]),
        "scale": x["scale"],
    }


class EquinoxModel(eqx.Module):
    first: eqx.nn.Conv2d
    second: eqx.nn.Linear
    tied: eqx.nn.Linear
    scale: jax.Array
    activation: Callable = jax.nn.relu


def equinox(x):
    """The trainable half of a partitioned module: None at every leaf that is not an array."""
    key = jax.random.key(0)
    model = EquinoxModel(
        eqx.nn.Conv2d(8, 4, 3, key=key),
        eqx.nn.Linear(16, 24, key=key),
        eqx.nn.Linear(16, 8, False, key=key),
        x["scale"],
    )
    params, _ = eqx.partition(model, eqx.is_inexact_array)
    places = lambda m: (m.first.weight, m.first.bias, m.second.weight, m.second.bias, m.tied.weight)
    conv = jnp.reshape(jnp.moveaxis(x["conv"], 2, 0), (4, 8, 3, 3))
    leaves = (conv, jnp.reshape(x["conv_bias"][:4], (4, 1, 1)), x["dense"].T, x["dense_bias"], x["tied"])
    return eqx.tree_at(places, params, leaves)


class NnxModel(nnx.Module):
    """Leaves in NNX's Param variables."""

    def __init__(self, x):
        rngs = nnx.Rngs(0)
        self.first = nnx.Conv(4, 8, (3, 3), rngs=rngs)
        self.second = nnx.Linear(16, 24, rngs=rngs)
        self.tied = nnx.Linear(8, 16, use_bias=False, rngs=rngs)
        self.norm = nnx.LayerNorm(24, use_bias=False, rngs=rngs)
        places = ((self.first.kernel, "conv"), (self.first.bias, "conv_bias"), (self.second.kernel, "dense"))
        for place, name in (
            *places,
            (self.second.bias, "dense_bias"),
            (self.tied.kernel, "tied"),
            (self.norm.scale, "scale"),
        ):
            place.set_value(x[name])


def nnx_pure(x):
    return nnx.as_pure(nnx.state(NnxModel(x), nnx.Param))


FORMS = {"linen": linen, "tuples": tuples, "dataclasses": dataclasses, "equinox": equinox, "nnx": nnx_pure}
LAYOUTS = {"equinox": sparsejax.equinox_layout}


class Inner(NamedTuple):
    """An inner optimizer whose params-shaped state is `start` for a zero weight."""

    make: Callable[[], optax.GradientTransformation]
    start: float = 0.0


INNERS = {
    "adamw": Inner(lambda: optax.adamw(1e-2, weight_decay=0.1)),
    "momentum": Inner(
        lambda: optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.0625, momentum=0.5, nesterov=True))
    ),
    "lion": Inner(lambda: optax.lion(0.0078125, weight_decay=0.125)),
    # One norm over weights and gradients: it shows whatever is not masked on the way in.
    "clip": Inner(
        lambda: optax.chain(
            optax.add_decayed_weights(0.5), optax.clip_by_global_norm(1.0), optax.rmsprop(1e-2, momentum=0.9)
        )
    ),
    "adagrad": Inner(lambda: optax.adagrad(0.05, initial_accumulator_value=0.1), start=0.1),
    "sgd": Inner(lambda: optax.sgd(0.125, momentum=0.75)),
}


class Behind(NamedTuple):
    """What a straight-through row does with the dense weights v behind its params, which waives clauses 3 and 4 as they
    stand: the inner optimizer sees v and all gradients, and no moment is reset.

    Attributes:
      term: `(v, mask, backward, t) -> array`, added to the gradient; or None.
      share: `t -> [0, 1]`: after step t the params are share x v off the mask, which waives clause 1 while it is not 0.
      shrink: `t -> factor` of v off the mask after the step.
      moves: `(mask, backward, t) -> bool array`: which weights move, the others having neither gradient nor moments; or
        None, where all do.
      backward: whether the state has masks of what may move.
    """

    term: Callable | None = None
    share: Callable = lambda t: 0.0
    shrink: Callable = lambda t: 1.0
    moves: Callable | None = None
    backward: bool = False


class Row(NamedTuple):
    """One method in the table.

    Attributes:
      make: `(inner, form, **options) -> transformation`; the options `sparsity` and `seed` act in init alone.
      inner, dtype, form: what it is run with.
      target: the sparsity asked for.
      other: another sparsity, for the states that the same update must continue.
      begins: the oracle's densities at the target sparsity, from the shapes.
      share: the share of the target sparsity that holds after step t.
      rule: `(t, weights, grads, masks, counts) -> masks`, the whole answer; or None where growth is random.
      due: which steps select.
      skips: whether such a step leaves the params.
      layerwise: whether each leaf has a count of its own.
      keeps: of the random methods, `(t, weights, masks) -> masks` that must survive.
      random: whether the seed matters.
      fan_in: whether each neuron (index of the last axis) has a count of its own at the begin.
      counted: whether the sparsity says how many are kept; else the weights do, and the count never grows.
      adjusts: whether steps that select give kept weights new values: clause 3 holds from the next step on.
      dense_moments: whether the inner optimizer sees all gradients and keeps its moments where masks change.
      lays: the first step at which the masks are laid on; before, params, gradients and moments are dense.
      after: whether a step's masks are of the weights that it leaves.
      plain: whether the inner optimizer is handed the params and their gradients, and not something else.
      gathers: whether the test's devices cut the pattern's groups, which then have to be gathered.
      behind: of a straight-through method, what it does; the rule then ranks the dense weights after the step.
      checks: clause -> the check that stands in for the common one, where a method changes it by definition.
    """

    make: Callable
    inner: str
    dtype: Any
    form: str
    target: float
    other: float
    begins: Callable
    share: Callable
    due: Callable
    rule: Callable | None = None
    skips: bool = False
    layerwise: bool = True
    keeps: Callable | None = None
    random: bool = False
    fan_in: bool = False
    dense_moments: bool = False
    lays: int = 0
    after: bool = False
    plain: bool = True
    gathers: bool = False
    behind: Behind | None = None
    checks: Mapping[str, Callable] = MappingProxyType({})
    counted: bool = True
    adjusts: bool = False

    @property
    def constant(self):
        """Whether the count is the same at every step."""
        return self.begins in (_erk, _level)


def _uniform(shapes, sparsity):
    return [1 - sparsity] * len(shapes)


def _erk(shapes, sparsity):
    return oracles.erk(shapes, 1 - sparsity)


def _level(shapes, sparsity):
    return _uniform(shapes, sparsity)


def _fixed(t, weights, grads, masks, counts):
    return masks


def _prune(t, weights, grads, masks, counts):
    return oracles.magnitude(weights, masks, counts)


def _prune_globally(t, weights, grads, masks, counts):
    return oracles.global_magnitude(weights, masks, counts)


def _rigl(alpha, end, begin=0):
    def rule(t, weights, grads, masks, counts):
        share = oracles.fraction(alpha, end, t, begin)
        return [oracles.rigl(w, g, m, share) for w, g, m in zip(weights, grads, masks, strict=True)]

    return rule


def _per_leaf(rule):
    """A rule `(t, weight, grad, mask) -> mask` for each leaf."""
    return lambda t, weights, grads, masks, counts: [rule(t, *leaf) for leaf in zip(weights, grads, masks, strict=True)]


def _itop(t, weight, grad, mask):
    return dst_oracles.moved(weight, grad, mask, dst_oracles.falling(0.5, 0.005, 13, t))


def _granet(t, weights, grads, masks, count):
    return dst_oracles.granet(weights, grads, masks, count, dst_oracles.falling(0.5, 0.005, 13, t))


def _srigl(t, weights, grads, masks, counts):
    last = len(masks) - 1  # the output layer by name, whose neurons stay
    leaves = enumerate(zip(weights, grads, masks, strict=True))
    return [dst_oracles.srigl(*leaf, 0.5, 0.9, ablate=i != last) for i, leaf in leaves]


def _survive(rule):
    return lambda t, weights, masks: [rule(t, *leaf) for leaf in zip(weights, masks, strict=True)]


def _always(value):
    return lambda t: value


def _given(params, sparsity, seed=1):
    """Masks drawn by NumPy, of the oracle's ERK counts."""
    draw = np.random.default_rng(seed)
    leaves, structure = jax.tree.flatten(params)
    chosen = [i for i, leaf in enumerate(leaves) if leaf.ndim > 1 and leaf.size > 10]
    densities = _erk([leaves[i].shape for i in chosen], sparsity)
    masks = [None] * len(leaves)
    for i, density in zip(chosen, densities, strict=True):
        masks[i] = jnp.asarray(
            oracles.top(draw.normal(size=leaves[i].shape), oracles.kept(leaves[i].size, 1 - density))
        )
    return structure.unflatten(masks)


def _static_given(inner, form, *, sparsity, seed=0):
    return sparsejax.static(inner, masks=_given(FORMS[form](arrays(jnp.float32)), sparsity), seed=seed)


def _of(method, **fixed):
    def make(inner, form, *, sparsity, seed=0):
        return method(inner, sparsity=sparsity, seed=seed, layout=LAYOUTS.get(form), **fixed)

    return make


def _ramp(start, end, every, initial=0.0):
    """The share of the target that holds after each step of a gradual method."""

    def share(t):
        steps = [u for u in range(t + 1) if oracles.is_ramp_step(u, start, end, every, initial)]
        return oracles.cubic(1.0, initial, start, end, steps[-1]) if steps else 0.0

    return share, lambda t: oracles.is_ramp_step(t, start, end, every, initial)


def _gmp_global(inner, form, *, sparsity, seed=0):
    options = dict(update_end=10, update_every=3, initial_sparsity=sparsity / 4, distribution="global")
    return sparsejax.gmp(inner, sparsity=sparsity, seed=seed, layout=LAYOUTS.get(form), **options)


PLAN = (schedules.dense(2), schedules.gradual(6, 2), schedules.rewire(3, 0.3, 12), schedules.fixed())


def _custom(inner, form, *, sparsity, seed=0):
    """A method of a user's own: dense, pruned gradually, rewired, fixed."""

    def new_mask(leaf):
        pruned = leaf._replace(mask=(yield from sparsejax.keep_best(leaf)))
        return (yield from sparsejax.drop_and_grow(pruned, criteria.gradient))

    return sparsejax.sparse_wrapper(inner, new_mask, plan=PLAN, sparsity=sparsity, seed=seed, layout=LAYOUTS.get(form))


def _custom_rule(t, weights, grads, masks, counts):
    return _prune(t, weights, grads, masks, counts) if t <= 6 else _rigl(0.3, 12, 6)(t, weights, grads, masks, counts)


def _table():
    gmp, gmp_due = _ramp(1, 11, 2)
    wide, wide_due = _ramp(0, 10, 3, 0.25)
    plan, plan_due = _ramp(2, 6, 2)
    prunes, prunes_due = _ramp(0, 8, 2)
    seldom = lambda t: oracles.is_rigl_step(t, 2, 13)
    fall = lambda t, w, m: oracles.survivors(w, m, oracles.fraction(0.5, 13, t), dst_oracles.up)
    mutate = lambda t, w, m: oracles.survivors(w, m, dst_oracles.stair(0.2, 13, t))
    moves = lambda t: oracles.is_rigl_step(t, 2, 11)
    never = lambda t: False
    left = lambda t, weights, masks: [oracles.signed_survivors(w, m, 0.3) for w, m in zip(weights, masks, strict=True)]
    f32, bf16, f16 = jnp.float32, jnp.bfloat16, jnp.float16
    return {
        "static": Row(
            _of(sparsejax.static), "adamw", f32, "linen", 0.8, 0.6, _erk, _always(1.0), never, _fixed, random=True,
        ),
        "static masks": Row(_static_given, "clip", bf16, "tuples", 0.8, 0.6, _erk, _always(1.0), never, _fixed),
        "one_shot": Row(
            _of(sparsejax.one_shot, at_step=3), "momentum", f16, "dataclasses", 0.7, 0.9, _uniform,
            lambda t: float(t >= 3), lambda t: t == 3, _prune,
        ),
        "one_shot global": Row(
            # Lion takes signs: of 16-bit sums near zero, processors that round them only once give others.
            _of(sparsejax.one_shot, distribution="global"), "lion", f32, "nnx", 0.7, 0.9, _uniform,
            _always(1.0), lambda t: t == 0, _prune_globally, layerwise=False,
        ),
        "gmp": Row(
            _of(sparsejax.gmp, update_start=1, update_end=11, update_every=2), "adamw", f32, "equinox", 0.9, 0.5,
            _uniform, gmp, gmp_due, _prune,
        ),
        "gmp global": Row(
            _gmp_global, "momentum", bf16, "linen", 0.8, 0.4, _uniform, wide, wide_due, _prune_globally,
            layerwise=False,
        ),
        "set": Row(
            _of(sparsejax.set_, update_every=2, drop_fraction=0.3), "adagrad", f32, "tuples", 0.8, 0.6, _erk,
            _always(1.0), lambda t: oracles.is_rigl_step(t, 2, None), keeps=left, random=True,
        ),
        "rigl": Row(
            _of(sparsejax.rigl, update_every=2, update_end=11), "sgd", bf16, "equinox", 0.8, 0.6, _erk,
            _always(1.0), moves, _rigl(0.3, 11), skips=True, random=True,
        ),
        "itop": Row(
            _of(sparsejax.itop, update_every=2, update_end=13), "momentum", f32, "dataclasses", 0.8, 0.6, _erk,
            _always(1.0), seldom, _per_leaf(_itop), random=True,
        ),
        # Its momentum is dense by definition: clauses 3 and 4 hold with all gradients, and no moment is reset.
        "snfs": Row(
            _of(sparsejax.snfs, update_every=2, update_end=13), "sgd", f32, "linen", 0.8, 0.6, _level,
            _always(1.0), seldom, layerwise=False, keeps=_survive(fall), random=True, dense_moments=True,
        ),
        "dsr": Row(
            _of(sparsejax.dsr, update_every=2, threshold=0.3), "lion", f32, "tuples", 0.8, 0.6, _level,
            _always(1.0), lambda t: oracles.is_rigl_step(t, 2, None), layerwise=False,
            keeps=_survive(lambda t, w, m: m & (abs(oracles.exact(w)) >= 0.3 * 2**6)), random=True,
        ),
        "mest": Row(
            _of(sparsejax.mest, update_every=2, update_end=13), "adagrad", f32, "nnx", 0.8, 0.6, _level,
            _always(1.0), seldom, keeps=_survive(mutate), random=True,
        ),
        "srigl": Row(
            _of(sparsejax.srigl, update_every=2, saliency_threshold=0.9, drop_fraction=0.5), "adamw", bf16, "linen",
            0.8, 0.6, _erk, _always(1.0), lambda t: oracles.is_rigl_step(t, 2, None), _srigl, skips=True, random=True,
            fan_in=True,
        ),
        "granet": Row(
            _of(sparsejax.granet, update_every=2, update_end=8, rewire_end=13), "clip", f32, "equinox", 0.8, 0.4,
            _uniform, prunes, lambda t: prunes_due(t) or t in (10, 12), _granet, layerwise=False,
        ),
        "custom": Row(
            _custom, "clip", f32, "nnx", 0.75, 0.5, _uniform, plan, lambda t: plan_due(t) or t == 9, _custom_rule,
        ),
    }  # fmt: skip


ROWS = _table()

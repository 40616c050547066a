"""Dynamic sparse training against NumPy: three trees of weights, at least five updates, masks equal bit by bit."""

import functools
import itertools

import dst_oracles as rules
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from contract_cells import quickly_compiled

import sparsejax
from sparsejax.selection import as_count
from sparsejax.selection.lots import lots
from sparsejax.training.records import relative_training_flops
from sparsejax.transforms.shares import dealt, mean_of
from sparsejax.transforms.start import leaf_key

SHAPES = {"conv1": (3, 3, 4, 8), "dense1": (20, 24), "head": (24, 10)}
STEPS, EVERY, END = 15, 2, 12
compile_quickly = pytest.fixture(autouse=True)(quickly_compiled)


class Run:
    """The course of one tree: `weights[t]`, `masks[t]` and `momenta[t]` are what step t starts from."""

    def __init__(self, key, weights, grads, masks, momenta):
        self.key, self.weights, self.grads, self.masks, self.momenta = key, weights, grads, masks, momenta

    def lots(self, t):
        """The random numbers of each leaf at step t; drawing them is the library's, ranking by them the oracle's."""
        return [_drawn(self.key, t, name, shape) for name, shape in SHAPES.items()]


@functools.partial(jax.jit, static_argnums=(2, 3))
def _drawn_keys(key, t, name, shape):
    drawn = lots(jax.random.fold_in(leaf_key(key, f"{name}/kernel"), t), shape)
    return drawn.keys(*drawn.operands)


def _drawn(key, t, name, shape):
    return np.asarray(_drawn_keys(key, t, name, shape)).astype(np.float64)


def runs(method, **options):
    """Three trees, of other weights, scales, gradients and seeds each, trained in one program."""
    inner = optax.sgd(0.05, momentum=0.8)
    make = lambda seed=0: method(inner, seed=seed, update_every=EVERY, **options)
    params, grads = trees(), trees(STEPS)

    def program(params, grads, seed):
        state = make(seed).init(params)

        def step(carry, grad):
            params, state = carry
            updates, after = make().update(grad, state, params)
            return (optax.apply_updates(params, updates), after), (params, state)

        last, before = jax.lax.scan(step, (params, state), grads)
        return before, last, state.key

    before, last, keys = jax.device_get(jax.jit(jax.vmap(program))(params, grads, jnp.arange(3)))
    return [_run(keys[k], before, last, grads, k) for k in range(3)]


def trees(*lead):
    """Three trees of normal numbers, of other scales, leaf by leaf too."""
    draw = np.random.default_rng(4 + len(lead))
    numbers = lambda shape, scale: np.stack(
        [draw.normal(size=(*lead, *shape)) * scale * each for each in (1.0, 0.2, 3.0)]
    )
    scaled = zip(SHAPES.items(), (1.0, 2.0, 3.0), strict=True)
    return {name: {"kernel": jnp.asarray(numbers(shape, scale), jnp.float32)} for (name, shape), scale in scaled}


def _run(key, before, last, grads, k):
    """Tree k of the runs."""
    steps = lambda tree: [[leaf[k][t] for leaf in jax.tree.leaves(tree)] for t in range(STEPS)]
    course = lambda pick: [*steps(pick(before)), [leaf[k] for leaf in jax.tree.leaves(pick(last))]]
    parts = (lambda pair: pair[1].masks, lambda pair: pair[1].inner_state)
    grads = steps(jax.tree.map(np.asarray, grads))
    return Run(key, course(lambda pair: pair[0]), grads, *(course(part) for part in parts))


def check(found, rule, end=None, least=5):
    """At each update the masks are the rule's, at other steps they stay."""
    for run in found:
        moved = 0
        for t in range(STEPS):
            due = t > 0 and t % EVERY == 0 and (end is None or t <= end)
            wanted = rule(run, t) if due else run.masks[t]
            for name, one, mask in zip(SHAPES, wanted, run.masks[t + 1], strict=True):
                np.testing.assert_array_equal(mask, one, err_msg=f"step {t}, {name}")
            moved += any((a != b).any() for a, b in zip(run.masks[t], run.masks[t + 1], strict=True))
        assert moved >= least


def each(rule, run, t):
    return [rule(*leaf) for leaf in zip(run.weights[t], run.grads[t], run.masks[t], strict=True)]


@pytest.mark.parametrize("initial", [0.0, 0.5])
def test_granet(initial):
    """Dense to sparse, and from random ERK masks at 50 %: the same rule, pruning until step 8, moving until 14."""
    found = runs(sparsejax.granet, sparsity=0.9, initial_sparsity=initial, update_end=8, rewire_end=14)
    sizes = [int(np.prod(shape)) for shape in SHAPES.values()]
    if initial:
        erk = oracles.erk(list(SHAPES.values()), 1 - initial)
        wanted = [oracles.kept(size, 1 - density) for size, density in zip(sizes, erk, strict=True)]
        assert [[int(m.sum()) for m in run.masks[0]] for run in found] == [wanted] * 3
    else:
        assert all(mask.all() for run in found for mask in run.masks[0])

    def rule(run, t):
        keep = oracles.kept(sum(sizes), oracles.cubic(0.9, initial, 0, 8, t))
        return rules.granet(run.weights[t], run.grads[t], run.masks[t], keep, rules.falling(0.5, 0.005, 14, t))

    check(found, rule, end=13)
    assert {sum(int(m.sum()) for m in run.masks[9]) for run in found} == {oracles.kept(sum(sizes), 0.9)}


def test_granet_by_layer():
    """With a distribution each layer has its own count, and pruning and moving are one cut."""
    found = runs(sparsejax.granet, sparsity=0.8, update_end=8, distribution=sparsejax.distributions.uniform)

    def rule(run, t):
        counts = [oracles.kept(m.size, oracles.cubic(0.8, 0.0, 0, 8, t)) for m in run.masks[t]]
        masks = oracles.magnitude(run.weights[t], run.masks[t], counts)
        return [rules.moved(*leaf, 0.5) for leaf in zip(run.weights[t], run.grads[t], masks, strict=True)]

    check(found, rule)


def test_itop():
    """Half of the weights move at first, by gradient, ever fewer later."""
    found = runs(sparsejax.itop, sparsity=0.8, update_end=14)
    check(
        found, lambda run, t: each(lambda w, g, m: rules.moved(w, g, m, rules.falling(0.5, 0.005, 14, t)), run, t), 13
    )


def test_snfs():
    """Weights move between layers, in proportion to mean momentum, and the total stays."""
    found = runs(sparsejax.snfs, sparsity=0.8, update_end=14, drop_fraction=0.5)

    def rule(run, t):
        return rules.snfs(run.weights[t], run.momenta[t], run.masks[t], oracles.fraction(0.5, 14, t))

    check(found, rule, end=13)
    counts = [[int(mask.sum()) for mask in run.masks[t]] for run in found for t in (0, STEPS)]
    assert len(set(map(sum, counts))) == 1 and counts[0] != counts[1]
    for run in found:
        assert all((moment[~mask] != 0).any() for moment, mask in zip(run.momenta[9], run.masks[9], strict=True))


def test_dsr():
    """The threshold halves and doubles; the total stays while layers gain and lose."""
    found = runs(sparsejax.dsr, sparsity=0.7, threshold=0.1)
    thresholds = {k: [np.float32(0.1)] for k in range(3)}

    def rule(run, t):
        course = thresholds[found.index(run)]
        masks, threshold = rules.dsr(run.weights[t], run.masks[t], run.lots(t), course[-1], 0.14)
        course.append(threshold)
        return masks

    check(found, rule, least=4)
    steps = [b / a for course in thresholds.values() for a, b in itertools.pairwise(course)]
    assert {0.5, 2.0} <= set(steps)
    counts = [[int(mask.sum()) for mask in run.masks[t]] for run in found for t in (0, STEPS)]
    assert len(set(map(sum, counts))) == 1 and counts[0] != counts[1]


@pytest.mark.parametrize(("extra", "weight"), [(0.0, 0.5), (0.2, 0.0)], ids=["EM", "EM&S"])
def test_mest(extra, weight):
    """EM drops 20, 10, 0 % of the target; EM&S keeps the target and grows to 120, 110, 100 % of it."""
    found = runs(sparsejax.mest, sparsity=0.75, extra=extra, gradient_weight=weight, update_end=END)
    share = 0.0 if extra else 0.2

    def rule(run, t):
        new = []
        for w, g, m, lot in zip(run.weights[t], run.grads[t], run.masks[t], run.lots(t), strict=True):
            target = oracles.kept(m.size, 0.75)
            upper = oracles.kept(m.size, 0.75 - rules.stair(extra, END, t) * 0.25)
            lower = target - int(rules.stair(share, END, t) * target + 1e-6)
            new.append(rules.mest(w, g, m, lot, lower, upper, weight))
        return new

    check(found, rule, end=END if extra else END - 1)
    sizes = [int(np.prod(shape)) for shape in SHAPES.values()]
    count = lambda t: [int(mask.sum()) for mask in found[0].masks[t]]
    assert count(0) == [oracles.kept(size, 0.75 - extra * 0.25) for size in sizes]
    assert count(STEPS) == [oracles.kept(size, 0.75) for size in sizes]


def test_srigl():
    """Constant fan-in, and neurons that are ablated, but not the output layer's."""
    found = runs(sparsejax.srigl, sparsity=0.8, saliency_threshold=0.9, drop_fraction=0.5)

    def rule(run, t):
        last = run.masks[t][-1]
        return [
            rules.srigl(w, g, m, 0.5, 0.9, ablate=m is not last)
            for w, g, m in zip(run.weights[t], run.grads[t], run.masks[t], strict=True)
        ]

    check(found, rule)
    for run in found:
        neurons = lambda t, run=run: [mask.reshape(-1, mask.shape[-1]).sum(0) for mask in run.masks[t]]
        assert [len(set(counts.tolist())) for counts in neurons(0)] == [1, 1, 1]
        first, last = neurons(0), neurons(STEPS)
        assert [int(a.sum()) for a in first] == [int(b.sum()) for b in last]
        assert any((counts == 0).any() for counts in last[:2]) and (last[2] == first[2]).all()
        for counts in last:
            alive = counts[counts > 0]
            assert alive.max() - alive.min() <= 1


def test_dealing_out():
    """Any total over any layers: exactly the total if it fits, nobody above the room while others have some."""
    draw = np.random.default_rng(0)
    cases, layers = 200, 6
    room = draw.integers(0, 40, (cases, layers))
    most = room + draw.integers(0, 5, (cases, layers))
    scores = draw.choice([0.0, 0.5, 1.0, 7.0], (cases, layers)).astype(np.float32)
    amount = draw.integers(0, 200, cases)
    deal = lambda n, score, few, all_: dealt(as_count(n), score, as_count(few), as_count(all_))
    arrays = [
        jnp.asarray(x) for x in (amount.astype(np.uint32), scores, room.astype(np.uint32), most.astype(np.uint32))
    ]
    found = jax.jit(jax.vmap(deal))(*arrays)
    assert (found.hi == 0).all()
    wanted = [rules.dealt(*case) for case in zip(amount, scores.astype(float), room, most, strict=True)]
    np.testing.assert_array_equal(found.lo, np.stack(wanted))
    np.testing.assert_array_equal(np.asarray(found.lo).sum(1), np.minimum(amount, most.sum(1)))


def test_a_mean_does_not_depend_on_the_order():
    draw = np.random.default_rng(1)
    values = draw.exponential(size=(64, 48)).astype(np.float32)
    mask = draw.random((64, 48)) < 0.3
    order = draw.permutation(64 * 48)
    mixed = [jnp.asarray(x.ravel()[order].reshape(48, 64)) for x in (values, mask)]
    found = float(mean_of(jnp.asarray(values), jnp.asarray(mask), (0, 1))[0, 0])
    assert found == float(mean_of(*mixed, (0, 1))[0, 0])
    np.testing.assert_allclose(found, values[mask].mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("method", "args", "wanted"),
    [
        ("snfs", {}, (0.2 + 1) / 3),
        ("dsr", {}, 0.1),
        ("mest", {}, 0.1),
        ("itop", {"update_every": 9}, (2.7 + 0.2 + 1) / 30),
        ("itop", {"update_every": 9, "grow": "random"}, 0.1),
        ("srigl", {"update_every": 9}, (2.7 + 0.2 + 1) / 30),
        ("granet", {"update_every": 9}, (2.7 + 0.2 + 1) / 30),
    ],
)
def test_training_flops(method, args, wanted):
    """A layer at density 0.1 throughout: 3 f_S, and 2 f_S + f_D where all gradients are needed."""
    masks = [{"step": 0, "density": {"kernel": [0.1]}}]
    found = relative_training_flops({"method": method, "method_args": args}, masks, {"kernel": 100}, 10)
    assert found == pytest.approx(wanted)


SGD = optax.sgd(0.1, momentum=0.9)
REFUSED = {
    "itop grow": (lambda: sparsejax.itop(SGD, sparsity=0.5, grow="up"), ["grow='up'", "gradient", "random"]),
    "itop rounding": (lambda: sparsejax.itop(SGD, sparsity=0.5, drop_rounding="up"), ["drop_rounding='up'", "ceil"]),
    "itop fraction": (lambda: sparsejax.itop(SGD, sparsity=0.5, final_fraction=2.0), ["final_fraction=2.0", "[0, 1]"]),
    "granet initial": (
        lambda: sparsejax.granet(SGD, sparsity=0.5, initial_sparsity=0.6),
        ["initial_sparsity=0.6", "[0, sparsity=0.5]"],
    ),
    "granet end": (lambda: sparsejax.granet(SGD, sparsity=0.5, rewire_end=5), ["rewire_end=5", "10000"]),
    "snfs pattern": (lambda: sparsejax.snfs(SGD, sparsity=0.5, pattern=sparsejax.nm(1, 2)), ["NM", "redistribute"]),
    "snfs momentum": (
        lambda: _update(sparsejax.snfs(optax.sgd(0.1), sparsity=0.5)), ["kernel", "no momentum", "adamw"],
    ),
    "dsr threshold": (lambda: sparsejax.dsr(SGD, sparsity=0.5, threshold=0.0), ["threshold=0.0", "above 0"]),
    "mest extra": (lambda: sparsejax.mest(SGD, sparsity=0.5, extra=2.0), ["extra=2.0", "[0, 1]"]),
    "mest weight": (lambda: sparsejax.mest(SGD, sparsity=0.5, gradient_weight=-1.0), ["gradient_weight=-1.0"]),
    "srigl gamma": (lambda: sparsejax.srigl(SGD, sparsity=0.5, saliency_threshold=1.5), ["saliency_threshold=1.5"]),
}  # fmt: skip


def _update(tx):
    params = {"kernel": jnp.ones((4, 4))}
    return tx.update(params, tx.init(params), params)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    make, words = REFUSED[name]
    with pytest.raises(ValueError) as error:
        make()
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("method", [sparsejax.snfs, sparsejax.dsr, sparsejax.srigl])
def test_stacked_leaves_are_layers_of_their_own(method):
    """Two stacked layers of very different scales: counts move between them too, or the fan-in of each is its own."""
    scales = np.array([1.0, 20.0], np.float32)[:, None, None]
    draw = np.random.default_rng(0).normal(size=(7, 2, 12, 8)).astype(np.float32) * scales
    options = {"threshold": 0.5} if method is sparsejax.dsr else {}
    tx = method(SGD, sparsity=0.75, update_every=2, layout=sparsejax.stacked("layers/*"), **options)
    params = {"layers": {"kernel": jnp.asarray(draw[0])}}
    state, step = jax.jit(tx.init)(params), jax.jit(tx.update)
    masks = [np.asarray(state.masks["layers"]["kernel"])]
    for grad in draw[1:]:
        updates, state = step({"layers": {"kernel": jnp.asarray(grad)}}, state, params)
        params = optax.apply_updates(params, updates)
        masks.append(np.asarray(state.masks["layers"]["kernel"]))
    counts = [mask.sum((1, 2)).tolist() for mask in masks]
    assert {sum(count) for count in counts} == {48} and (masks[0] != masks[-1]).any()
    if method is sparsejax.srigl:
        assert set(map(tuple, counts)) == {(24, 24)} and (masks[-1].sum(1) == 3).all()
    else:
        assert counts[-1][1] > counts[0][1] == 24

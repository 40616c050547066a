"""Straight-through methods against NumPy: three trees of weights, twelve steps, masks equal bit by bit."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import straight_oracles as rules
from contract_cells import quickly_compiled

import sparsejax
from sparsejax.leaves import equinox_layout
from sparsejax.patterns import pattern_mask

SHAPES = {"conv1": (3, 3, 16, 8), "dense1": (32, 12), "head": (16, 8)}
STEPS, RATE = 12, 0.125
compile_quickly = pytest.fixture(autouse=True)(quickly_compiled)
SGD = optax.sgd(RATE)


def numbers(seed, *lead):
    """Three trees of normal numbers, of other scales."""
    draw = np.random.default_rng(seed)
    scale = np.array([1.0, 0.25, 4.0], np.float32)
    one = lambda shape: (
        draw.normal(size=(3, *lead, *shape)).astype(np.float32) * scale.reshape(3, *[1] * len((*lead, *shape)))
    )
    return {name: {"kernel": one(shape)} for name, shape in SHAPES.items()}


def trained(tx, scale=1):
    """The weights, the gradients, the masks at init, the params and masks after each step, each by tree."""
    params, grads = numbers(1), jax.tree.map(lambda g: g * np.float32(scale), numbers(2, STEPS))

    def program(params, grads):
        state = tx.init(params)

        def step(carry, grad):
            params, state = carry
            updates, state = tx.update(grad, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), (params, state)

        return state, jax.lax.scan(step, (params, state), grads)[1]

    first, (course, states) = jax.device_get(jax.jit(jax.vmap(program))(params, grads))
    leaves = lambda tree, *at: [leaf[at] for leaf in jax.tree.leaves(tree)]
    for k in range(3):
        steps = [(leaves(course, k, t), leaves(states.masks, k, t)) for t in range(STEPS)]
        yield leaves(params, k), [leaves(grads, k, t) for t in range(STEPS)], leaves(first.masks, k), steps


def check(tx, choose, *, start=0, every=1, end=None, first=True, least=5, scale=1, **rule):
    """The masks of every step are the oracle's; so are the params, to rounding."""
    due = lambda t: (t >= start and (t - start) % every == 0 and (end is None or t <= end)) or t == end
    held = lambda t, v, m: choose(t, v) if due(t) else m
    for weights, grads, masks, steps in trained(tx, scale):
        begin = [choose(0, w) if first else np.ones(w.shape, bool) for w in weights]
        for one, mask in zip(begin, masks, strict=True):
            np.testing.assert_array_equal(mask, one, err_msg="at init")
        wanted, moved = rules.course(weights, grads, RATE, held, begin, **rule), 0
        for t, (mine, oracle) in enumerate(zip(steps, wanted, strict=True)):
            for name, a, b in zip(SHAPES, mine[1], oracle[1], strict=True):
                np.testing.assert_array_equal(a, b, err_msg=f"step {t}, {name}")
            for a, b in zip(mine[0], oracle[0], strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
            moved += any((a != b).any() for a, b in zip(mine[1], begin if t == 0 else steps[t - 1][1], strict=True))
        assert moved >= least


def decay(v, m, t):
    return np.where(m, np.float32(0), np.float32(0.125) * v)


def test_ste():
    check(sparsejax.ste(SGD), lambda t, v: rules.groups(v, 2, 4))


def test_sr_ste():
    tx = sparsejax.sr_ste(SGD, pattern=sparsejax.nm(1, 4), lambda_w=0.125)
    check(tx, lambda t, v: rules.groups(v, 1, 4), term=decay)


# Of each tree's leaf: its pattern, and the oracle's.
PATTERNS = [
    {
        "conv1/*": (sparsejax.nm(1, 4, tile=4), lambda v: rules.tiles(v, 1, 4, 4)),
        "dense1/*": (sparsejax.fan_in(), lambda v: rules.neurons(v, 0.75)),
        "head/*": (sparsejax.block((4, 2)), lambda v: rules.blocks(v, 0.75, 4, 2)),
    },
    {
        "conv1/*": (sparsejax.channel(), lambda v: rules.channels(v, 0.75)),
        "dense1/*": (sparsejax.nm(1, 4, axis=-1), lambda v: rules.groups(v, 1, 4, -1)),
        "head/*": (sparsejax.nm(1, 8, tile=8), lambda v: rules.tiles(v, 1, 8, 8)),
    },
]


@pytest.mark.parametrize("patterns", PATTERNS, ids=["small", "large"])
def test_any_pattern(patterns):
    """SR-STE chooses by whatever pattern, another for each leaf."""
    tx = sparsejax.sr_ste(SGD, sparsity=0.75, pattern={glob: p for glob, (p, _) in patterns.items()}, lambda_w=0.125)
    by_shape = {shape: rule for shape, (_, rule) in zip(SHAPES.values(), patterns.values(), strict=True)}
    check(tx, lambda t, v: by_shape[v.shape](v), term=decay, scale=8)  # means over many weights move little


def test_dnw():
    check(sparsejax.dnw(SGD, sparsity=0.8), lambda t, v: rules.best(v, 0.8))


def test_asp():
    """N:M once; leaves whose sizes do not fit stay dense; what is off the mask then moves no more."""
    tx = sparsejax.asp(SGD, at_step=5)
    for weights, grads, _, steps in trained(tx):
        assert len(steps[0][1]) == 2  # dense1 has 12 outputs
        for i, leaf in enumerate((0, 2)):
            v, mask = weights[leaf], None
            for t in range(STEPS):
                mask = rules.groups(v, 2, 4) if t == 5 else mask
                v = v - np.float32(RATE) * grads[t][leaf]
                v = v if mask is None else np.where(mask, v, np.float32(0))
                np.testing.assert_array_equal(steps[t][1][i], np.ones(v.shape, bool) if mask is None else mask)
                np.testing.assert_allclose(steps[t][0][leaf], v, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "exponential"])
def test_mdgf(schedule):
    """Dense until step 2, then masked weights fade, to 0 at step 10."""
    options = {"update_end": 10} if schedule == "exponential" else {}

    def share(t):
        after = max(t - 2, 0)
        return max(0.0, 1 - 0.125 * after) if schedule == "linear" else float(np.exp(-0.125 * after)) * (t < 10)

    tx = sparsejax.mdgf(SGD, schedule=schedule, decay=0.125, update_start=2, **options)
    choose = lambda t, v: rules.groups(v, 2, 4)
    check(tx, choose, start=2, first=False, share=share)


@pytest.mark.parametrize(("schedule", "m"), [("stepwise", 16), ("geometric", 2), ("densify", 2)])
def test_sdgf(schedule, m):
    """Frames of equal length between steps 1 and 11 (none of them a whole number of steps)."""
    frames = rules.frames(schedule, 1, m)

    def choose(t, v):
        n, m = frames[rules.frame_at(len(frames), 1, 11, t)]
        return rules.groups(v, n, m)

    tx = sparsejax.sdgf(SGD, schedule=schedule, pattern=sparsejax.nm(1, m), update_start=1, update_end=11)
    check(tx, choose, start=1, first=False)
    assert frames[-1] == (1, m) and len(frames) == 4 + (schedule == "stepwise")


@pytest.mark.parametrize(("every", "norm", "pattern"), [(1, "l2", None), (2, "l1", sparsejax.nm(1, 4))])
def test_top_kast(every, norm, pattern):
    """Forward the top quarter, backward the top half; the rest stays, to the bit, until it enters."""
    number, held = np.float32, {}

    def term(v, m, t):
        slope = v if norm == "l2" else np.sign(v)
        return number(0.125) * np.where(m, slope, slope / number(0.25))

    wide = (lambda v: rules.best(v, 0.5)) if pattern is None else (lambda v: rules.groups(v, 2, 4))
    narrow = (lambda v: rules.best(v, 0.75)) if pattern is None else (lambda v: rules.groups(v, 1, 4))

    def moves(v, m, t):
        if t < 0 or t % every == 0:
            held[v.shape] = wide(v)
        assert held[v.shape][m].all()
        return held[v.shape]

    options = {"sparsity": 0.75} if pattern is None else {"pattern": pattern}
    tx = sparsejax.top_kast(SGD, penalty=0.125, norm=norm, update_every=every, **options)
    check(tx, lambda t, v: narrow(v), every=every, term=term, moves=moves)


@pytest.mark.parametrize("factor", [0.99, 0.0])
def test_iss_p(factor):
    """The smallest 70 % shrink until step 8, where they are cut off; with 0, they are after each step."""
    tx = sparsejax.iss_p(SGD, sparsity=0.7, shrink=factor, update_end=8)
    shrink = lambda t: factor if t < 8 else 0.0
    allowed = lambda v, m, t: np.ones(v.shape, bool) if t < 8 else m
    choose = lambda t, v: rules.best(v, 0.7)
    check(tx, choose, end=8, first=False, shrink=shrink, share=lambda t: float(t < 8), moves=allowed, least=4)


def test_a_frame_that_does_not_fit_a_leaf_is_told():
    params = {"Dense_0": {"kernel": jnp.ones((12, 8))}}
    make = lambda pattern: sparsejax.sdgf(SGD, schedule="geometric", pattern=pattern)
    with pytest.raises(ValueError, match=r"Dense_0/kernel.*m = 32 does not divide"):
        make(sparsejax.nm(1, 4)).init(params)
    state = make(sparsejax.nm(1, 4, indivisible="skip")).init(params)
    assert state.masks["Dense_0"]["kernel"].all()


ranked = jax.jit(pattern_mask, static_argnums=(0, 2, 3))


@pytest.mark.parametrize(("shape", "tile"), [((8, 6), 2), ((8, 7), 4), ((3, 8, 5), 3), ((8, 6), 100)])
def test_a_tile_of_outputs_shares_its_places(shape, tile):
    """Also where the last tile is not full, and where outputs come first."""
    scores = np.random.default_rng(0).integers(-20, 20, shape).astype(np.float32)
    pattern = sparsejax.nm(2, 4, tile=tile)
    wanted = np.zeros(shape, bool)
    for *lead, begin in itertools.product(*(range(n) for n in shape[:-2]), range(0, shape[-1], tile)):
        total = scores[tuple(lead)][:, begin : begin + tile].sum(-1)
        for group in range(0, shape[-2], 4):
            for place in sorted(range(4), key=lambda i: -total[group + i])[:2]:  # stable: the first among equals
                wanted[(*lead, group + place, slice(begin, begin + tile))] = True
    np.testing.assert_array_equal(ranked(pattern, jnp.asarray(scores), 2), wanted)
    first = jnp.asarray(np.moveaxis(scores, -1, 0))
    if scores.ndim == 2:
        found = ranked(pattern, first, 2, equinox_layout("w", first))
        np.testing.assert_array_equal(found, np.moveaxis(wanted, -1, 0))


def test_the_order_of_channels_that_keeps_most():
    """Against all 35 ways to part eight channels in two groups, and no swap that gains is left in larger ones."""
    kept = lambda w, order: np.sort(np.abs(w)[order].reshape(-1, 4, w.shape[1]), 1)[:, 2:].sum()
    draw, reached = np.random.default_rng(0), 0
    find = jax.jit(sparsejax.channel_permutation)
    for _ in range(10):
        w = draw.normal(size=(8, 6)).astype(np.float32) * draw.exponential(size=(8, 1)).astype(np.float32)
        order = np.asarray(find(w))
        parts = [(*c, *(i for i in range(8) if i not in c)) for c in itertools.combinations(range(8), 4)]
        most = max(kept(w, list(part)) for part in parts)
        assert sorted(order) == list(range(8)) and kept(w, np.arange(8)) - 1e-4 <= kept(w, order) <= most + 1e-4
        reached += kept(w, order) >= most - 1e-4
        mask = np.asarray(sparsejax.permuted_mask(jnp.asarray(w), order))
        np.testing.assert_allclose(np.abs(w)[mask].sum(), kept(w, order), rtol=1e-5)
        assert (mask[order].reshape(2, 4, 6).sum(1) == 2).all()
    assert reached >= 8
    w = draw.normal(size=(24, 5)).astype(np.float32)
    order = np.asarray(find(w))
    for i, j in itertools.combinations(range(24), 2):
        other = order.copy()
        other[[i, j]] = other[[j, i]]
        assert kept(w, other) <= kept(w, order) + 1e-3


REFUSED = {
    "lambda_w": (lambda: sparsejax.sr_ste(SGD, lambda_w=-1.0), ["lambda_w=-1.0", "at least 0"]),
    "every": (lambda: sparsejax.ste(SGD, update_every=0), ["update_every=0", "at least 1"]),
    "dnw sparsity": (lambda: sparsejax.dnw(SGD), ["sparsity is missing"]),
    "nm sparsity": (lambda: sparsejax.ste(SGD, sparsity=0.9, pattern=sparsejax.nm(2, 4)), ["sparsity=0.9", "0.5"]),
    "asp multiples": (lambda: sparsejax.asp(SGD, multiples=(0, 8)), ["multiples=(0, 8)", "positive"]),
    "asp pattern": (lambda: sparsejax.asp(SGD, pattern=sparsejax.fan_in()), ["asp needs one nm(n, m)"]),
    "asp leaves": (
        lambda: sparsejax.asp(SGD).init({"kernel": jnp.ones((8, 8))}),
        ["where matches none", "kernel", "multiples=(8, 16)"],
    ),
    "mdgf schedule": (lambda: sparsejax.mdgf(SGD, schedule="cosine"), ["schedule='cosine'", "exponential"]),
    "mdgf end": (lambda: sparsejax.mdgf(SGD, schedule="exponential"), ["update_end is missing"]),
    "sdgf schedule": (lambda: sparsejax.sdgf(SGD, schedule="up"), ["schedule='up'", "densify"]),
    "sdgf pattern": (lambda: sparsejax.sdgf(SGD, pattern=sparsejax.channel()), ["sdgf needs one nm(n, m)"]),
    "kast backward": (
        lambda: sparsejax.top_kast(SGD, sparsity=0.8, backward_sparsity=0.9),
        ["backward_sparsity=0.9", "[0, sparsity=0.8]"],
    ),
    "kast norm": (lambda: sparsejax.top_kast(SGD, sparsity=0.8, norm="l3"), ["norm='l3'", "'l1'"]),
    "iss_p shrink": (lambda: sparsejax.iss_p(SGD, sparsity=0.8, shrink=1.5), ["shrink=1.5", "[0, 1]"]),
    "tile": (lambda: sparsejax.nm(2, 4, tile=0), ["tile=0", "at least 1"]),
    "tile axis": (
        lambda: sparsejax.ste(SGD, pattern=sparsejax.nm(2, 4, axis=-1, tile=2)).init({"kernel": jnp.ones((8, 8))}),
        ["kernel", "tile=2", "no output axis"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    make, words = REFUSED[name]
    with pytest.raises(ValueError) as error:
        make()
    assert all(word in str(error.value) for word in words), str(error.value)


EVERY = {"sr_ste": {"pattern": sparsejax.nm(2, 4, tile=2)}, "mdgf": {}, "top_kast": {"sparsity": 0.5}}


@pytest.mark.parametrize("name", EVERY)
def test_init_under_transformations(name):
    """One structure under jit and eval_shape and over a step, no shared buffer, empty trees are fine."""
    tx = getattr(sparsejax, name)(optax.adam(0.1), **EVERY[name])
    params = {"Dense_0": {"kernel": jnp.arange(256.0).reshape(16, 16), "bias": jnp.zeros(16)}}
    types = lambda tree: [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]
    shapes, eager = jax.eval_shape(tx.init, params), tx.init(params)
    jitted = jax.jit(tx.init)(params)
    assert types(shapes) == types(eager) == types(jax.eval_shape(tx.update, params, eager, params)[1])
    assert jax.tree.structure(shapes) == jax.tree.structure(eager)
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(eager), jax.tree.leaves(jitted), strict=True))
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, eager))]
    assert len(set(pointers)) == len(pointers)
    for empty in ({}, (), {"a": None}):
        state = tx.init(empty)
        assert tx.update(empty, state, empty)[0] == empty and sparsejax.get_masks(state) == empty

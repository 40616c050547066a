"""What single methods promise beyond the table: hard scores and ties, stacked layers, N:M, blocks, lanes, donation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from contract_cells import gathered, placements, quickly_compiled
from devices import many_devices
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from small_tree import SGD, small, updated

import sparsejax
from sparsejax import criteria, schedules

EVERY_METHOD = (sparsejax.static, sparsejax.one_shot, sparsejax.gmp, sparsejax.set_, sparsejax.rigl)
LATER_METHODS = (sparsejax.itop, sparsejax.snfs, sparsejax.dsr, sparsejax.mest, sparsejax.srigl, sparsejax.granet)
compile_quickly = pytest.fixture(autouse=True)(quickly_compiled)


def at_step_4(method):
    """The options with which a method selects at step 4."""
    if method is sparsejax.static:
        return {}
    if method is sparsejax.one_shot:
        return {"at_step": 4}
    return {"update_every": 4} | ({"update_end": 4} if method is sparsejax.gmp else {})


@pytest.mark.parametrize("method", EVERY_METHOD + LATER_METHODS)
def test_init_under_transformations(method):
    """One structure under jit and eval_shape, no shared buffer, empty trees are fine; tree_map_params works."""
    tx = method(optax.adam(0.1), sparsity=0.5)
    params = small()
    shapes = jax.eval_shape(tx.init, params)
    eager, jitted = tx.init(params), jax.jit(tx.init)(params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(lambda x: (x.shape, x.dtype), eager)
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(eager), jax.tree.leaves(jitted), strict=True))
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, eager))]
    assert len(set(pointers)) == len(pointers)
    mapped = optax.tree_utils.tree_map_params(tx, lambda x: x + 1, eager)
    assert (mapped.inner_state[0].mu["Dense_0"]["kernel"] == 1).all()
    np.testing.assert_array_equal(mapped.inner_state[0].count, eager.inner_state[0].count)
    for empty in ({}, (), {"a": None}):
        state = tx.init(empty)
        assert tx.update(empty, state, empty)[0] == empty
        assert sparsejax.get_masks(state) == empty


def test_given_masks_can_be_donated():
    masks = {"Dense_0": {"kernel": jnp.arange(96).reshape(12, 8) % 2 == 0, "bias": None}}
    wanted, params = np.asarray(masks["Dense_0"]["kernel"]), small()
    tx = sparsejax.static(SGD, masks=masks)
    state = tx.init(params)
    given = sparsejax.set_masks(state, masks)
    jax.jit(lambda m: jax.tree.map(jnp.logical_not, m), donate_argnums=0)(masks)
    for kept in (state, given):
        np.testing.assert_array_equal(sparsejax.get_masks(kept)["Dense_0"]["kernel"], wanted)


@pytest.mark.parametrize(
    "method", [sparsejax.one_shot, sparsejax.gmp, sparsejax.set_, sparsejax.rigl, sparsejax.static]
)
def test_random_ties(method):
    """Clause 2: ties broken at random keep the count, differ between seeds, and spare what is not tied."""
    params = {"kernel": jnp.full((12, 8), 0.5).at[0].set(2.0)}
    grads = jax.tree.map(jnp.ones_like, params)
    found = []
    for seed in (0, 1):
        tx = method(SGD, sparsity=0.75, ties="random", seed=seed, **at_step_4(method))
        after = updated(tx, params, grads, 4)[1]
        assert after.sum() == 24
        assert after[0].all() or method not in (sparsejax.one_shot, sparsejax.gmp)
        found.append(after)
    assert (found[0] != found[1]).any()


def test_scores_that_are_hard_to_order():
    """Clause 2: NaN scores are last, subnormal weights keep their order, -0 is 0."""
    values = np.arange(1, 17, dtype=np.float32) * np.float32(1e-45)
    params = {"kernel": jnp.asarray(np.stack([np.zeros(16, np.float32), -values, np.full(16, -0.0, np.float32)]))}
    tx = sparsejax.one_shot(SGD, sparsity=0.75)
    _, after, _ = updated(tx, params, params, 0)
    np.testing.assert_array_equal(after, oracles.top(np.abs(np.asarray(params["kernel"], np.float64)), 12))
    assert after[1, 4:].all() and after.sum() == 12
    score = lambda leaf: jnp.where(leaf.weight > 0, jnp.nan, leaf.weight)
    plan = (sparsejax.schedules.gradual(2, 2),)
    tx = sparsejax.sparse_wrapper(SGD, lambda leaf: sparsejax.keep_best(leaf, score), plan=plan, sparsity=0.25)
    params = {"kernel": jnp.asarray(np.linspace(-1, 1, 96, dtype=np.float32).reshape(12, 8))}
    _, after, _ = updated(tx, params, params, 2)
    np.testing.assert_array_equal(after, np.arange(96).reshape(12, 8) < 72)


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_stacked_leaves_are_ranked_slice_by_slice(method):
    """Layers of very different scales in one leaf: each keeps its own count, and its own largest weights."""
    scales = jnp.asarray([1.0, 1e-3, 1e3])[:, None, None]
    draw = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 12, 8)), jnp.float32)
    params, grads = {"layers": {"kernel": draw[0] * scales}}, {"layers": {"kernel": draw[1] * scales}}
    tx = method(SGD, sparsity=0.75, layout=sparsejax.stacked("layers/*"), **at_step_4(method))
    before, after, _ = updated(tx, params, grads, 4)
    assert after.sum((1, 2)).tolist() == [24, 24, 24]
    weights, grad = np.asarray(params["layers"]["kernel"]), np.asarray(grads["layers"]["kernel"])
    for i in range(3):
        if method is sparsejax.rigl:
            np.testing.assert_array_equal(after[i], oracles.rigl(weights[i], grad[i], before[i], 0.3))
        elif method is sparsejax.set_:
            assert (
                after[i][oracles.signed_survivors(weights[i], before[i], 0.3)].all() and (after[i] != before[i]).any()
            )
        elif method is not sparsejax.static:
            np.testing.assert_array_equal(after[i], oracles.top(np.abs(weights[i]), 24))
    assert (before[0] != before[1]).any() or method in (sparsejax.one_shot, sparsejax.gmp)


@pytest.mark.parametrize("method", [sparsejax.set_, sparsejax.rigl])
def test_n_of_m_moves_weights_inside_their_group(method):
    params, grads = small(1), small(2)
    tx = method(SGD, pattern=sparsejax.nm(2, 4), update_every=4)
    before, after, _ = updated(tx, params, grads, 4)
    for mask in (before, after):
        assert (mask.reshape(3, 4, 8).sum(1) == 2).all()
    assert (before & ~after).sum() > 0
    weights = np.asarray(params["Dense_0"]["kernel"])
    left = (oracles.survivors if method is sparsejax.rigl else oracles.signed_survivors)(weights, before, 0.3)
    assert after[left].all()
    if method is sparsejax.rigl:  # of each group's free places those of the largest gradient
        grad = np.abs(np.asarray(grads["Dense_0"]["kernel"]))
        score = np.where(left, np.inf, grad).reshape(3, 4, 8)
        wanted = np.stack([oracles.top(score[i, :, j], 2) for i in range(3) for j in range(8)])
        np.testing.assert_array_equal(after.reshape(3, 4, 8), wanted.reshape(3, 8, 4).swapaxes(1, 2))


def test_constant_fan_in_drops_over_the_layer_and_grows_inside_each_neuron():
    params, grads = small(1), small(2)
    tx = sparsejax.rigl(SGD, sparsity=0.6, pattern=sparsejax.fan_in(), update_every=4)
    before, after, _ = updated(tx, params, grads, 4)
    for mask in (before, after):
        assert mask.sum(0).tolist() == [oracles.kept(12, 0.6)] * 8
    left = oracles.survivors(np.asarray(params["Dense_0"]["kernel"]), before, 0.3)
    assert len(set(left.sum(0))) > 1  # some neurons lose more than others
    score = np.where(left, np.inf, np.abs(np.asarray(grads["Dense_0"]["kernel"])))
    wanted = np.stack([oracles.top(score[:, neuron], before[:, neuron].sum()) for neuron in range(8)], axis=1)
    np.testing.assert_array_equal(after, wanted)
    assert (before != after).any()


@pytest.mark.parametrize("pattern", [None, sparsejax.fan_in(), sparsejax.block((2, 2))], ids=str)
def test_pruning_while_dropping_is_pruning_before(pattern):
    """GraNet's two steps, in one selection where a layer is one group, give the masks of the two rules in turn."""
    plan = (schedules.Phase(until=12, every=2, ramp=True, drop_fraction=0.4),)

    def in_turn(leaf):
        pruned = leaf._replace(mask=(yield from sparsejax.keep_best(leaf)))
        return (yield from sparsejax.drop_and_grow(pruned, criteria.gradient))

    rules = (in_turn, partial(sparsejax.drop_and_grow, grow=criteria.gradient, prune=True))
    found = []
    for rule in rules:
        tx = sparsejax.sparse_wrapper(SGD, rule, plan=plan, sparsity=0.75, pattern=pattern)
        params = {"Dense_0": {"kernel": jax.random.normal(jax.random.key(0), (16, 24))}}
        state, step, masks = tx.init(params), jax.jit(tx.update), []
        for t in range(9):
            grads = {"Dense_0": {"kernel": jax.random.normal(jax.random.key(t + 1), (16, 24))}}
            updates, state = step(grads, state, params)
            params = optax.apply_updates(params, updates)
            masks.append(np.asarray(sparsejax.get_masks(state)["Dense_0"]["kernel"]))
        found.append(masks)
    assert (found[0][2] != found[0][4]).any()
    np.testing.assert_array_equal(found[0], found[1])


def test_n_of_m_gradually():
    """GMP keeps 4, 3 and 2 of every 4 one after the other, always the largest of the group."""
    params = small(1)
    tx = sparsejax.gmp(SGD, pattern=sparsejax.nm(1, 4), update_end=8, update_every=1)
    state, weights, seen = jax.jit(tx.init)(params), np.abs(np.asarray(params["Dense_0"]["kernel"])), []
    update = jax.jit(tx.update)
    for _ in range(9):
        _, state = update(jax.tree.map(jnp.zeros_like, params), state, params)
        mask = np.asarray(state.masks["Dense_0"]["kernel"]).reshape(3, 4, 8)
        counts = set(mask.sum(1).ravel().tolist())
        assert len(counts) == 1
        seen.append(counts.pop())
        for i, j in np.ndindex(3, 8):
            np.testing.assert_array_equal(mask[i, :, j], oracles.top(weights.reshape(3, 4, 8)[i, :, j], seen[-1]))
    shares = [oracles.cubic(1.0, 0.0, 0, 8, t) for t in range(9)]
    assert seen == [oracles.kept(4, 0.75 * share) for share in shares]
    assert seen[-1] == 1 and sorted(set(seen), reverse=True) == [4, 3, 2, 1]


@pytest.mark.parametrize("pattern", [sparsejax.block((4, 4)), sparsejax.block((5, 3)), sparsejax.channel()])
def test_structured_patterns(pattern):
    """Whole blocks and channels move, and their number stays."""
    params, grads = small(1), small(2)
    tx = sparsejax.rigl(SGD, sparsity=0.5, pattern=pattern, update_every=4, drop_fraction=0.5)
    before, after, weights = updated(tx, params, grads, 4)
    rows, columns = (12, 1) if pattern == sparsejax.channel() else pattern.shape
    blocks = lambda mask: [
        mask[i : i + rows, j : j + columns] for i in range(0, 12, rows) for j in range(0, 8, columns)
    ]
    assert all(block.all() or not block.any() for mask in (before, after) for block in blocks(mask))
    units = [sum(bool(block.any()) for block in blocks(mask)) for mask in (before, after)]
    assert units == [oracles.kept(len(blocks(before)), 0.5)] * 2
    assert (before != after).any() and (weights[~after] == 0).all()


def test_lanes_keep_their_own_calendar():
    """Clause 8 under vmap: where counters differ, a lane moves at its own steps alone, as it would by itself."""
    params, grads = small(1), small(2)
    tx = sparsejax.rigl(SGD, sparsity=0.5, update_every=2, skip_step=False)
    state = jax.jit(tx.init)(params)
    states = jax.tree.map(lambda x: jnp.stack([x, x]), state)._replace(count=jnp.asarray([2, 3]))
    _, after = jax.jit(jax.vmap(tx.update, in_axes=(None, 0, None)))(grads, states, params)
    _, alone, _ = updated(tx, params, grads, 2)
    found = np.asarray(after.masks["Dense_0"]["kernel"])
    np.testing.assert_array_equal(found[0], alone)
    np.testing.assert_array_equal(found[1], state.masks["Dense_0"]["kernel"])


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_lanes_on_many_devices(axis_type):
    """Clause 6, vmapped: seeds trained together on eight devices get the masks that each gets alone on one."""
    draw = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 32)), jnp.float32)
    params, grads, seeds = {"kernel": draw[0]}, {"kernel": draw[1]}, jnp.arange(2)
    tx = sparsejax.rigl(SGD, sparsity=0.5, update_every=2)
    init = jax.jit(jax.vmap(lambda seed: sparsejax.rigl(SGD, sparsity=0.5, update_every=2, seed=seed).init(params)))
    states = init(seeds)._replace(count=jnp.full(2, 2))
    alone = [updated(tx, params, grads, 2, jax.tree.map(lambda x, k=k: x[k], states))[1] for k in range(2)]
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    places = placements(params, mesh)
    lanes = lambda x: NamedSharding(mesh, PartitionSpec(None, *(("x", "y") if x.shape[1:] == (64, 32) else ())))
    with many_devices(), jax.set_mesh(mesh):
        states = jax.device_put(states, jax.tree.map(lanes, states))
        args = (jax.device_put(grads, places), states, jax.device_put(params, places))
        program = jax.jit(jax.vmap(tx.update, in_axes=(None, 0, None))).lower(*args).compile()
        _, after = program(*args)
    assert gathered(program.as_text()) < 64 * 32 // 8
    np.testing.assert_array_equal(after.masks["kernel"], np.stack(alone))


def test_unfactored_and_factored_moments():
    """Clause 4: adafactor's factored moments are left alone where masks change, its momentum is fresh there."""
    inner = optax.adafactor(0.01, min_dim_size_to_factor=8, momentum=0.9)
    params, grads = small(1), small(2)
    tx = sparsejax.rigl(inner, sparsity=0.5, update_every=1, skip_step=True)
    state = jax.jit(tx.init)(params)
    old = state.masks["Dense_0"]["kernel"]

    def fill(x):
        return jnp.where(old, 7, 0).astype(x.dtype) if x.shape == old.shape else jnp.full_like(x, 7 if x.ndim else 0)

    state = state._replace(inner_state=jax.tree.map(fill, state.inner_state), count=jnp.int32(1))
    seen = []

    def spy(updates, inner_state, params=None):
        seen.append(inner_state)
        return inner.update(updates, inner_state, params)

    spied = sparsejax.rigl(optax.GradientTransformation(inner.init, spy), sparsity=0.5, update_every=1)
    _, after = spied.update(grads, state, params)
    stay = np.asarray(after.masks["Dense_0"]["kernel"] & old)
    assert stay.sum() < old.sum()
    for leaf in jax.tree.leaves(seen[0]):
        if leaf.shape == stay.shape:
            np.testing.assert_array_equal(leaf, np.where(stay, 7, 0))
        elif leaf.ndim:
            assert (leaf == 7).all()
    assert {leaf.shape for leaf in jax.tree.leaves(seen[0])} > {(12,), (8,), (12, 8)}

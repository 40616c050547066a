"""The straight-through engine beyond the contract: who owns a weight, wide masters, lanes, what the inner is told."""

import contract_cells
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract_cells import quickly_compiled
from small_tree import SGD

import sparsejax
from sparsejax.packing import unpack
from sparsejax.transforms import choose_best, every_step, straight_through

compile_quickly = pytest.fixture(autouse=True)(quickly_compiled)
NM = sparsejax.nm(2, 4)


def tree(seed=0, dtype=jnp.float32):
    draw = np.random.default_rng(seed)
    return {
        "a": {"kernel": jnp.asarray(draw.normal(size=(16, 8)), dtype), "bias": jnp.zeros(8, dtype)},
        "b": {"kernel": jnp.asarray(draw.normal(size=(8, 12)), dtype)},
    }


def trained(tx, params, steps=6, edit=lambda params: params, seed=1):
    """The params, the state and the course of both, in one program."""

    def program(params, grads):
        state = tx.init(params)
        params = sparsejax.apply_masks(params, sparsejax.get_masks(state))

        def step(carry, grad):
            params, state = carry
            updates, state = tx.update(grad, state, params)
            params = edit(optax.apply_updates(params, updates))
            return (params, state), (params, state)

        return jax.lax.scan(step, (params, state), grads)

    draw = np.random.default_rng(seed)
    grads = jax.tree.map(lambda p: jnp.asarray(draw.normal(size=(steps, *p.shape)), p.dtype), params)
    return (*jax.jit(program)(params, grads), grads)


def test_what_the_user_does_to_params_is_not_undone():
    """Weights clipped on the mask stay clipped, and the dense weights begin from there; those off it are untouched."""
    clip = lambda params: jax.tree.map(lambda w: jnp.clip(w, -0.3, 0.3), params)
    (_, last), (params, states), grads = trained(sparsejax.ste(optax.sgd(0.1)), tree(), edit=clip)
    del last
    for name in ("a", "b"):
        w, m = np.asarray(params[name]["kernel"]), np.asarray(states.masks[name]["kernel"])
        v, g = np.asarray(states.extra.dense[name]["kernel"]), np.asarray(grads[name]["kernel"])
        assert (np.abs(w) <= np.float32(0.3)).all() and (np.abs(v[0]) > 0.5).any()
        for t in range(1, 6):
            start = np.where(m[t - 1], w[t - 1], v[t - 1])
            np.testing.assert_allclose(v[t], start - 0.1 * g[t], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_float32_masters_of_bfloat16_params(packed):
    """With float32 masters, bfloat16 params are what float32 params would round to, with the same masks."""
    params = tree(dtype=jnp.bfloat16)
    wide = jax.tree.map(lambda w: w.astype(jnp.float32), params)
    make = lambda **options: sparsejax.sr_ste(optax.sgd(2e-3), pattern=NM, lambda_w=0.1, **options)
    tx = make(dense_dtype=jnp.float32, packed=packed)
    (last, state), (course, states), grads = trained(tx, params, 20)

    def step(carry, grad):  # float32 throughout, given the same gradients
        weights, state = carry
        updates, state = make().update(grad, state, weights)
        return (optax.apply_updates(weights, updates), state), (weights, state)

    begin = make().init(wide)
    carry = sparsejax.apply_masks(wide, begin.masks), begin
    (weights, exact), _ = jax.jit(lambda *args: jax.lax.scan(step, *args))(
        carry, jax.tree.map(lambda g: g.astype(jnp.float32), grads)
    )
    masks, dense = sparsejax.get_masks(state), sparsejax.get_dense(state, last)
    for name in ("a", "b"):
        assert dense[name]["kernel"].dtype == jnp.float32 and last[name]["kernel"].dtype == jnp.bfloat16
        np.testing.assert_array_equal(masks[name]["kernel"], exact.masks[name]["kernel"])
        v = sparsejax.get_dense(exact, weights)[name]["kernel"]
        np.testing.assert_allclose(dense[name]["kernel"], v, rtol=1e-5, atol=1e-6)
        rounded = jnp.where(masks[name]["kernel"], dense[name]["kernel"], 0).astype(jnp.bfloat16)
        np.testing.assert_array_equal(np.float32(last[name]["kernel"]), np.float32(rounded))
    # Without masters steps of this size are lost in rounding.
    (coarse, _), _, _ = trained(make(), params, 20)
    lost = np.abs(np.float32(coarse["a"]["kernel"]) - np.float32(last["a"]["kernel"]))
    assert (lost > 4e-3).any()
    del course, states


def test_without_decay_it_is_ste():
    plain = trained(sparsejax.ste(optax.adam(0.1)), tree())
    zero = trained(sparsejax.sr_ste(optax.adam(0.1), lambda_w=0.0), tree())
    decayed = trained(sparsejax.sr_ste(optax.adam(0.1), lambda_w=0.5), tree())
    same = lambda a, b: all(
        (np.asarray(x) == np.asarray(y)).all() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
    assert same(plain, zero) and not same(plain, decayed)
    injected = optax.inject_hyperparams(sparsejax.sr_ste, static_args=sparsejax.static_args(sparsejax.sr_ste))
    assert same(plain[0][0], trained(injected(optax.adam(0.1), lambda_w=0.0), tree())[0][0])


def test_lanes_are_loops():
    """vmap over trees gives what one tree after the other gives, bit by bit (of powers of two, in any program)."""
    tx = sparsejax.sr_ste(optax.sgd(0.125, momentum=0.5), lambda_w=0.125, packed=True)
    trees = [tree(seed) for seed in range(3)]
    stack = jax.tree.map(lambda *x: jnp.stack(x), *trees)
    init, update = jax.jit(jax.vmap(tx.init)), jax.jit(jax.vmap(tx.update))
    single, one = jax.jit(tx.init), jax.jit(tx.update)
    state = init(stack)
    states = [single(t) for t in trees]
    for k in range(4):
        grads = [tree(10 * k + seed) for seed in range(3)]
        updates, state = update(jax.tree.map(lambda *x: jnp.stack(x), *grads), state, stack)
        stack = optax.apply_updates(stack, updates)
        for i, grad in enumerate(grads):
            updates, states[i] = one(grad, states[i], trees[i])
            trees[i] = optax.apply_updates(trees[i], updates)
    for i in range(3):
        for a, b in zip(jax.tree.leaves((stack, state)), jax.tree.leaves((trees[i], states[i])), strict=True):
            np.testing.assert_array_equal(a[i], b)


def _told(seen):
    def update(grads, state, params=None, *, masks, value=0.0):
        seen.append((masks, value))
        return jax.tree.map(lambda g: -0.1 * g, grads), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


@pytest.mark.parametrize("chained", [False, True])
def test_an_inner_that_asks_is_given_masks(chained):
    """By its signature, or where `wants_masks` says so; other extra arguments pass through."""
    seen = []
    inner = optax.chain(optax.clip(1.0), _told(seen)) if chained else _told(seen)
    options = {"wants_masks": True} if chained else {}
    tx = straight_through(inner, choose_best, plan=every_step(), pattern=NM, **options)
    params = tree()
    state = tx.init(params)
    _, after = tx.update(params, state, params, value=2.0)
    ((masks, value),) = seen
    assert value == 2.0 and masks["a"]["bias"] is None
    np.testing.assert_array_equal(masks["a"]["kernel"], state.masks["a"]["kernel"])
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_dense_weights_are_found_anywhere():
    """get_dense through chain, MultiSteps and partition; of a method without any it returns the params."""
    params = tree()
    wide = jax.tree.map(lambda w: w.ndim > 1, params)
    transforms = (
        optax.chain(optax.clip(1.0), sparsejax.ste(SGD)),
        optax.MultiSteps(sparsejax.ste(SGD), 2),
        optax.partition({True: sparsejax.ste(SGD), False: SGD}, wide),
    )
    for tx in transforms:
        state = tx.init(params)
        sparse = sparsejax.apply_masks(params, sparsejax.get_masks(state))
        assert (sparse["b"]["kernel"] == 0).sum() == 48
        for a, b in zip(jax.tree.leaves(sparsejax.get_dense(state, sparse)), jax.tree.leaves(params), strict=True):
            np.testing.assert_array_equal(a, b)
    assert sparsejax.get_dense(sparsejax.static(SGD, sparsity=0.5).init(params), params) == params
    with pytest.raises(ValueError, match="get_dense needs"):
        sparsejax.get_dense(SGD.init(params), params)


def test_masks_set_by_hand_hold_for_the_step():
    tx = sparsejax.ste(optax.sgd(0.1), sparsity=0.5, update_every=100)
    params = tree()
    state = tx.init(params)
    _, state = tx.update(params, state, params)
    other = jax.tree.map(jnp.logical_not, sparsejax.get_masks(state))
    state = sparsejax.set_masks(state, other)
    updates, state = tx.update(params, state, params)
    after = optax.apply_updates(params, updates)
    assert (after["b"]["kernel"][~other["b"]["kernel"]] == 0).all()
    assert (after["b"]["kernel"][other["b"]["kernel"]] != 0).all()


CELLS = [
    contract_cells.Cell("adafactor", "multisteps", "nnx optimizer", "bfloat16", True, 1, "sr_ste"),
    contract_cells.Cell("schedule_free", "inject", "equinox", "float32", False, 8, "top_kast"),
    contract_cells.Cell("value", "partition", "nnx", "float16", True, 1, "sr_ste"),
]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.inner}-{cell.outer}")
def test_composition(cell, monkeypatch):
    """Inside wrappers, around other optimizers, in other module systems: exact zeros, the count, one structure."""
    methods = {"sr_ste": (sparsejax.sr_ste, {"lambda_w": 0.1}), "top_kast": (sparsejax.top_kast, {"update_every": 2})}
    monkeypatch.setattr(contract_cells, "METHODS", methods)
    params, last, first, state, _ = contract_cells.trained(cell)
    types = lambda tree: [(x.shape, x.dtype, x.aval.weak_type) for x in jax.tree.leaves(tree)]
    assert types(first) == types(state) and jax.tree.structure(first) == jax.tree.structure(state)
    (mask,) = jax.tree.leaves(sparsejax.get_masks(state))
    (kernel,) = (leaf for leaf in jax.tree.leaves(last) if leaf.size > 300)
    assert (np.asarray(kernel)[~np.asarray(mask)] == 0).all() and mask.sum() == mask.size // 2
    assert all(np.isfinite(leaf.astype(jnp.float32)).all() for leaf in jax.tree.leaves(last))
    del params


def test_stacked_layers_are_chosen_one_by_one():
    """Layers of very different scales, stacked along an axis, each keep their half; top_kast's larger set too."""
    scales = jnp.asarray([1.0, 20.0, 0.05])[:, None, None]
    params = {"layers": {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 6)), jnp.float32) * scales}}
    tx = sparsejax.top_kast(SGD, sparsity=0.75, layout=sparsejax.stacked("layers/*"), packed=True)
    state = jax.jit(tx.init)(params)
    for _ in range(2):
        _, state = jax.jit(tx.update)(params, state, params)
        for masks, count in ((state.masks, 12), (state.extra.backward[0], 24)):
            mask = unpack(masks["layers"]["kernel"])
            assert mask.sum((1, 2)).tolist() == [count] * 3

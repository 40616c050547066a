"""Dense to sparse against NumPy: three trees of weights, at least five updates, masks equal bit by bit."""

import itertools

import dense_to_sparse_oracles as rules
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from contract_cells import quickly_compiled
from contract_rows_dense_to_sparse import gradients_by_hand, some_gradients

import sparsejax
from sparsejax.fisher import diagonal, inverse_roots
from sparsejax.training.methods import update_steps
from sparsejax.transforms.acdc import phases_of

SHAPES = {"conv1": (3, 3, 4, 8), "dense1": (20, 24), "head": (24, 10)}
SIZES = [288, 480, 240]
STEPS, LR = 15, 0.0625
UNIFORM = sparsejax.distributions.uniform
compile_quickly = pytest.fixture(autouse=True)(quickly_compiled)


def trees(*lead, scale=1.0):
    """Three trees of normal numbers, of other scales, leaf by leaf too."""
    draw = np.random.default_rng(9 + len(lead))
    numbers = lambda shape, s: np.stack([draw.normal(size=(*lead, *shape)) * s * each for each in (1.0, 0.3, 2.0)])
    scales = zip(SHAPES.items(), (1.0, 2.0, 3.0), strict=True)
    return {name: {"kernel": jnp.asarray(numbers(shape, s * scale), jnp.float32)} for (name, shape), s in scales}


def runs(tx, noise=0.1, **extra):
    """[(weights, masks, gradients)] of three trees, each a list over steps of lists over leaves."""
    params, grads = trees(), trees(STEPS, scale=noise)

    def program(params, grads):
        def step(carry, grad):
            params, state = carry
            updates, after = tx.update(grad, state, params, **extra)
            return (optax.apply_updates(params, updates), after), (params, state.masks)

        last, before = jax.lax.scan(step, (params, tx.init(params)), grads)
        return before, (last[0], last[1].masks), last[1]

    before, last, state = jax.device_get(jax.jit(jax.vmap(program))(params, grads))
    steps = lambda tree, k: [[leaf[k][t] for leaf in jax.tree.leaves(tree)] for t in range(STEPS)]
    end = lambda tree, k: [leaf[k] for leaf in jax.tree.leaves(tree)]
    grads = jax.tree.map(np.asarray, grads)
    course = lambda i, k: [*steps(before[i], k), end(last[i], k)]
    return [(course(0, k), course(1, k), steps(grads, k)) for k in range(3)], state


def check(found, due, rule):
    """At each update the masks are the rule's, at other steps they stay; off them weights are exactly 0."""
    assert sum(map(due, range(STEPS))) >= 5
    for weights, masks, _ in found:
        for t in range(STEPS):
            wanted = rule(t, weights[t], masks[t]) if due(t) else masks[t]
            for name, one, mask, weight in zip(SHAPES, wanted, masks[t + 1], weights[t + 1], strict=True):
                np.testing.assert_array_equal(mask, one, err_msg=f"step {t}, {name}")
                assert (weight[~mask] == 0).all()


FLIPS = {1: 0.9, 4: 0.0, 6: 0.9, 9: 0.0, 10: 0.9, 12: 0.0, 13: 0.9}


def test_acdc():
    """All weights compete at the begin of each compressed phase; in the dense ones masks are full."""
    phases = {"sparse_starts": (1, 6, 10, 13), "dense_starts": (4, 9, 12)}
    found, _ = runs(sparsejax.acdc(optax.sgd(LR, momentum=0.5), sparsity=0.9, **phases), noise=2.0)

    def rule(t, weights, masks):
        return rules.largest_globally(weights, oracles.kept(sum(SIZES), FLIPS[t]))

    check(found, lambda t: t in FLIPS, rule)
    for weights, masks, _ in found:
        assert all(mask.all() for t in (0, 1, 5, 6, 10, 13) for mask in masks[t])
        first, second = (np.concatenate([mask.ravel() for mask in masks[t]]) for t in (2, 14))
        assert first.sum() == second.sum() and (first & ~second).any() and (second & ~first).any()
        revived = weights[6][0][~masks[4][0]]  # two steps into the dense phase
        assert (weights[4][0][~masks[4][0]] == 0).all() and (revived != 0).all()


@pytest.mark.parametrize("reset", [False, True])
def test_acdc_resets_moments_of_all_params_at_flips(reset):
    tx = sparsejax.acdc(
        optax.adam(0.1),
        sparsity=0.5,
        sparse_starts=(2, 4),
        dense_starts=(3,),
        reset_moments=reset,
        distribution=UNIFORM,
    )
    params = {"dense": {"kernel": jnp.arange(1.0, 13.0).reshape(4, 3), "bias": jnp.ones(3)}}
    state, update = tx.init(params), jax.jit(tx.update)
    for t in range(4):
        updates, state = update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
        mu = state.inner_state[0].mu["dense"]
        since = t - 1 if reset and t >= 2 else t + 1  # steps whose gradients the moments hold
        since = 1 if reset and t >= 2 else since
        np.testing.assert_allclose(mu["bias"], 1 - 0.9**since, rtol=1e-5)
        assert state.inner_state[0].count == t + 1


def test_the_papers_phases():
    """Epochs of the paper, stretched to steps; phases by numbers give the same."""
    cifar = sparsejax.acdc_phases(200 * 391)
    assert cifar["sparse_starts"] == tuple(391 * e for e in (10, 50, 90, 130, 170))
    assert cifar["dense_starts"] == tuple(391 * e for e in (30, 70, 110, 150))
    imagenet = sparsejax.acdc_phases(100, "imagenet")
    assert imagenet["sparse_starts"] == (10, 20, 30, 40, 50, 60, 70, 85)
    assert imagenet["dense_starts"] == (15, 25, 35, 45, 55, 65, 75)
    by_numbers = phases_of(update_start=10, update_every=20, update_end=170)
    assert list(map(tuple, by_numbers)) == list(sparsejax.acdc_phases(200).values())
    by_numbers = phases_of(update_start=10, update_every=5, update_end=85, last_dense=10)
    assert list(map(tuple, by_numbers)) == list(imagenet.values())
    config = {"method": "acdc", "method_args": {"update_start": 1, "update_every": 2, "update_end": 9}}
    assert update_steps(config) == (1, 3, 5, 7, 9) and update_steps({"method": "gmp", "method_args": {}}) == ()


@pytest.mark.parametrize("end", range(60, 120))
def test_phases_by_numbers_alternate_and_are_long_enough(end):
    sparse, dense = phases_of(update_start=20, update_every=10, update_end=end, last_dense=15)
    flips = sorted([*sparse, *dense])
    assert flips[0] == 20 and flips[-1] == end == sparse[-1] and flips[-2] <= end - 15
    assert min(b - a for a, b in itertools.pairwise(flips)) >= 10


@pytest.mark.parametrize("scope", ["neuron", "layer", "global"])
def test_sap(scope):
    """The paper's numbers; the sample runs' for the layers; other norms for all layers together."""
    numbers = {"layer": {"gamma": 1.2, "eta": 0.001}, "global": {"p": 1.0, "q": 2.0, "beta": 0.2}}.get(scope, {})
    found, _ = runs(sparsejax.sap(optax.sgd(LR), update_every=2, update_end=13, scope=scope, **numbers))
    due = lambda t: 0 < t < 13 and t % 2 == 0
    check(found, due, lambda t, weights, masks: rules.sap(weights, masks, scope, **numbers))
    for _, masks, _ in found:
        counts = [sum(int(mask.sum()) for mask in step) for step in masks]
        assert counts == sorted(counts, reverse=True) and 0 < counts[-1] < counts[3] < sum(SIZES)


@pytest.mark.parametrize("scope", ["neuron", "layer", "global"])
def test_the_pq_index_and_masks_for_rounds(scope):
    weights = [np.asarray(leaf[0]) for leaf in jax.tree.leaves(trees())]
    draw = np.random.default_rng(3)
    masks = [draw.random(weight.shape) < 0.6 for weight in weights]
    tree = lambda leaves: dict(zip(SHAPES, map(jnp.asarray, leaves), strict=True)) | {"bias": None}
    params, given = tree(weights) | {"bias": jnp.ones(3)}, tree(masks)
    found = jax.jit(lambda w, m: sparsejax.pq_index(w, m, scope))(params, given)
    if scope == "global":
        wanted = rules.pq_index(np.concatenate([w[m] for w, m in zip(weights, masks, strict=True)]))
        np.testing.assert_allclose(found, wanted, rtol=1e-4)
    for name, weight, mask in zip(SHAPES, weights, masks, strict=True) if scope != "global" else ():
        if scope == "layer":
            wanted = rules.pq_index(weight[mask])
        else:
            wanted = [rules.pq_index(weight[..., i][mask[..., i]]) for i in range(weight.shape[-1])]
        assert found["bias"] is None and found[name].shape == np.shape(wanted)
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=2e-5)
    new = jax.jit(lambda w, m: sparsejax.sap_masks(w, m, scope=scope))(params, given)
    for name, mask in zip(SHAPES, rules.sap(weights, masks, scope), strict=True):
        np.testing.assert_array_equal(new[name], mask)
    assert new["bias"] is None


def test_the_pq_index_of_simple_weights():
    """Equal magnitudes: 0, and nothing is pruned. One weight of N: 1 - 1 / N for p = 1/2, q = 1."""
    index_of, pruned = jax.jit(lambda w, m: sparsejax.pq_index(w, m)), jax.jit(sparsejax.sap_masks)
    masks = {"w": jnp.ones((4, 5), bool)}
    for fill in (1.0, -0.3, 1e-3):
        weights = {"w": jnp.full((4, 5), fill)}
        assert float(index_of(weights, masks)["w"]) == 0
        assert pruned(weights, masks)["w"].all()
    single = {"w": jnp.zeros((4, 5)).at[1, 2].set(3.0)}
    assert float(index_of(single, masks)["w"]) == pytest.approx(1 - 1 / 20)
    assert float(sparsejax.pq_index({"w": jnp.zeros((2, 2))})["w"]) == 0  # nothing is kept
    assert int(pruned(single, masks)["w"].sum()) == 2  # beta: at most 90 % go
    layers = {"w": jnp.stack([jnp.ones((4, 5)), single["w"]])}
    found = sparsejax.pq_index(layers, {"w": jnp.ones((2, 4, 5), bool)}, layout=sparsejax.stacked("w"))["w"]
    np.testing.assert_allclose(found, [0, 0.95], rtol=1e-6)


M, BLOCK, DAMP = 6, 24, 1e-2


@pytest.mark.parametrize(("across", "parts"), [(True, 1), (False, 2)])
def test_obert(across, parts):
    """Masks and the change of the other weights, by an explicit inverse of the Fisher at the masked weights."""
    options = dict(update_every=2, update_end=11, gradients=M, block_size=BLOCK, damp=DAMP, recomputations=parts)
    distribution = None if across else UNIFORM
    tx = sparsejax.obert(optax.sgd(LR), sparsity=0.85, distribution=distribution, **options)
    found, _ = runs(tx, grads_fn=some_gradients)
    due = lambda t: oracles.is_ramp_step(t, 0, 11, 2)
    changed = {}

    def rule(t, weights, masks):
        sparsity, old, begin = oracles.cubic(0.85, 0.0, 0, 11, t), weights, masks
        for part in range(1, parts + 1):
            weights = [np.where(m, w, 0) for w, m in zip(weights, masks, strict=True)]
            towards = lambda now, then, part=part: now - int((now - then) * part / parts + 1e-6)
            count = [towards(int(m.sum()), oracles.kept(n, sparsity)) for n, m in zip(SIZES, begin, strict=True)]
            if across:
                count = towards(sum(int(m.sum()) for m in begin), oracles.kept(sum(SIZES), sparsity))
            grads = gradients_by_hand(weights, M)
            masks, weights = rules.obert(weights, masks, count, grads, BLOCK, DAMP)
        changed[id(old)] = weights
        return masks

    check(found, due, rule)
    for weights, masks, grads in found:
        for t in range(STEPS):
            begin = changed[id(weights[t])] if due(t) else weights[t]
            for now, w, g, mask in zip(weights[t + 1], begin, grads[t], masks[t + 1], strict=True):
                np.testing.assert_allclose(now, np.where(mask, w - LR * g, 0), rtol=2e-4, atol=2e-5)
        moved = changed[id(weights[2])][0] - weights[2][0]
        assert np.abs(moved[masks[3][0]]).max() > 1e-3  # pruning really changes what stays


@pytest.mark.parametrize(
    ("damp", "scale", "near"), [(1e-7, 1.0, 2e-3), (1e-7, 1e-3, 1e-3), (1.0, 1.0, 1e-3), (1e-7, 100.0, 0.15)]
)
def test_the_inverse_in_float32(damp, scale, near):
    """Eigenvalues from 1e-7 to 1e4: the root's diagonal agrees with that of a float64 inverse, and stays positive."""
    draw = np.random.default_rng(1)
    size, number = 20, 64
    grads = (draw.normal(size=(number, 2, size)) * np.geomspace(1, 30, size) * scale).astype(np.float32)
    (root,) = jax.jit(lambda g: inverse_roots(lambda i: [g[i]], number, damp))(jnp.asarray(grads))
    for block in range(2):
        g = grads[:, block].astype(np.float64)
        wanted = np.linalg.inv(damp * np.eye(size) + g.T @ g / number)
        found = np.asarray(root[block]) @ np.asarray(root[block]).T
        np.testing.assert_allclose(diagonal(root)[block], np.diag(wanted), rtol=near)
        np.testing.assert_allclose(found / np.abs(wanted).max(), wanted / np.abs(wanted).max(), atol=near)


def test_obert_without_gradients_and_with_bad_ones():
    params = {"dense": {"kernel": jnp.arange(1.0, 49.0).reshape(8, 6)}}
    tx = sparsejax.obert(optax.sgd(0.1), sparsity=0.5, update_end=0, gradients=2)
    with pytest.raises(ValueError, match="grads_fn=lambda params, i"):
        tx.update(params, tx.init(params), params)
    bad = lambda params, i: jax.tree.map(lambda w: w * jnp.nan, params)
    updates, state = tx.update(params, tx.init(params), params, grads_fn=bad)
    assert state.masks["dense"]["kernel"].all() and state.skipped == 1
    np.testing.assert_allclose(updates["dense"]["kernel"], -0.1 * params["dense"]["kernel"], rtol=1e-6)


SGD = optax.sgd(0.1)
REFUSED = {
    "acdc one list": (lambda: sparsejax.acdc(SGD, sparsity=0.5, sparse_starts=(1,)), "give both, or neither"),
    "acdc order": (
        lambda: sparsejax.acdc(SGD, sparsity=0.5, sparse_starts=(5, 7), dense_starts=(9,)), "must alternate",
    ),
    "acdc ends dense": (
        lambda: sparsejax.acdc(SGD, sparsity=0.5, sparse_starts=(5,), dense_starts=(9,)), "one first and last",
    ),
    "acdc end": (lambda: sparsejax.acdc(SGD, sparsity=0.5, update_end=9), "update_end=9 must be at least"),
    "acdc published": (lambda: sparsejax.acdc_phases(100, "mnist"), "published='mnist': one of cifar, imagenet"),
    "acdc too short": (lambda: sparsejax.acdc_phases(9), "must alternate"),
    "sap scope": (lambda: sparsejax.sap(SGD, scope="row"), "scope='row': 'neuron', 'layer' or 'global'"),
    "sap norms": (lambda: sparsejax.sap(SGD, p=1.0, q=1.0), "0 < p < q"),
    "sap beta": (lambda: sparsejax.sap(SGD, beta=1.0), "beta=1.0 must lie in"),
    "sap gamma": (lambda: sparsejax.sap(SGD, gamma=-1.0), "gamma=-1.0 must be finite"),
    "obert damp": (lambda: sparsejax.obert(SGD, sparsity=0.5, damp=0.0), "damp=0.0 must be finite and above 0"),
    "obert block": (lambda: sparsejax.obert(SGD, sparsity=0.5, block_size=0), "block_size=0 must be an integer"),
    "levels": (
        lambda: sparsejax.sparse_wrapper(
            SGD, sparsejax.keep_best, sparsity=0.5, plan=(sparsejax.schedules.levels((3, 1.0), (2, 1.0)),)
        ), "increasing steps",
    ),
    "many gradients": (
        lambda: sparsejax.sparse_wrapper(SGD, sparsejax.keep_best, sparsity=0.5, many_gradients=True), "new_masks",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    make, words = REFUSED[name]
    with pytest.raises(ValueError) as error:
        make()
    assert words in str(error.value), str(error.value)

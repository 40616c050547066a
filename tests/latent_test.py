"""What reparametrized methods promise beyond the table: whose the params are, masters, stacked layers, wrappers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import reparametrized_oracles as rules
from contract_cells import quickly_compiled
from flax import nnx
from small_tree import small

import sparsejax
from sparsejax import schedules
from sparsejax.initialization import untrained
from sparsejax.state import Latents

compile_quickly = pytest.fixture(autouse=True)(quickly_compiled)
METHODS = {
    "str": lambda inner, **o: sparsejax.str_(inner, threshold_init=-1.0, **o),
    "scl": sparsejax.scl,
    "spartan": lambda inner, **o: sparsejax.spartan(inner, sparsity=0.5, total_steps=8, **o),
    "edge_popup": lambda inner, **o: sparsejax.edge_popup(inner, sparsity=0.5, **o),
    "jackpots": lambda inner, **o: sparsejax.jackpots(inner, sparsity=0.5, **o),
    "movement": lambda inner, **o: sparsejax.movement(inner, sparsity=0.5, update_end=3, **o),
}


def halves(leaf):
    """A method of a test's own, without selection: the weights above a trained level, halved."""
    return jnp.where(jnp.abs(leaf.weight) > 0.5, 0.5 * leaf.weight, 0.0) + 0.0 * leaf.extra


def cheap(inner, **options):
    return sparsejax.reparametrized(inner, halves, lambda leaf: jnp.zeros(()), soft=True, **options)


@pytest.mark.parametrize("name", METHODS)
def test_init_under_transformations(name):
    """One structure and type under eval_shape, before and after an update; no shared buffer; empty trees are fine."""
    tx, params = METHODS[name](optax.adam(0.1)), small()
    types = lambda tree: (jax.tree.structure(tree), [(x.shape, x.dtype) for x in jax.tree.leaves(tree)])
    state = jax.jit(tx.init)(params)
    assert types(jax.eval_shape(tx.init, params)) == types(state)
    assert types(jax.eval_shape(tx.update, params, state, params)[1]) == types(state)
    assert isinstance(state.extra, Latents)
    with pytest.raises(ValueError, match="set_masks: the masks of a reparametrized method follow from its latent"):
        sparsejax.set_masks(state, sparsejax.get_masks(state))
    for empty in ({}, (), {"a": None}):
        none = tx.init(empty)
        assert tx.update(empty, none, empty)[0] == empty and sparsejax.get_masks(none) == empty
    with pytest.raises(ValueError, match="needs params"):
        tx.update(params, state)


def test_no_buffer_is_shared():
    params = small()
    state = cheap(optax.adam(0.1)).init(params)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, state))]
    assert len(set(pointers)) == len(pointers)


def stepped(tx, params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def trained(tx, params, grads, steps=1):
    """The params and the state after some steps, in one program."""

    def program(params):
        step = lambda carry, _: (stepped(tx, *carry, grads), None)
        return jax.lax.scan(step, (params, tx.init(params)), None, steps)[0]

    return jax.jit(program)(params)


def test_whose_the_params_are():
    """A change by hand stays where the value is the weight, and is undone where it is not."""
    params = {"kernel": jnp.asarray([[1.0, -2.0], [0.3, 3.0]])}
    zeros = jax.tree.map(jnp.zeros_like, params)
    exact = sparsejax.reparametrized(
        optax.sgd(0.1), lambda leaf: jnp.where(jnp.abs(leaf.weight) > 0.5, leaf.weight, 0.0)
    )
    for tx, wanted in ((exact, [[7.0, -2.0], [0.0, 3.0]]), (cheap(optax.sgd(0.1)), [[0.5, -1.0], [0.0, 1.5]])):
        kept, state = stepped(tx, params, tx.init(params), zeros)
        changed = {"kernel": kept["kernel"].at[0, 0].set(7.0)}
        found, state = stepped(tx, changed, state, zeros)
        np.testing.assert_allclose(found["kernel"], wanted)
        assert sparsejax.get_masks(state)["kernel"].tolist() == [[True, True], [False, True]]
        assert found["kernel"][1, 0] == 0 and state.extra.weights["kernel"][1, 0] == np.float32(0.3)


def test_masters_in_float32():
    """Steps too small for bfloat16 params add up in the state."""
    params = {"kernel": jnp.full((4, 4), 1.0, jnp.bfloat16)}
    grads = {"kernel": jnp.full((4, 4), 1.0, jnp.bfloat16)}
    options = {"init_latent": None, "moves": "kept"}
    ends = []
    for dtype in ("float32", None):
        tx = sparsejax.reparametrized(optax.sgd(2.0**-11), lambda leaf: leaf.weight, dense_dtype=dtype, **options)
        new, state = trained(tx, params, grads, 16)
        assert state.extra.weights["kernel"].dtype == (dtype or "bfloat16")
        assert new["kernel"].dtype == jnp.bfloat16
        ends.append(float(new["kernel"][0, 0]))
    assert ends == [1 - 2.0**-7, 1.0]


def test_trained_by_other_optimizers():
    """The inner optimizer sees all weights in one tree, the extras' own sees extras alone, with an extra argument."""
    seen = {}

    def spy(name):
        def update(updates, state, params=None, *, value):
            seen[name] = jax.tree.map(jnp.shape, params), value
            return jax.tree.map(lambda g: -g, updates), state

        return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)

    params = {"a": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
    tx = cheap(spy("weights"), aux_inner=spy("extras"))
    updates, _ = tx.update(params, tx.init(params), params, value=3.0)
    assert seen["weights"] == ({"a": {"kernel": (3, 2), "bias": (2,)}}, 3.0)
    assert seen["extras"] == ({"a": {"kernel": (), "bias": None}}, 3.0)
    assert updates["a"]["bias"].tolist() == [-1.0, -1.0]


def test_stacked_layers():
    """A threshold for each layer, and a count and a soft mask for each; of very different scales."""
    scales = np.array([1.0, 20.0], np.float32)[:, None, None]
    draw = np.random.default_rng(0).normal(size=(2, 2, 8, 6)).astype(np.float32) * scales
    params, grads = ({"layers": {"kernel": jnp.asarray(x)}} for x in draw)
    layout = sparsejax.stacked("layers/*")
    tx = sparsejax.str_(optax.sgd(0.1), threshold_init=0.0, layout=layout)
    _, state = trained(tx, params, grads)
    taus = state.extra.extras["layers"]["kernel"]
    assert taus.shape == (2, 1, 1)
    wanted = [-0.1 * rules.soft_threshold_gradient(w, 0.0, g)[1] for w, g in zip(draw[0], draw[1], strict=True)]
    np.testing.assert_allclose(taus.ravel(), wanted, 1e-5)
    uniform = sparsejax.distributions.uniform
    tx = sparsejax.spartan(
        optax.sgd(0.0), sparsity=0.75, total_steps=10, warmup_fraction=0.0, layout=layout, distribution=uniform
    )
    _, state = trained(tx, params, grads)
    for w, mask, soft in zip(
        draw[0], state.masks["layers"]["kernel"], state.extra.memory["layers"]["kernel"], strict=True
    ):
        np.testing.assert_array_equal(mask, oracles.top(np.abs(w), 12))
        least = np.abs(w)[np.asarray(mask)].min()
        np.testing.assert_allclose(soft, rules.sinkhorn([np.abs(w)], (1.0,), 12, 1.0, least)[0], 1e-3, 1e-4)


@pytest.mark.parametrize("name", ["edge_popup", "spartan"])
def test_blocks(name):
    """Whole blocks go, by the mean of |s| or |w|; beta grows with the square root of a block's weights."""
    draw = np.random.default_rng(1).normal(size=(8, 6)).astype(np.float32)
    params = {"kernel": jnp.asarray(draw)}
    pool = lambda x: np.abs(x).reshape(4, 2, 3, 2).mean((1, 3))
    if name == "edge_popup":
        tx = sparsejax.edge_popup(optax.sgd(0.1), sparsity=0.5, pattern=sparsejax.block((2, 2)))
    else:
        tx = sparsejax.spartan(
            optax.sgd(0.0), sparsity=0.5, total_steps=10, warmup_fraction=0.0, pattern=sparsejax.block((2, 2))
        )
    _, state = trained(tx, params, params, 2)
    units = pool(np.asarray(state.extra.extras["kernel"] if name == "edge_popup" else draw))
    kept = oracles.top(units, 6)
    np.testing.assert_array_equal(state.masks["kernel"], np.repeat(np.repeat(kept, 2, 0), 2, 1))
    if name == "spartan":
        beta = 1 + (20 * 2 - 1) * 1 / 8
        wanted = rules.sinkhorn([units], (1.0,), 6, beta, units[kept].min())[0]
        np.testing.assert_allclose(state.extra.memory["kernel"], wanted, 1e-3, 1e-4)


OUTER = {
    "chain": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
    "multisteps": lambda tx: optax.MultiSteps(tx, 2),
    "masked": lambda tx: optax.masked(tx, lambda params: jax.tree.map(lambda p: p.ndim > 1, params)),
    "finite": lambda tx: optax.apply_if_finite(tx, 2),
    "inject": None,
}


@pytest.mark.parametrize("outer", OUTER)
def test_wrappers(outer):
    """Exact zeros and readable masks inside wrappers, with donated buffers, bfloat16 params, one trace."""
    if outer == "inject":
        tx = optax.inject_hyperparams(lambda rate: cheap(optax.sgd(rate)))(rate=optax.linear_schedule(0.1, 0.2, 4))
    else:
        tx = OUTER[outer](cheap(optax.adamw(0.1)))
    params = {"kernel": jnp.linspace(-1, 1, 24, dtype=jnp.bfloat16).reshape(4, 6), "bias": jnp.ones(6, jnp.bfloat16)}
    traced = []

    def step(params, state, grads):
        traced.append(1)
        return stepped(tx, params, state, grads)

    step = jax.jit(step, donate_argnums=(0, 1))
    state, grads = jax.jit(tx.init)(params), jax.tree.map(lambda p: p + 1, params)
    begin = jax.tree.map(np.asarray, params)
    for _ in range(4):
        params, state = step(params, state, grads)
    mask = np.asarray(sparsejax.get_masks(state)["kernel"])
    assert len(traced) == 1 and 0 < mask.sum() < mask.size
    assert (np.asarray(params["kernel"])[~mask] == 0).all() and (np.asarray(params["kernel"])[mask] != 0).all()
    assert (begin["kernel"] != np.asarray(params["kernel"])).any()


def test_inside_nnx():
    model = nnx.Linear(4, 6, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, cheap(optax.sgd(0.1)), wrt=nnx.Param)
    optimizer.update(model, nnx.grad(lambda m: (m(jnp.ones((2, 4))) ** 2).sum())(model))
    mask = np.asarray(sparsejax.get_masks(optimizer.opt_state)["kernel"])
    assert (np.asarray(model.kernel[...])[~mask] == 0).all() and 0 < mask.sum() < mask.size


def test_untrained_weights():
    """Signed constants and normals of deviation sqrt(2 / (density fan_in)), each leaf with draws of its own."""
    params = {"a": {"kernel": jnp.zeros((3, 3, 16, 32)), "bias": jnp.ones(32)}, "b": {"kernel": jnp.zeros((50, 40))}}
    for kind in ("signed_constant", "kaiming_normal"):
        found = untrained(params, jax.random.key(1), kind=kind, density=0.5)
        assert (found["a"]["bias"] == 1).all()
        for layer, inputs in (("a", 144), ("b", 50)):
            weights, sigma = np.asarray(found[layer]["kernel"]), np.sqrt(4 / inputs)
            np.testing.assert_allclose(weights.std(), sigma, 0.05)
            assert abs(weights.mean()) < 0.1 * sigma
            assert (len(np.unique(weights)) == 2) is (kind == "signed_constant")
    a, b = jax.random.split(jax.random.key(0))
    assert (untrained(params, a)["b"]["kernel"] != untrained(params, b)["b"]["kernel"]).any()


SGD = optax.sgd(0.1)
itself = lambda leaf: leaf.weight
REFUSED = {
    "no forward": (lambda: sparsejax.reparametrized(SGD), ["either forward or forwards"]),
    "moves": (lambda: sparsejax.reparametrized(SGD, itself, moves="some"), ["moves='some'", "kept"]),
    "dtype": (lambda: sparsejax.reparametrized(SGD, itself, dense_dtype="int8"), ["dense_dtype='int8'", "floating"]),
    "every": (lambda: sparsejax.reparametrized(SGD, itself, update_every=0), ["update_every=0"]),
    "sparsity": (lambda: sparsejax.reparametrized(SGD, itself, sparsity=0.5), ["sparsity=0.5", "gradual"]),
    "target": (
        lambda: sparsejax.reparametrized(SGD, itself, plan=(schedules.gradual(0, 1),)), ["sparsity is missing"],
    ),
    "threshold": (lambda: sparsejax.str_(SGD, threshold_init=float("nan")), ["threshold_init=nan"]),
    "penalty": (lambda: sparsejax.scl(SGD, penalty=-1.0), ["penalty=-1.0"]),
    "mask_init": (lambda: sparsejax.scl(SGD, mask_init=0.0), ["mask_init=0.0", "above 0"]),
    "by": (lambda: sparsejax.edge_popup(SGD, sparsity=0.5, by="size"), ["by='size'", "score"]),
    "total": (lambda: sparsejax.jackpots(SGD, sparsity=0.5, total_steps=0), ["total_steps=0"]),
    "power": (lambda: sparsejax.jackpots(SGD, sparsity=0.5, flip_power=-1.0), ["flip_power=-1.0"]),
    "end": (lambda: sparsejax.movement(SGD, sparsity=0.5, update_start=9, update_end=3), ["update_end=3", "9"]),
    "initial": (lambda: sparsejax.movement(SGD, sparsity=0.5, initial_sparsity=0.7), ["initial_sparsity=0.7"]),
    "beta": (lambda: sparsejax.spartan(SGD, sparsity=0.5, beta=0.0), ["beta=0.0", "above 0"]),
    "warm-up": (lambda: sparsejax.spartan(SGD, sparsity=0.5, warmup_fraction=2), ["warmup_fraction=2", "[0, 1]"]),
    "tolerance": (lambda: sparsejax.spartan(SGD, sparsity=0.5, tolerance=1.0), ["tolerance=1.0"]),
    "costs": (lambda: sparsejax.spartan(SGD, sparsity=0.5, costs={"*": 0.0}), ["costs=", "above 0"]),
    "kind": (lambda: untrained({}, jax.random.key(0), kind="ones"), ["kind='ones'", "kaiming_normal"]),
    "density": (lambda: untrained({}, jax.random.key(0), density=0.0), ["density=0.0"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    make, words = REFUSED[name]
    with pytest.raises(ValueError) as error:
        make()
    assert all(word in str(error.value) for word in words), str(error.value)

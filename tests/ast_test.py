"""AST and CAST against NumPy: the decay inside Adam, masks every few steps, scales, the low-rank add-on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from contract_cells import quickly_compiled

import sparsejax
from sparsejax.models import MLP
from sparsejax.models.slorb import SLoRB, slorb, with_slorb

compile_quickly = pytest.fixture(autouse=True)(quickly_compiled)
STEPS = 9


def numbers(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class Adam:
    """AST's (L2) or CAST's (L1) Adam on one leaf, in float64."""

    def __init__(self, l1, rate, b1, b2, eps, wd, decay, steps):
        self.l1, self.rate, self.b1, self.b2, self.eps, self.wd = l1, rate, b1, b2, eps, wd
        self.decay, self.steps, self.t, self.m, self.v = decay, steps, 0, 0.0, 0.0

    def step(self, w, g, mask):
        ramp = min(1.0, self.t / self.steps) if self.steps else 1.0
        rate = self.rate(self.t) if callable(self.rate) else self.rate
        self.t += 1
        w = w * (1 - rate * self.wd)
        self.m = self.b1 * self.m + (1 - self.b1) * g
        u, square = self.m, g**2
        if mask is not None:
            pulled = (1 - ramp) * self.m + ramp * self.decay * np.sign(w) if self.l1 else self.m + ramp * self.decay * w
            u = np.where(mask, self.m, pulled)
            square = u**2
        self.v = self.b2 * self.v + (1 - self.b2) * square
        return w - rate * (u / (1 - self.b1**self.t)) / (np.sqrt(self.v / (1 - self.b2**self.t)) + self.eps)


@pytest.mark.parametrize("l1", [False, True])
@pytest.mark.parametrize("tree", range(3))
def test_the_adams(l1, tree):
    """Weights after each step, with masks that change, a leaf without one, decay of some leaves and a schedule."""
    factory = sparsejax.adam_s if l1 else sparsejax.ast_adam
    rate = [0.1, optax.linear_schedule(0.1, 0.01, 5), 0.03][tree]
    options = dict(b1=0.8, b2=0.9, eps=1e-6, weight_decay=0.2, masked_decay=0.5, decay_steps=[4, 0, 100][tree])
    tx = factory(rate, mask={"w": True, "free": tree == 0}, **options)
    params = {"w": jnp.asarray(numbers((6, 5), tree)), "free": jnp.asarray(numbers(4, 9))}
    state, update = tx.init(params), jax.jit(tx.update)
    hand = {
        name: Adam(l1, rate, 0.8, 0.9, 1e-6, 0.2 if name == "w" or tree == 0 else 0.0, 0.5, options["decay_steps"])
        for name in params
    }
    weights = {name: np.asarray(w, np.float64) for name, w in params.items()}
    for t in range(STEPS):
        grads = {name: numbers(w.shape, 50 + t) for name, w in params.items()}
        mask = numbers((6, 5), 80 + t // 2) > 0
        updates, state = update(grads, state, params, masks={"w": jnp.asarray(mask), "free": None})
        params = optax.apply_updates(params, updates)
        for name in weights:
            weights[name] = hand[name].step(weights[name], grads[name], mask if name == "w" else None)
            np.testing.assert_allclose(params[name], weights[name], rtol=2e-5, atol=2e-6, err_msg=f"step {t}, {name}")


def test_without_masks_they_are_adamw():
    params, masks = {"w": jnp.asarray(numbers((4, 3)))}, None
    for factory in (sparsejax.ast_adam, sparsejax.adam_s):
        one, two = factory(0.1, weight_decay=0.3), optax.adamw(0.1, weight_decay=0.3)
        mine = theirs = params
        states = [one.init(params), two.init(params)]
        for t in range(3):
            grads = {"w": jnp.asarray(numbers((4, 3), t))}
            step, states[0] = one.update(grads, states[0], mine, masks=masks)
            other, states[1] = two.update(grads, states[1], theirs)
            mine, theirs = optax.apply_updates(mine, step), optax.apply_updates(theirs, other)
        np.testing.assert_allclose(mine["w"], theirs["w"], rtol=1e-5, atol=1e-6)
        with pytest.raises(ValueError, match="needs params"):
            one.update(grads, states[0])


SHAPES = {"conv": (3, 3, 4, 2), "dense": (8, 6), "query": (8, 5)}
AXES = {"conv": 2, "dense": 0, "query": 0}


@pytest.mark.parametrize("tree", range(3))
def test_ast(tree):
    """Dense weights, masks and params at each step: the rule of algorithms.md, by magnitude and by Wanda's metric."""
    norms = {f"{name}/kernel": np.abs(numbers(shape[AXES[name]], 7)) + 0.1 for name, shape in SHAPES.items()}
    adam = sparsejax.ast_adam(0.2, b2=0.99, masked_decay=0.3, decay_steps=4)
    inner = optax.chain(optax.identity(), adam) if tree == 1 else adam
    tx = sparsejax.ast(
        inner, update_every=2, norms=norms if tree == 2 else None, wants_masks=True if tree == 1 else None
    )
    dense = {name: numbers(shape, 3 * tree + i) for i, (name, shape) in enumerate(SHAPES.items())}
    params = {name: {"kernel": jnp.asarray(w)} for name, w in dense.items()}
    state, update = tx.init(params), jax.jit(tx.update)
    params = sparsejax.apply_masks(params, sparsejax.get_masks(state))
    score = lambda name, w: (
        np.abs(w)
        * (np.expand_dims(norms[f"{name}/kernel"], [a for a in range(w.ndim) if a != AXES[name]]) if tree == 2 else 1)
    )
    chosen = lambda name, w: oracles.n_of_m(score(name, w), 2, 4, AXES[name])
    masks = {name: chosen(name, w) for name, w in dense.items()}
    hand = {name: Adam(False, 0.2, 0.9, 0.99, 1e-8, 0.1, 0.3, 4) for name in SHAPES}
    changed = 0
    for t in range(13):
        grads = {name: {"kernel": jnp.asarray(numbers(shape, 100 + t))} for name, shape in SHAPES.items()}
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        after = sparsejax.get_masks(state)
        for name in SHAPES:
            dense[name] = hand[name].step(dense[name], np.asarray(grads[name]["kernel"], np.float64), masks[name])
        before = masks
        masks = {name: chosen(name, w) if t % 2 == 0 else masks[name] for name, w in dense.items()}
        changed += any((masks[name] != before[name]).any() for name in SHAPES)
        kept = sparsejax.get_dense(state, params)
        for name in SHAPES:
            np.testing.assert_array_equal(after[name]["kernel"], masks[name], err_msg=f"step {t}, {name}")
            np.testing.assert_allclose(kept[name]["kernel"], dense[name], rtol=2e-5, atol=2e-5)
            np.testing.assert_array_equal(np.asarray(params[name]["kernel"])[~masks[name]], 0)
    assert changed >= 5


def test_norms_that_do_not_fit():
    params = {"dense": {"kernel": jnp.ones((8, 4))}}
    for norms, message in (({}, "missing"), ({"dense/kernel": jnp.ones(4)}, r"shape \(4,\)")):
        with pytest.raises(ValueError, match=f"dense/kernel: .*{message}.*; 8 are needed"):
            sparsejax.ast(optax.sgd(0.1), norms=norms).init(params)


@pytest.mark.parametrize("tree", range(3))
def test_cast(tree):
    """Weights, scales, masks and params at each step: dense and decaying, cut at step 9, and sparse from then on."""
    groups, end, every = [2, 1, 0][tree], 9, 2
    adam = sparsejax.adam_s(0.05, b2=0.9, masked_decay=0.5, decay_steps=6)
    tx = sparsejax.cast(adam, update_every=every, update_end=end, scale_groups=groups)
    v = {name: numbers(shape, 3 * tree + i).astype(np.float64) for i, (name, shape) in enumerate(SHAPES.items())}
    params = {name: {"kernel": jnp.asarray(w, jnp.float32)} for name, w in v.items()} | {"bias": jnp.ones(3)}
    state, update = tx.init(params), jax.jit(tx.update)
    shape_of = {"conv": (1, 1, groups, 2), "dense": (groups, 6), "query": (groups, 5)}
    s = {name: np.ones(shape_of[name]) for name in SHAPES}

    def spread(name):
        part = SHAPES[name][AXES[name]] // max(groups, 1)
        return np.broadcast_to(np.repeat(s[name], part, axis=AXES[name]), SHAPES[name]) if groups else 1.0

    def summed(name, values):
        rows = values.sum((0, 1), keepdims=True) if name == "conv" else values
        pieces = np.split(rows, groups, axis=AXES[name])
        return np.concatenate([piece.sum(AXES[name], keepdims=True) for piece in pieces], axis=AXES[name])

    hand = {name: Adam(True, 0.05, 0.9, 0.9, 1e-8, 0.0, 0.5, 6) for name in SHAPES}
    of_scales = {name: Adam(True, 0.05, 0.9, 0.9, 1e-8, 0.0, 0.5, 6) for name in SHAPES}
    masks = {name: np.ones(shape, bool) for name, shape in SHAPES.items()}
    changed = 0
    for t in range(13):
        grads = {name: {"kernel": jnp.asarray(numbers(shape, 100 + t))} for name, shape in SHAPES.items()}
        updates, state = update(grads | {"bias": jnp.zeros(3)}, state, params)
        params = optax.apply_updates(params, updates)
        due = t == end or (t < end and t % every == 0)
        before = masks
        masks = {name: oracles.n_of_m(w, 2, 4, AXES[name]) for name, w in v.items()} if due else masks
        changed += any((masks[name] != before[name]).any() for name in SHAPES)
        found = sparsejax.get_masks(state)
        for name in SHAPES:
            laid = masks[name] if t >= end else np.ones_like(masks[name])
            if t == end:  # moments of what is cut are fresh
                hand[name].m, hand[name].v = hand[name].m * laid, hand[name].v * laid
            cut, g = v[name] * laid, np.asarray(grads[name]["kernel"], np.float64) * laid
            v[name] = hand[name].step(cut, spread(name) * g, masks[name]) * laid
            if groups:
                s[name] = of_scales[name].step(s[name], summed(name, cut * g), None)
                np.testing.assert_allclose(state.extra[f"{name}/kernel/scale"], s[name], rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(found[name]["kernel"], masks[name], err_msg=f"step {t}, {name}")
            np.testing.assert_allclose(params[name]["kernel"], spread(name) * v[name], rtol=1e-4, atol=1e-5)
            assert ((np.asarray(params[name]["kernel"]) == 0) == ~laid).all()
    assert changed >= 5
    assert (params["bias"] == 1).all()


def test_what_cast_refuses():
    params = {"kernel": jnp.ones((8, 4))}
    for options, message in (
        ({"pattern": sparsejax.fan_in()}, "cast needs nm"),
        ({"update_end": 0}, "update_end=0"),
        ({"scale_groups": 3}, "scale_groups=3 does not divide the 8 inputs of kernel"),
        ({"sparsity": 0.9}, "leave sparsity out"),
    ):
        with pytest.raises(ValueError, match=message):
            sparsejax.cast(optax.sgd(0.1), **options).init(params)


@pytest.mark.parametrize("k", [2, 4, 8])
def test_the_low_rank_add_on(k):
    """Against an explicit matrix: where a weight is gone, the mean of its block; and it is the best such matrix."""
    kernel, mask, x = numbers((8, 5)), numbers((8, 5), 1) > 0, numbers((3, 8), 2)
    found = slorb(jnp.asarray(kernel), jnp.asarray(mask), k)
    gone, matrix = np.where(mask, 0, kernel), np.zeros((8, 5))
    for i in range(8):
        block = slice(i // k * k, i // k * k + k)
        matrix[i] = gone[block].mean(0)
    assert (found["slorb_down"].shape, found["slorb_up"].shape) == ((8, 8 // k), (8 // k, 5))
    np.testing.assert_allclose((x @ found["slorb_down"]) @ found["slorb_up"], x @ matrix, rtol=1e-5, atol=1e-6)
    best = np.linalg.lstsq(np.asarray(found["slorb_down"]), gone, rcond=None)[0]
    np.testing.assert_allclose(found["slorb_up"], best, rtol=1e-4, atol=1e-5)
    total = slorb(kernel, mask, k, start="sum")["slorb_up"]
    np.testing.assert_allclose(total, k * found["slorb_up"], rtol=1e-5, atol=1e-6)
    assert (slorb(kernel, mask, k, start="zero")["slorb_up"] == 0).all()


@pytest.mark.parametrize("trained", [False, True])
def test_a_model_with_add_ons(trained):
    """Each masked layer computes x (mask w + D U) + b; U has a gradient, D if asked; methods leave both dense."""
    model = MLP(3, (8, 6), activation="relu")
    x = jnp.asarray(numbers((2, 4)))
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]
    where = sparsejax.except_("Dense_2/*")
    masks = sparsejax.get_masks(sparsejax.static(optax.sgd(0.1), sparsity=0.5, where=where).init(params))
    sparse = sparsejax.apply_masks(params, masks)
    sparse = {name: layer | sparse[name] for name, layer in with_slorb(params, masks, 4).items()}
    assert sorted(name for name, layer in sparse.items() if "slorb_up" in layer) == ["Dense_0", "Dense_1"]
    both = SLoRB(model, train_projection=trained)
    loss = lambda params: both.apply({"params": params}, x).sum()
    value, grads = jax.jit(jax.value_and_grad(loss))(sparse)
    y = np.asarray(x)
    for index in range(3):
        layer = jax.tree.map(np.asarray, sparse[f"Dense_{index}"])
        kernel = layer["kernel"] + (layer["slorb_down"] @ layer["slorb_up"] if index < 2 else 0)
        y = y @ kernel + layer["bias"]
        y = np.maximum(y, 0) if index < 2 else y
    np.testing.assert_allclose(value, y.sum(), rtol=1e-5)
    assert all((grads[f"Dense_{i}"]["slorb_up"] != 0).any() for i in range(2))
    assert all((grads[f"Dense_{i}"]["slorb_down"] != 0).any() == trained for i in range(2))
    chosen = sparsejax.get_masks(sparsejax.ast(optax.sgd(0.1), where=where).init(sparse))
    assert chosen["Dense_0"]["slorb_up"] is None and chosen["Dense_0"]["slorb_down"] is None


def test_add_ons_that_cannot_be():
    kernel = jnp.ones((6, 4))
    for arguments, message in (
        ((kernel, kernel > 2, 4), "k=4 must be an integer that divides the 6 inputs"),
        ((kernel, kernel > 2, 2, "ones"), "start='ones'"),
        ((jnp.ones((2, 3, 4)), None, 2), "for matrices"),
    ):
        with pytest.raises(ValueError, match=message):
            slorb(*arguments)
    with pytest.raises(ValueError, match="k=4 divides the inputs of none of the masked matrices: a/kernel"):
        with_slorb({"a": {"kernel": kernel}}, {"a": {"kernel": kernel > 2}}, 4)

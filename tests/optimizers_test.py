"""Optimizers and schedules from a config: one step against the published rule, decay where it belongs, clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparsejax.masks import get_masks
from sparsejax.training import ConfigError, resolve
from sparsejax.training.methods import make_transform
from sparsejax.training.optimizers import OPTIMIZERS, decayed, make_optimizer
from sparsejax.training.schedules import make_schedule

RATE, DECAY = 0.1, 0.5
DRAW = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
PARAMS = {"kernel": jnp.asarray(DRAW[0]), "bias": jnp.ones(4)}
GRADS = {"kernel": jnp.asarray(DRAW[1]), "bias": jnp.full(4, 2.0)}


def first_updates(**fields):
    """The updates of two steps on the same gradient, of the second the params are the first's."""
    config = resolve({"learning_rate": RATE} | fields)
    tx = make_optimizer(config, 100)

    @jax.jit
    def two(params):
        first, state = tx.update(GRADS, tx.init(params), params)
        second, _ = tx.update(GRADS, state, params)
        return first, second

    return two(PARAMS)


def orthogonal(matrix):
    u, _, v = np.linalg.svd(matrix, full_matrices=False)
    return u @ v


def test_first_steps():
    """Against each rule written down here: signs (Adam, Lion), the gradient (SGD), an orthogonal matrix (Muon)."""
    sign, g = np.sign(DRAW[1]), DRAW[1]
    (adam, _), (lion, _) = first_updates(optimizer="adam"), first_updates(optimizer="lion")
    np.testing.assert_allclose(adam["kernel"], -RATE * sign, rtol=1e-4)
    np.testing.assert_allclose(lion["kernel"], -RATE * sign, rtol=1e-6)
    sgd, heavy = first_updates(optimizer="sgd", momentum=0.8)
    np.testing.assert_allclose(sgd["kernel"], -RATE * g, rtol=1e-6)
    np.testing.assert_allclose(heavy["kernel"], -RATE * 1.8 * g, rtol=1e-6)
    nesterov, second = first_updates(optimizer="sgd", momentum=0.8, nesterov=True)
    np.testing.assert_allclose(nesterov["kernel"], -RATE * 1.8 * g, rtol=1e-6)
    np.testing.assert_allclose(second["kernel"], -RATE * (1 + 0.8 * 1.8) * g, rtol=1e-6)
    muon, _ = first_updates(optimizer="muon")
    along = np.sum(-np.asarray(muon["kernel"]) * orthogonal(g)) / np.linalg.norm(orthogonal(g))
    assert along > 0.95 * np.linalg.norm(muon["kernel"])  # Newton-Schulz stops short of exact orthogonality
    np.testing.assert_allclose(muon["bias"], -RATE * (1 + 0.09 / 0.19), rtol=1e-4)  # NAdam
    adafactor, _ = first_updates(optimizer="adafactor")
    cosine = -np.sum(np.asarray(adafactor["kernel"]) * sign) / np.linalg.norm(adafactor["kernel"]) / np.sqrt(sign.size)
    assert cosine > 0.999  # too small to be factored: the sign, times the parameters' root mean square


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_is_for_kernels(name):
    """What the decay adds to the first step: rate x decay x weight, on kernels alone; and it may be traced."""
    if name == "adam":
        with pytest.raises(ConfigError, match=r"weight_decay: 0\.5 with optimizer 'adam'"):
            resolve({"optimizer": name, "weight_decay": DECAY})
        return
    config = resolve({"optimizer": name, "learning_rate": RATE, "weight_decay": DECAY})

    @jax.jit
    def first(decay, rate):
        tx = make_optimizer(config | {"weight_decay": decay, "learning_rate": rate}, 100)
        return tx.update(GRADS, tx.init(PARAMS), PARAMS)[0]

    without, with_decay = first(0.0, RATE), first(DECAY, RATE)
    np.testing.assert_allclose(with_decay["kernel"] - without["kernel"], -RATE * DECAY * DRAW[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(with_decay["bias"], without["bias"])


def test_what_decay_acts_on():
    shapes = {
        "Dense_0/kernel": 2, "Dense_0/bias": 1, "attention/query/bias": 2, "layers/LayerNorm_0/scale": 2,
        "embed/embedding": 2, "gru/w": 2, "w": 1,
    }  # fmt: skip
    tree = {path: jnp.ones((2,) * ndim) for path, ndim in shapes.items()}
    nested = {}
    for path, leaf in tree.items():
        node = nested
        *parents, last = path.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    found = {which: jax.tree.leaves(decayed(nested, which)) for which in ("kernels", "matrices", "all")}
    order = ["/".join(str(key.key) for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(nested)]
    chosen = {which: {path for path, yes in zip(order, found[which], strict=True) if yes} for which in found}
    assert chosen["kernels"] == {"Dense_0/kernel", "gru/w"}
    assert chosen["matrices"] == {"Dense_0/kernel", "gru/w", "embed/embedding"}
    assert chosen["all"] == set(order)


def test_betas_and_own_values():
    assert resolve({"optimizer": "muon"})["momentum"] == 0.95 and resolve({"optimizer": "sgd"})["momentum"] == 0.9
    assert resolve({"optimizer": "lion"})["betas"] == [0.9, 0.99] and resolve({"optimizer": "sgd"})["betas"] is None
    first, second = first_updates(optimizer="lion", betas=(0.0, 0.5))
    np.testing.assert_allclose(first["kernel"], second["kernel"])
    for optimizer in ("adam", "adamw", "lion", "muon"):
        assert resolve({"optimizer": optimizer, "betas": (0.5, 0.6)})["betas"] == [0.5, 0.6]
    for fields, words in (
        ({"optimizer": "sgd", "betas": [0.9, 0.99]}, "betas: [0.9, 0.99] with optimizer 'sgd'"),
        ({"betas": [0.9]}, "betas: [0.9] is not two numbers"),
        ({"betas": [0.9, 1.0]}, "betas: [0.9, 1.0] is not two numbers"),
        ({"optimizer": "lion", "nesterov": True}, "nesterov: true with optimizer 'lion'"),
        ({"optimizer": "sgd", "nesterov": True, "momentum": 0}, "nesterov: true with momentum 0"),
        ({"clip_norm": -1}, "clip_norm: -1 is not a number >= 0"),
        ({"decay": "kernel"}, "decay: 'kernel' is not 'kernels'"),
    ):
        with pytest.raises(ConfigError) as caught:
            resolve(fields)
        assert words in str(caught.value)


def test_the_norm_that_is_clipped_is_of_what_is_kept():
    fields = {"optimizer": "sgd", "momentum": 0, "clip_norm": 1.0, "learning_rate": 1.0}
    config = resolve(fields | {"method": "static", "sparsity": 0.5})
    tx = make_transform(config, 100, sparsity=0.5)
    state = jax.jit(tx.init)(PARAMS)
    mask = np.asarray(get_masks(state)["kernel"])
    masked = PARAMS | {"kernel": PARAMS["kernel"] * mask}
    updates, _ = jax.jit(tx.update)(GRADS, state, masked)
    kept = np.sqrt((DRAW[1][mask] ** 2).sum() + 16)
    np.testing.assert_allclose(updates["kernel"][mask], -DRAW[1][mask] / kept, rtol=1e-5)
    np.testing.assert_allclose(optax.tree.norm(updates), 1.0, rtol=1e-5)


RATES = {  # 10 steps of warm-up, 100 steps, 10 epochs
    ("cosine", "end", 0.1): {10: 1, 55: 0.55, 100: 0.1},
    ("linear", "end", 0.0): {10: 1, 55: 0.5, 100: 0},
    ("wsd", "decay", 0.4): {10: 1, 60: 1, 80: 0.5, 100: 0},
    ("step", "milestones", (0.5, 8)): {10: 1, 49: 1, 50: 0.1, 79: 0.1, 80: 0.01, 100: 0.01},
    ("step", "factor", 0.5): {10: 1, 49: 1, 50: 0.5, 75: 0.25},
    ("constant", "factor", 0.5): {10: 1, 100: 1},
}


@pytest.mark.parametrize("name, argument, value", RATES, ids=str)
def test_schedules(name, argument, value):
    fields = {"schedule": name, "schedule_args": {argument: value}, "warmup_steps": 10, "learning_rate": 0.4}
    rate = make_schedule(resolve(fields), 100)
    expected = {0: 0, 5: 0.5} | RATES[name, argument, value]
    for step, share in expected.items():
        np.testing.assert_allclose(rate(step), 0.4 * share, rtol=1e-5, atol=1e-7)


def test_bad_schedules():
    for fields, words in (
        ({"milestons": [1]}, "schedule_args: unknown 'milestons'; did you mean 'milestones'?"),
        ({"milestones": [0.5, 0.2]}, "schedule_args.milestones: [0.5, 0.2] is not a rising list"),
        ({"end": 1.5}, "schedule_args.end: 1.5 is not a number in [0, 1]"),
        ({"factor": 0}, "schedule_args.factor: 0 is not a number in (0, 1]"),
    ):
        with pytest.raises(ConfigError) as caught:
            resolve({"schedule_args": fields})
        assert words in str(caught.value)

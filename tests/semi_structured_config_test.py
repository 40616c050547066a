"""AST, CAST and BDWP from a config: which optimizer, which model, which FLOPs, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract_cells import quickly_compiled

import sparsejax
from sparsejax.data import DATASETS
from sparsejax.models import MLP
from sparsejax.models.bidirectional import Bidirectional
from sparsejax.training.config import resolve
from sparsejax.training.errors import ConfigError
from sparsejax.training.methods import make_transform
from sparsejax.training.model import make_model, model_fields
from sparsejax.training.records import relative_training_flops

compile_quickly = pytest.fixture(autouse=True)(quickly_compiled)
BASE = {"sparsity": 0.5, "learning_rate": 0.1, "weight_decay": 0.2, "betas": [0.8, 0.9]}


def config(method, **changes):
    return resolve(BASE | {"method": method} | changes)


def stepped(tx):
    """The params after two steps on the same gradients."""
    draw = np.random.default_rng(0).normal(size=(3, 8, 4)).astype(np.float32)
    params = {"Dense_0": {"kernel": jnp.asarray(draw[0]), "bias": jnp.ones(4)}}
    state, update = jax.jit(tx.init)(params), jax.jit(tx.update)
    params = sparsejax.apply_masks(params, sparsejax.get_masks(state))
    for grad in draw[1:]:
        updates, state = update({"Dense_0": {"kernel": jnp.asarray(grad), "bias": jnp.ones(4)}}, state, params)
        params = optax.apply_updates(params, updates)
    return params


def decays(tree):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, tree)


@pytest.mark.parametrize("clip", [0.0, 100.0])
@pytest.mark.parametrize("method", ["ast", "cast"])
def test_the_adam_of_a_config_is_the_methods_own(method, clip):
    """Also behind a clipped norm; CAST's ramp ends where its masks are laid on."""
    own = {"masked_decay": 0.5, "update_end": 1} | ({"decay_steps": 1} if method == "ast" else {})
    args = own | {"update_every": 1}
    found = stepped(make_transform(config(method, clip_norm=clip, method_args=args), 10, sparsity=0.5))
    options = dict(b1=0.8, b2=0.9, weight_decay=0.2, masked_decay=0.5, decay_steps=1)
    if method == "ast":
        tx = sparsejax.ast(sparsejax.ast_adam(0.1, mask=decays, **options), sparsity=0.5, update_every=1, update_end=1)
    else:
        kernels = lambda tree: {"scales": {"Dense_0/kernel/scale": False}, "weights": decays(tree["weights"])}
        tx = sparsejax.cast(sparsejax.adam_s(0.1, mask=kernels, **options), update_every=1, update_end=1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, stepped(tx))


def test_bdwp_makes_the_model_compute_with_two_weights():
    data = DATASETS["digits"]()
    args = {"pattern": "nm(2, 4)", "where": "only('Dense_0/*')"}
    given = config("bdwp", model_args={"features": [8]}, method_args=args)
    model = make_model(given, data)
    assert isinstance(model, Bidirectional) and model.pattern == sparsejax.nm(2, 4)
    assert model.where("Dense_0/kernel", jnp.ones((4, 4))) and not model.where("Dense_1/kernel", jnp.ones((4, 4)))
    assert isinstance(make_model(config("ast"), data), MLP)
    assert model_fields(given) == [given["method_args"]] and model_fields(config("ast", method_args=args)) == []


@pytest.mark.parametrize(
    ("method", "args", "wanted"),
    [("ast", {}, 2 / 3), ("bdwp", {}, 2 / 3), ("cast", {"update_end": 4}, 0.7), ("cast", {}, 1.0)],
)
def test_training_flops(method, args, wanted):
    """At density 0.5: 2 f_S + f_D where weight gradients are dense; CAST is dense until its end."""
    masks = [{"step": step, "density": {"kernel": [0.5]}} for step in (0, 4)]
    found = relative_training_flops({"method": method, "method_args": args}, masks, {"kernel": 100}, 10)
    assert found == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "ast", "optimizer": "sgd", "betas": None}, "optimizer: 'sgd' with method 'ast'"),
        (
            {"method": "cast", "method_args": {"masked_decay": "much"}},
            "method_args.masked_decay: 'much' is not a number",
        ),
        ({"method": "ast", "method_args": {"decay_steps": 1.5}}, "method_args.decay_steps: 1.5 is not an integer >= 0"),
        ({"method": "ast", "method_args": {"decay_steps": None}}, "method_args.decay_steps: None"),
        ({"method": "cast", "method_args": {"scale_groups": -1}}, "scale_groups=-1"),
        ({"method": "cast", "sparsity": 0.9}, "leave sparsity out"),
        ({"method": "bdwp", "method_args": {"pattern": "nm(2, 4, tile=2)"}}, "bdwp needs nm"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ConfigError) as error:
        given = resolve(BASE | changes)
        make_transform(given, 10, sparsity=given["sparsity"])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", [sparsejax.ast, sparsejax.bdwp, sparsejax.cast])
def test_init_under_transformations(method):
    """One structure under jit and eval_shape, no shared buffer, empty trees are fine."""
    tx = method(optax.adam(0.1), pattern=sparsejax.nm(1, 2))
    params = {"Dense_0": {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)}}
    shapes, state = jax.eval_shape(tx.init, params), jax.jit(tx.init)(params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    eager = tx.init(params)
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(eager), jax.tree.leaves(state), strict=True))
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, eager))]
    assert len(set(pointers)) == len(pointers)
    for empty in ({}, (), {"a": None}):
        state = tx.init(empty)
        assert tx.update(empty, state, empty)[0] == empty
        assert sparsejax.get_masks(state) == empty
    with pytest.raises(ValueError, match="needs params"):
        tx.update(params, eager)


@pytest.mark.parametrize("method", [sparsejax.ast, sparsejax.cast])
def test_injected_rates_of_the_adam(method):
    """Masks reach an Adam whose rates are injected, if it is said that it wants them."""
    adam = sparsejax.ast_adam if method is sparsejax.ast else sparsejax.adam_s
    options = dict(b2=0.9, masked_decay=0.5, decay_steps=0, weight_decay=0.1)
    injected = optax.inject_hyperparams(adam, static_args=sparsejax.static_args(adam))(learning_rate=0.1, **options)
    pattern = sparsejax.nm(1, 2)
    one = stepped(method(injected, pattern=pattern, wants_masks=True))
    two = stepped(method(adam(0.1, **options), pattern=pattern))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, two)
    other = stepped(method(adam(0.1, **options), pattern=pattern, wants_masks=False))
    assert np.abs(other["Dense_0"]["kernel"] - two["Dense_0"]["kernel"]).max() > 1e-4

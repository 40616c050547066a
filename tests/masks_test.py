"""Masks: applied, measured, found at any depth of an optimizer state, and set there."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sparsejax
from sparsejax.masks import apply_masks, density, flat_masks, get_masks, mask_leaves, masks_from, set_masks
from sparsejax.state import SparseState

PARAMS = {"a": {"kernel": jnp.arange(1.0, 25.0).reshape(4, 6), "bias": jnp.ones(6)}, "b": {"kernel": jnp.ones((6, 3))}}


def sparse(inner=None, sparsity=0.5, **arguments):
    uniform = sparsejax.distributions.uniform
    return sparsejax.static(inner or optax.sgd(0.1), sparsity=sparsity, distribution=uniform, **arguments)


def shapes(masks):
    return {path: mask.shape for path, mask in mask_leaves(masks).items()}


def same(masks, others):
    assert jax.tree.structure(masks) == jax.tree.structure(others)
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(masks), jax.tree.leaves(others), strict=True))


BOTH = {"a/kernel": (4, 6), "b/kernel": (6, 3)}
EXPECTED = get_masks(sparse().init(PARAMS))


# Apply and measure.


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_masked_weights_are_plus_zero_whatever_they_were(dtype):
    weights = jnp.array([1.0, -1.0, np.nan, -np.inf, 2.0, -3.0], dtype)
    mask = jnp.array([True, False, False, False, True, False])
    found = apply_masks({"w": weights, "b": weights[:2]}, {"w": mask, "b": None})
    assert found["w"].dtype == dtype
    assert found["w"].tolist() == [1.0, 0.0, 0.0, 0.0, 2.0, 0.0]
    assert not np.signbit(np.asarray(found["w"], np.float32)).any()
    assert found["b"].tolist() == [1.0, -1.0]


def test_a_tree_without_masks_is_left_alone():
    for masks in (jax.tree.map(lambda _: None, PARAMS), {"a": None, "b": None}, None):
        assert same(apply_masks(PARAMS, masks), PARAMS)


@pytest.mark.parametrize(
    "masks", [{"a": {"kernel": EXPECTED["a"]["kernel"]}}, {"a": jnp.ones((4, 6), bool), "b": None}, EXPECTED["a"]]
)
def test_masks_of_another_tree_are_refused(masks):
    with pytest.raises(ValueError, match=r"one mask stands|pytree structure error"):
        apply_masks(PARAMS, masks)


def test_apply_masks_under_jit_and_on_shapes():
    assert same(jax.jit(apply_masks)(PARAMS, EXPECTED), apply_masks(PARAMS, EXPECTED))
    assert jax.eval_shape(apply_masks, PARAMS, EXPECTED)["a"]["kernel"].shape == (4, 6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=str)
def test_gradients_flow_through_masks_to_kept_weights_alone(dtype):
    masks = {"w": jnp.array([True, False, True])}
    square = lambda params: jnp.sum(apply_masks(params, masks)["w"] ** 2)
    params = {"w": jnp.array([1.0, 2.0, -3.0], dtype)}
    assert jax.grad(square)(params)["w"].tolist() == [2.0, 0.0, -6.0]
    assert jax.vmap(jax.grad(square))({"w": params["w"][None]})["w"].tolist() == [[2.0, 0.0, -6.0]]


def test_density_counts_masked_leaves_alone():
    assert density(EXPECTED) == 21 / 42
    assert density({"a": jnp.ones((2, 2), bool), "b": jnp.zeros((4, 3), bool), "c": None}) == 0.25
    assert density({"a": None}) == 1.0


def test_masks_of_a_sparse_checkpoint():
    params = apply_masks(PARAMS, EXPECTED)
    assert same(masks_from(params), EXPECTED)
    assert shapes(masks_from(params, sparsejax.only("b/*"))) == {"b/kernel": (6, 3)}
    negative = masks_from({"kernel": jnp.array([[0.0, -0.0], [np.nan, 2e-38]])})
    assert negative["kernel"].tolist() == [[False, False], [True, True]]


# Found at any depth.


def init(tx):
    return tx.init(PARAMS)


@pytest.mark.parametrize(
    "tx",
    [
        optax.chain(optax.clip_by_global_norm(1.0), sparse(optax.adam(1e-3))),
        optax.MultiSteps(sparse(optax.adam(1e-3)), 2),
        optax.MultiSteps(optax.chain(optax.trace(0.9), sparse()), 2).gradient_transformation(),
        optax.apply_if_finite(sparse(), 3),
        optax.inject_hyperparams(sparsejax.static, static_args=("sparsity", "distribution"))(
            optax.sgd(0.1), sparsity=0.5, distribution=sparsejax.distributions.uniform
        ),
        optax.masked(sparse(), True),
        optax.masked(sparse(), jax.tree.map(lambda p: p.ndim > 1, PARAMS)),
        sparse(optax.inject_hyperparams(optax.adamw)(1e-3)),
        sparse(optax.partition({"x": optax.sgd(0.1), "y": optax.adam(0.1)}, {"a": "x", "b": "y"})),
    ],
    ids=[
        "chain",
        "MultiSteps",
        "nested",
        "apply_if_finite",
        "inject",
        "masked",
        "masked-some",
        "injected",
        "partition",
    ],
)
def test_masks_are_found_inside_every_wrapper(tx):
    state = tx.init(PARAMS)
    masks = get_masks(state)
    assert same(masks, EXPECTED)
    assert density(masks) == 0.5
    flipped = jax.tree.map(jnp.logical_not, masks)
    changed = set_masks(state, flipped)
    assert jax.tree.structure(changed) == jax.tree.structure(state)
    assert same(get_masks(changed), flipped)
    assert same(get_masks(state), EXPECTED)
    assert same(apply_masks(PARAMS, masks), apply_masks(PARAMS, EXPECTED))


PREFIX = {"a": "left", "b": "right"}
FULL = {"a": {"kernel": "left", "bias": "right"}, "b": {"kernel": "right"}}


@pytest.mark.parametrize("labels", [PREFIX, FULL], ids=["prefix", "full"])
@pytest.mark.parametrize("swap", [False, True])
def test_the_parts_of_a_partition_are_merged(labels, swap):
    groups = {"left": sparse(sparsity=0.75), "right": sparse(optax.adam(1e-3))}
    if swap:
        groups = dict(reversed(groups.items()))
    masks = get_masks(optax.partition(groups, labels).init(PARAMS))
    assert shapes(masks) == BOTH
    assert density(masks["a"]) == 0.25
    assert density(masks["b"]) == 0.5
    assert apply_masks(PARAMS, masks)["a"]["bias"].sum() == 6


@pytest.mark.parametrize("first", ["a", "b"])
def test_three_masked_transformations_over_subtrees_are_merged(first):
    params = {**PARAMS, "c": {"d": {"kernel": jnp.ones((4, 4))}, "empty": {}}, "e": jnp.ones(3), "f": ()}
    order = [first, *({"a", "b"} - {first}), "c"]
    parts = [optax.masked(sparse(), {name: name == part for name in params}) for part in order]
    masks = get_masks(optax.chain(*parts).init(params))
    assert shapes(masks) == {**BOTH, "c/d/kernel": (4, 4)}


def test_two_masks_for_one_leaf_are_refused():
    with pytest.raises(ValueError, match=r"two sparse transformations .* the same leaf"):
        get_masks(optax.chain(sparse(), sparse(seed=1)).init(PARAMS))


def test_a_state_without_masks_is_refused():
    for find in (get_masks, lambda state: set_masks(state, EXPECTED)):
        with pytest.raises(ValueError, match="SparseState"):
            find(optax.adam(1e-3).init(PARAMS))


def test_a_vmapped_state_has_stacked_masks():
    def start(seed):
        return sparse(seed=seed).init(PARAMS)

    state = jax.vmap(start)(jnp.arange(3))
    masks = get_masks(state)
    assert shapes(masks) == {"a/kernel": (3, 4, 6), "b/kernel": (3, 6, 3)}
    assert density(masks) == 0.5
    assert same(get_masks(set_masks(state, masks)), masks)


# Module systems.


class Network(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)])
        self.norm = nnx.BatchNorm(3, rngs=rngs)


def test_masks_inside_an_nnx_optimizer():
    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.chain(optax.clip(1.0), sparse(optax.adam(0.1))), wrt=nnx.Param)
    params = nnx.state(model, nnx.Param)
    masks = get_masks(optimizer.opt_state)
    assert shapes(masks) == {"layers/0/kernel": (4, 6), "layers/1/kernel": (6, 3)}
    assert all(isinstance(mask, jax.Array) for mask in jax.tree.leaves(masks))
    masked = apply_masks(params, masks)
    assert jax.tree.structure(masked) == jax.tree.structure(params)
    nnx.update(model, masked)
    assert int((model.layers[0].kernel[...] == 0).sum()) == int((~masks["layers"][0]["kernel"]).sum())
    assert same(get_masks(optimizer.opt_state), masks)
    assert [mask is None for mask in flat_masks(params, masks)].count(False) == 2

    flipped = jax.tree.map(jnp.logical_not, masks)
    optimizer.opt_state = set_masks(optimizer.opt_state, flipped)
    assert same(get_masks(optimizer.opt_state), flipped)
    optimizer.update(model, jax.tree.map(jnp.ones_like, params))
    kernel = model.layers[0].kernel[...]
    assert (np.asarray(kernel)[~np.asarray(flipped["layers"][0]["kernel"])] == 0).all()


def test_masks_of_an_nnx_checkpoint():
    model = Network(nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    masks = get_masks(sparse().init(params))
    found = masks_from(apply_masks(params, masks))
    assert shapes(found) == shapes(masks)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(masks), strict=True))


def test_masks_of_an_equinox_model():
    model = eqx.nn.MLP(4, 3, 8, 1, key=jax.random.key(0))
    params = eqx.filter(model, eqx.is_array)
    state = sparse(layout=sparsejax.equinox_layout).init(params)
    masks = get_masks(state)
    assert shapes(masks) == {"layers/0/weight": (8, 4), "layers/1/weight": (3, 8)}
    assert density(masks_from(apply_masks(params, masks))) == 0.5
    assert same(get_masks(set_masks(state, masks)), masks)


def test_masks_of_tuples_and_namedtuples():
    params = (jnp.ones((4, 4)), jnp.ones(4))
    masks = get_masks(sparse(where=sparsejax.only("0")).init(params))
    assert isinstance(masks, tuple)
    assert masks[1] is None
    assert apply_masks(params, masks)[0].sum() == 8


# Set by hand.


@pytest.mark.parametrize(
    ("masks", "says"),
    [
        ({**EXPECTED, "b": {"kernel": jnp.ones((3, 6), bool)}}, r"b/kernel: .* shape \(6, 3\), not bool\(3, 6\)"),
        (
            {**EXPECTED, "b": {"kernel": jnp.ones((6, 3))}},
            r"b/kernel: a mask must be a bool array.*not float32\(6, 3\)",
        ),
        ({**EXPECTED, "b": {"kernel": None}}, r"b/kernel: a mask must be a bool array.*not NoneType"),
        ({**EXPECTED, "b": None}, r"b/kernel: a mask must be a bool array.*not NoneType"),
        ({"a": EXPECTED["a"]}, r"pytree structure error"),
        ({**EXPECTED, "a": {**EXPECTED["a"], "bias": jnp.ones(6, bool)}}, r"one mask stands where"),
    ],
    ids=["shape", "dtype", "none", "subtree", "missing", "dense"],
)
def test_masks_that_do_not_fit_the_state_are_refused(masks, says):
    with pytest.raises(ValueError, match=says):
        set_masks(sparse().init(PARAMS), masks)


def test_several_sparse_transformations_cannot_be_set_at_once():
    state = optax.partition({"left": sparse(), "right": sparse()}, PREFIX).init(PARAMS)
    with pytest.raises(ValueError, match=r"2 SparseState; set_masks needs exactly one"):
        set_masks(state, EXPECTED)


def test_set_masks_copies_and_takes_numpy_masks():
    given = jax.tree.map(np.asarray, EXPECTED)
    state = set_masks(sparse(seed=1).init(PARAMS), given)
    assert isinstance(state, SparseState)
    assert all(isinstance(mask, jax.Array) for mask in jax.tree.leaves(state.masks))
    assert same(get_masks(state), EXPECTED)
    again = set_masks(state, EXPECTED)
    assert all(a is not b for a, b in zip(jax.tree.leaves(again.masks), jax.tree.leaves(EXPECTED), strict=True))


def test_set_masks_hold_in_the_next_step():
    tx = sparse(optax.adam(0.1))
    flipped = jax.tree.map(jnp.logical_not, EXPECTED)
    state = set_masks(tx.init(PARAMS), flipped)
    updates, state = jax.jit(tx.update)(jax.tree.map(jnp.ones_like, PARAMS), state, PARAMS)
    params = optax.apply_updates(PARAMS, updates)
    assert same(masks_from(params), flipped)
    assert same(get_masks(state), flipped)

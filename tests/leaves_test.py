"""Which leaves are sparsified, on the parameter trees of Flax Linen, NNX and Equinox, and which axes do what."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from sparsejax.leaves import (
    Axes,
    checked_axes,
    default_where,
    equinox_layout,
    except_,
    flax_layout,
    named_leaves,
    only,
    select_leaves,
    stacked,
    why_dense,
)


def chosen(tree, where=None):
    """The paths of the leaves that are sparsified."""
    return [path for path, _ in named_leaves(select_leaves(tree, where))]


class Block(nn.Module):
    """A transformer block."""

    @nn.compact
    def __call__(self, x, _=None):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(y)
        return x + nn.Dense(8)(nn.Dense(16)(nn.LayerNorm()(x))), None


class Network(nn.Module):
    """One of each kind of layer."""

    @nn.compact
    def __call__(self, tokens, image):
        x = nn.Embed(11, 8)(tokens) + self.param("pos_kernel", nn.initializers.normal(), (1, 3, 8))
        layers = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=4)
        x, _ = layers(name="layers")(x, None)
        y = nn.ConvTranspose(3, (2, 2))(nn.BatchNorm(use_running_average=True)(nn.Conv(3, (3, 3))(image)))
        return nn.Dense(10)(x).sum() + y.sum()


@pytest.fixture(scope="module")
def linen():
    init = lambda: Network().init(jax.random.key(0), jnp.zeros((1, 3), int), jnp.zeros((1, 8, 8, 3)))
    return jax.eval_shape(init)["params"]


def test_linen_leaves(linen):
    block = [f"attention/{name}/kernel" for name in ("key", "out", "query", "value")]
    expected = [
        "ConvTranspose_0/kernel",
        "Conv_0/kernel",
        "Dense_0/kernel",
        *(f"layers/{name}" for name in ("Dense_0/kernel", "Dense_1/kernel", *block)),
    ]
    assert chosen(linen) == expected


def test_the_reason_is_given_for_each_leaf_left_dense(linen):
    reasons = why_dense(linen)
    assert {*reasons, *chosen(linen)} == {path for path, _ in named_leaves(linen)}
    assert reasons["Embed_0/embedding"] == "'Embed_0' contains 'embed'"
    assert reasons["pos_kernel"] == "'pos_kernel' contains 'pos'"
    assert reasons["Dense_0/bias"] == "1 axes; at least 2 are needed"
    assert reasons["layers/attention/query/bias"] == "'bias' is not kernel*, weight* or w"  # (layers, heads, dim)
    assert reasons["layers/LayerNorm_0/scale"] == "'LayerNorm_0' contains 'norm'"  # (layers, features)
    assert why_dense(linen, only("Dense_0/kernel"))["Conv_0/kernel"] == "left out by where"


class Attentive(nnx.Module):
    """NNX: a list of layers, an attention, an embedding."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(5, 8, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs), nnx.Conv(3, 4, (3, 3), rngs=rngs)])
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)


def test_nnx_paths_have_no_value_at_their_end():
    state = nnx.state(Attentive(nnx.Rngs(0)), nnx.Param)
    attention = [f"attention/{name}/kernel" for name in ("key", "out", "query", "value")]
    assert chosen(state) == [*attention, "layers/0/kernel", "layers/1/kernel"]
    assert chosen(nnx.to_pure_dict(state)) == chosen(state)


class EquinoxNetwork(eqx.Module):
    conv: eqx.nn.Conv2d
    linears: list
    embedding: eqx.nn.Embedding
    norm: eqx.nn.LayerNorm

    def __init__(self, key):
        self.conv = eqx.nn.Conv2d(3, 8, 3, key=key)
        self.linears = [eqx.nn.Linear(8, 4, key=key), eqx.nn.Linear(4, 1, key=key)]
        self.embedding = eqx.nn.Embedding(7, 4, key=key)
        self.norm = eqx.nn.LayerNorm((4, 4))


def test_equinox_leaves():
    model = EquinoxNetwork(jax.random.key(0))
    assert model.conv.bias.shape == (8, 1, 1)
    arrays = eqx.filter(model, eqx.is_array)
    assert chosen(arrays) == ["conv/weight", "linears/0/weight"]
    assert why_dense(arrays)["linears/1/weight"] == "all axes but one have size 1"
    assert isinstance(select_leaves(arrays), EquinoxNetwork)


def test_names_and_types():
    kernel = jnp.ones((4, 4))
    for path in ("kernel", "a/kernel_v", "a/0/weight", "a/weight_hh", "a/w", "ConvTranspose_0/kernel"):
        assert default_where(path, kernel), path
    dense = ("a/kernels/x", "a/bias", "a/W", "wpos/w", "token_Embedder/kernel", "abs_pos/kernel", "posemb_input/w")
    for path in (*dense, "BatchNorm_0/kernel", "position/kernel", "relPos/kernel", "rel_position_bias/weight"):
        assert not default_where(path, kernel), path
    assert default_where("kernel", kernel.astype(jnp.bfloat16))
    assert not default_where("kernel", kernel.astype(jnp.int8))
    assert not default_where("kernel", kernel.astype(bool))
    assert not default_where("kernel", kernel.astype(jnp.complex64))
    for shape, taken in (((), False), ((4,), False), ((4, 1), False), ((1, 1), False), ((1, 1, 3, 4), True)):
        assert default_where("kernel", jnp.ones(shape)) is taken, shape


# Predicates of the user.


TREE = {
    "stem": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)},
    "blocks": [{"kernel": jnp.ones((4, 4))}, {"kernel": jnp.ones((4, 4))}],
    "head": {"kernel": jnp.ones((4, 2)), "table": jnp.ones((5, 5)), "ids": jnp.ones((5, 5), int)},
}


def test_only_takes_what_its_globs_match_and_is_floating():
    assert chosen(TREE, only("blocks/*")) == ["blocks/0/kernel", "blocks/1/kernel"]
    assert chosen(TREE, only("head/*", "stem/bias")) == ["head/kernel", "head/table", "stem/bias"]


def test_except_takes_the_rest_of_the_default():
    assert chosen(TREE) == ["blocks/0/kernel", "blocks/1/kernel", "head/kernel", "stem/kernel"]
    assert chosen(TREE, except_("stem/*", "head/*")) == ["blocks/0/kernel", "blocks/1/kernel"]
    assert chosen(TREE, except_()) == chosen(TREE)


def test_any_function_may_choose():
    assert chosen(TREE, lambda path, array: array.ndim == 1) == ["stem/bias"]


@pytest.mark.parametrize("where", [only("blocks/*", "heat/*"), except_("heat/*")], ids=["only", "except_"])
def test_a_glob_that_matches_nothing_is_named_with_the_nearest_path(where):
    with pytest.raises(ValueError, match=r"where: 'heat/\*' matches no leaf; the nearest path is 'head/"):
        select_leaves(TREE, where)


def test_a_predicate_that_matches_nothing_says_why():
    with pytest.raises(ValueError, match=r"matches none of the 2 leaves \(b \(3,\): 1 axes.*embed/kernel.*'embed'"):
        select_leaves({"b": jnp.ones(3), "embed": {"kernel": jnp.ones((3, 3))}})
    with pytest.raises(ValueError, match=r"refused.*only"):
        select_leaves({"kernel": jnp.ones((3, 3))}, lambda path, array: False)
    with pytest.raises(ValueError, match="matches none of the 7 leaves"):
        select_leaves(TREE, only())
    with pytest.raises(ValueError, match=r"0 \(3, 3\): '0' is not kernel"):
        select_leaves((jnp.ones((3, 3)), jnp.ones(3)))


def test_tuples_lists_and_single_arrays():
    assert chosen((jnp.ones((3, 3)), jnp.ones(3)), only("0")) == ["0"]
    assert chosen([{"w": jnp.ones((3, 3))}, {"w": jnp.ones(3)}]) == ["0/w"]
    assert chosen(jnp.ones((3, 3)), only("*")) == [""]


def test_a_tree_without_leaves_has_nothing_to_choose():
    assert select_leaves({}) == {}
    assert select_leaves({"a": None}, only("b/*")) == {"a": None}


# Layouts.


@pytest.mark.parametrize(
    ("path", "shape", "axes"),
    [
        ("Dense_0/kernel", (8, 4), ((), (0,), (1,))),
        ("Conv_0/kernel", (3, 3, 8, 4), ((), (0, 1, 2), (3,))),
        ("attention/query/kernel", (8, 2, 4), ((), (0,), (1, 2))),
        ("attention/value/kernel", (8, 2, 4), ((), (0,), (1, 2))),
        ("attention/out/kernel", (2, 4, 8), ((), (0, 1), (2,))),
        ("query", (8, 2, 4), ((), (0, 1), (2,))),
        ("bias", (4,), ((), (), (0,))),
        ("scale", (), ((), (), ())),
    ],
)
def test_flax_layout(path, shape, axes):
    assert checked_axes(None, path, jnp.zeros(shape)) == axes == flax_layout(path, jnp.zeros(shape))


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((4, 8), ((), (1,), (0,))), ((4, 8, 3, 5), ((), (2, 3, 1), (0,))), ((4,), ((), (), (0,))), ((), ((), (), ()))],
)
def test_equinox_layout(shape, axes):
    assert checked_axes(equinox_layout, "weight", jnp.zeros(shape)) == axes


@pytest.mark.parametrize(
    ("layout", "path", "shape", "axes"),
    [
        (stacked("layers/*"), "layers/Dense_0/kernel", (12, 8, 4), ((0,), (1,), (2,))),
        (stacked("layers/*"), "Dense_0/kernel", (8, 4), ((), (0,), (1,))),
        (stacked("*", axes=(0, 1)), "a/kernel", (3, 12, 8, 4), ((0, 1), (2,), (3,))),
        (stacked("*", axes=(1,)), "a/query/kernel", (8, 12, 2, 4), ((1,), (0,), (2, 3))),
        (stacked("*", layout=equinox_layout), "a/weight", (12, 4, 8, 3, 5), ((0,), (3, 4, 2), (1,))),
        (stacked("x/*", layout=stacked("x/y/*")), "x/y/kernel", (2, 3, 8, 4), ((0, 1), (2,), (3,))),
        (stacked("*", axes=(-3,)), "a/kernel", (12, 8, 4), ((0,), (1,), (2,))),
    ],
)
def test_stacked_layers(layout, path, shape, axes):
    assert checked_axes(layout, path, jnp.zeros(shape)) == axes


def test_a_layout_that_misses_an_axis_is_refused():
    for wrong in (((), (0,), ()), ((), (0, 1), (1,)), ((0,), (1,), (2,))):
        with pytest.raises(
            ValueError, match=r"layout\('a/kernel'\) = .* must name each of the 2 axes of \(3, 4\) once"
        ):
            checked_axes(lambda path, array, wrong=wrong: wrong, "a/kernel", jnp.ones((3, 4)))


def test_axes_are_named():
    assert Axes((), (0,), (1,))._fields == ("stacked", "inputs", "outputs")

"""Topology against brute force: every path of small nets walked edge by edge, every connection counted by loops."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

import sparsejax
from sparsejax import topology
from sparsejax.leaves import stacked


def weights_on_paths(edges, starts, ends):
    """The weights of all edges on any path, found by walking every path from every start: [(from, to, weight)]."""
    onward = {}
    for begin, end, weight in edges:
        onward.setdefault(begin, []).append((end, weight))
    found = set()

    def walk(node, met):
        if node in ends:
            found.update(met)
        for end, weight in onward.get(node, ()):
            walk(end, [*met, weight])

    for start in starts:
        walk(start, [])
    return found - {None}


def dense_edges(name, mask, left, right):
    """Edges of a dense layer between units `left` and `right`, lists of nodes."""
    return [(left[i], right[j], (name, i, j)) for i, j in zip(*np.nonzero(mask))]


def as_masks(masks, found):
    out = {name: np.zeros(mask.shape, bool) for name, mask in masks.items()}
    for name, *index in found:
        out[name][tuple(index)] = True
    return out


def draw(seed, density, **shapes):
    rng = np.random.default_rng(seed)
    return {name: rng.random(shape) < density for name, shape in shapes.items()}


def same(found, wanted):
    for name, mask in wanted.items():
        np.testing.assert_array_equal(np.asarray(found[name]), mask, err_msg=name)


def units(layer, count):
    return [(layer, index) for index in range(count)]


def test_paths_of_multilayer_perceptrons():
    sizes = (4, 6, 5, 3)
    shapes = {f"w{i}": pair for i, pair in enumerate(itertools.pairwise(sizes))}

    def forward(params, x):
        for name in ("w0", "w1"):
            x = jax.nn.gelu(x @ params[name] + 0.1)
        return jax.nn.softmax(x @ params["w2"])

    program = jax.jit(
        lambda masks: topology.path_masks(forward, masks, masks, jax.ShapeDtypeStruct((1, 4), jnp.float32))
    )
    fewer = 0
    for seed, density in itertools.product(range(4), (0.15, 0.3, 0.6)):
        masks = draw(seed, density, **shapes)
        layers = [units(i, n) for i, n in enumerate(sizes)]
        edges = [e for i in range(3) for e in dense_edges(f"w{i}", masks[f"w{i}"], layers[i], layers[i + 1])]
        wanted = as_masks(masks, weights_on_paths(edges, layers[0], layers[-1]))
        same(topology.chain_paths(masks, list(shapes)), wanted)
        same(program(masks), wanted)
        share = sum(m.sum() for m in wanted.values()) / sum(m.size for m in masks.values())
        assert topology.effective_density(masks, list(shapes)) == pytest.approx(share)
        fewer += share < sparsejax.density(masks)
    assert fewer > 4


class SmallLeNet(nn.Module):
    """A convolution, max pooling, two dense layers."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (2, 2), padding="VALID", name="conv")(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(2, name="b")(nn.relu(nn.Dense(3, name="a")(x.reshape(x.shape[0], -1))))


def test_paths_through_convolution_pooling_and_flattening():
    """Every position is a node of its own: 5 x 5 x 2 inputs, 4 x 4 x 3 after the convolution, 2 x 2 x 3 pooled."""
    module, x = SmallLeNet(), jax.ShapeDtypeStruct((1, 5, 5, 2), jnp.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    forward = lambda params, x: module.apply({"params": params}, x)
    tree = lambda masks: {name: {"kernel": mask, "bias": None} for name, mask in masks.items()}
    program = jax.jit(lambda masks: topology.path_masks(forward, params, tree(masks), x))
    for seed, density in itertools.product(range(3), (0.2, 0.4)):
        masks = draw(seed, density, conv=(2, 2, 2, 3), a=(12, 3), b=(3, 2))
        edges, hidden, outs = [], units("a", 3), units("b", 2)
        for row, column in itertools.product(range(4), range(4)):
            for i, j, c, o in zip(*np.nonzero(masks["conv"])):
                edges.append(((row + i, column + j, c), ("conv", row, column, o), ("conv", i, j, c, o)))
            for o in range(3):
                edges.append((("conv", row, column, o), ("flat", (row // 2 * 2 + column // 2) * 3 + o), None))
        edges += dense_edges("a", masks["a"], units("flat", 12), hidden) + dense_edges("b", masks["b"], hidden, outs)
        starts = list(itertools.product(range(5), range(5), range(2)))
        wanted = as_masks(masks, weights_on_paths(edges, starts, outs))
        found = program(masks)
        same({name: leaf["kernel"] for name, leaf in found.items()}, wanted)
        assert found["a"]["bias"] is None
        by_path = topology.chain_paths(tree(masks), ["conv/kernel", "a/kernel", "b/kernel"])
        same({path.split("/")[0]: mask for path, mask in by_path.items()}, wanted)


def test_paths_around_residuals_norms_and_padding():
    """x + f(norm(x)); the norm's mean connects nothing; taps that meet padding alone are on no path."""

    def forward(params, x):
        norm = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
        x = x + jax.nn.relu(norm @ params["a"]) @ params["b"]
        return x @ params["c"]

    masks = draw(2, 0.3, a=(4, 3), b=(3, 4), c=(4, 2))
    inside, after, outs = units("a", 3), units("x", 4), units("c", 2)
    edges = dense_edges("a", masks["a"], units("in", 4), inside) + dense_edges("b", masks["b"], inside, after)
    edges += [(one, other, None) for one, other in zip(units("in", 4), after)]
    edges += dense_edges("c", masks["c"], after, outs)
    wanted = as_masks(masks, weights_on_paths(edges, units("in", 4), outs))
    assert 0 < wanted["a"].sum() < masks["a"].sum()
    program = lambda forward, x: jax.jit(lambda masks: topology.path_masks(forward, masks, masks, x))
    same(program(forward, jnp.ones((1, 4)))(masks), wanted)
    kernel = {"kernel": jnp.ones((3, 3, 1, 2), bool)}
    module = nn.Conv(2, (3, 3), use_bias=False)
    forward = lambda params, x: module.apply({"params": params}, x)
    on = program(forward, jnp.ones((1, 1, 1, 1)))(kernel)["kernel"]
    assert np.asarray(on).sum() == 2 and on[1, 1].all()


def test_paths_through_a_scan_are_those_of_its_layers():
    """Stacked layers, the carry begun by zeros that hang on nothing: as the same layers one after another."""
    masks = draw(5, 0.25, layers=(3, 4, 4), head=(4, 2))

    def scanned(params, x):
        def layer(carry, kernel):
            x, steps = carry
            return (jax.nn.relu(x @ kernel) + 0.0 * steps, steps + 1), None

        return lax.scan(layer, (x, jnp.float32(0)), params["layers"])[0][0] @ params["head"]

    wanted = topology.chain_paths({f"{i}": m for i, m in enumerate([*masks["layers"], masks["head"]])}, list("0123"))
    found = jax.jit(lambda masks: topology.path_masks(scanned, masks, masks, jnp.ones((1, 4))))(masks)
    same(found, {"layers": np.stack([wanted[str(i)] for i in range(3)]), "head": wanted["3"]})
    assert found["layers"].sum() < masks["layers"].sum()


def test_attention_connects_by_query_key_and_value():
    module = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=4, out_features=3)
    x = jax.ShapeDtypeStruct((1, 3, 4), jnp.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    masks = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), sparsejax.leaves.select_leaves(params))
    forward = lambda params, x: module.apply({"params": params}, x)
    program = jax.jit(lambda masks: topology.path_masks(forward, params, masks, x))
    assert sparsejax.density(program(masks)) == 1
    masks["out"]["kernel"] = masks["out"]["kernel"].at[1].set(False)  # what the second head gives is read by nothing
    on = program(masks)
    for name in ("query", "key", "value"):
        assert on[name]["kernel"][:, 0].all() and not on[name]["kernel"][:, 1].any()


def test_what_cannot_be_followed_is_an_error():
    forward = lambda params, x: lax.while_loop(lambda y: y.sum() < 9, lambda y: y @ params["w"], x)
    masks = {"w": jnp.ones((2, 2), bool)}
    with pytest.raises(ValueError, match="cannot follow connections through 'while'"):
        topology.path_masks(forward, masks, masks, jnp.ones((1, 2)))


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (["a"], r"order: b must be both masked and in the order"),
        (["a", "b", "c"], r"order: c must be both"),
        (["a", "b", "a"], "names a layer twice"),
        (["b", "a"], "b has 2 outputs, the layer after it 3 inputs"),
    ],
)
def test_orders_that_are_no_chain(order, words):
    masks = {"a": np.ones((3, 4), bool), "b": np.ones((4, 2), bool)}
    with pytest.raises(ValueError, match=words):
        topology.chain_paths(masks, order)


def test_what_moved():
    before, after = (draw(seed, 0.4, a=(5, 7), b=(2, 3, 4)) for seed in (0, 1))
    entries = [(n, i) for n in before for i in itertools.product(*map(range, before[n].shape))]
    differ = [(n, i) for n, i in entries if before[n][i] != after[n][i]]
    kept = sum(bool(after[n][i]) for n, i in entries)
    assert topology.hamming(before, after) == len(differ)
    assert topology.layer_hamming(before, after) == {n: sum(name == n for name, _ in differ) for n in "ab"}
    assert topology.flip_rate(before, after) == pytest.approx(len(differ) / len(entries))
    assert topology.flip_rate(before, after, of="active") == pytest.approx(len(differ) / kept)
    for name, change in topology.churn(before, after).items():
        grown = sum(bool(after[n][i]) for n, i in differ if n == name)
        assert change == (grown, sum(name == n for n, _ in differ) - grown)
    both = sum(bool(before[n][i] and after[n][i]) for n, i in entries)
    either = sum(bool(before[n][i] or after[n][i]) for n, i in entries)
    assert topology.overlaps({"x": before, "y": after}) == {("x", "y"): pytest.approx(both / either)}
    seen = topology.explored(before, after)
    assert topology.exploration_rate(seen) == pytest.approx(either / len(entries))
    assert topology.layer_exploration(seen)["a"] == pytest.approx((before["a"] | after["a"]).mean())
    with pytest.raises(ValueError, match="of='layers': 'weights' or 'active'"):
        topology.flip_rate(before, after, of="layers")


def test_fans_by_counting():
    masks = draw(3, 0.3, conv=(3, 2, 4, 5), dense=(6, 7)) | {"query": draw(4, 0.3, kernel=(4, 2, 3))}
    into, out = topology.fan_in(masks), topology.fan_out(masks)
    for channel in range(5):
        assert into["conv"][channel] == sum(masks["conv"][i, j, c, channel] for i, j, c in np.ndindex(3, 2, 4))
    for channel in range(4):
        assert out["conv"][channel] == sum(masks["conv"][i, j, channel, o] for i, j, o in np.ndindex(3, 2, 5))
    assert into["dense"].tolist() == [sum(masks["dense"][i, o] for i in range(6)) for o in range(7)]
    query = masks["query"]["kernel"]
    assert into["query/kernel"].tolist() == [sum(query[i, h, d] for i in range(4)) for h, d in np.ndindex(2, 3)]
    dead = topology.dead_neurons({"w": np.array([[1, 0, 0], [0, 0, 0]], bool)})
    assert dead == {"w": (pytest.approx(2 / 3), 0.5)}
    layers = {"layers": draw(6, 0.4, kernel=(2, 3, 4))["kernel"]}
    assert topology.fan_in(layers, stacked("layers"))["layers"].tolist() == layers["layers"].sum(1).ravel().tolist()
    edges, counts = topology.histogram(np.arange(100), bins=7)
    assert sum(counts) == 100 and len(counts) <= 7 and len(edges) == len(counts) + 1 and edges[-1] > 99
    image = topology.input_map(masks["dense"], (2, 3))
    assert image.shape == (2, 3) and image[1, 0] == masks["dense"][3].sum()
    with pytest.raises(ValueError, match=r"shape: \(2, 2\)"):
        topology.input_map(masks["dense"], (2, 2))


class Net(nn.Module):
    """Two ReLU, one of them rematerialised, and LayerNorm, whose variance is cut at 0 but is none."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (2, 2), name="conv")(x))
        x = nn.LayerNorm()(x.reshape(x.shape[0], -1))
        return nn.remat(lambda module, x: nn.relu(module(x)))(nn.Dense(5, name="dense"), x)


def test_units_that_are_never_active():
    module, rng = Net(), np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(6, 4, 4, 1)), jnp.float32)
    params = jax.jit(module.init)(jax.random.key(1), x)["params"]
    params["conv"]["bias"] = jnp.array([0.0, -50.0, 0.0])
    params["dense"]["bias"] = jnp.array([0.0, -50.0, 50.0, -50.0, 0.0])
    forward = lambda params, x: module.apply({"params": params}, x)
    outputs, found = jax.jit(lambda p, x: topology.relu_outputs(forward, p, x))(params, x)
    np.testing.assert_allclose(outputs, jax.jit(forward)(params, x), rtol=1e-5, atol=1e-5)
    assert {name: value.shape for name, value in found.items()} == {"relu_0": (6, 4, 4, 3), "relu_1": (6, 5)}
    np.testing.assert_array_equal(found["relu_1"], outputs)
    counts = topology.active_units(found, jnp.arange(6) < 4)
    conv = np.asarray(found["relu_0"])[:4]
    assert counts["relu_0"].tolist() == [sum(conv[i, :, :, c].any() for i in range(4)) for c in range(3)]
    dead = topology.dead_units(lambda x: jax.nn.relu(x @ jnp.array([[1.0, -1.0, 0.0]])), jnp.array([[1.0], [2.0]]))
    assert dead == {"relu_0": pytest.approx(2 / 3)}

"""Uniform+, ERK+, SET's ε, LAMP and tables against NumPy, and all distributions by their names in a config."""

import math

import architectures
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from contract_cells import quickly_compiled

import sparsejax
from sparsejax import distributions
from sparsejax.training.errors import ConfigError
from sparsejax.training.methods import arguments_of

compile_quickly = pytest.fixture(autouse=True)(quickly_compiled)
NETS = {
    "lenet5": (architectures.lenet5(), "conv1"),
    "resnet20": (architectures.resnet20(), "stem"),
    "vgg19": (architectures.vgg19(), None),
}


def kept(shapes, densities):
    return sum(oracles.kept(math.prod(shape), 1 - density) for shape, density in zip(shapes, densities, strict=True))


@pytest.mark.parametrize("density", [0.05, 0.1, 0.19, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("name", NETS)
def test_uniform_plus(name, density):
    network, first = NETS[name]
    params, shapes = architectures.params(network), [shape for _, shape, _ in network]
    sizes = [math.prod(shape) for shape in shapes]
    found = distributions.uniform_plus(params, density)
    in_order = [found[path] for path, _, _ in network]
    assert network[0][0] == first or first is None
    wanted, budget = [1.0], density * sum(sizes) - sizes[0]
    if budget / sum(sizes[1:]) < 0.2:
        flat = [i for i, shape in enumerate(shapes) if len(shape) == 2][-1]
        share = (budget - 0.2 * sizes[flat]) / (sum(sizes[1:]) - sizes[flat])
        wanted += [0.2 if i == flat else share for i in range(1, len(sizes))]
    else:
        wanted += [budget / sum(sizes[1:])] * (len(sizes) - 1)
    np.testing.assert_allclose(in_order, wanted, rtol=1e-12)
    assert 0 <= kept(shapes, in_order) - density * sum(sizes) <= len(sizes) + 1


def test_uniform_plus_of_a_multilayer_perceptron_has_no_dense_first_layer():
    params = architectures.params(architectures.lenet_300_100())
    found = distributions.uniform_plus(params, 0.05)
    total, last = 784 * 300 + 300 * 100 + 1000, 1000
    rest = (0.05 * total - 0.2 * last) / (total - last)
    assert list(found.values()) == pytest.approx([rest, rest, 0.2])
    with pytest.raises(ValueError, match=r"conv1: 1.* above .* not 0.001"):
        distributions.uniform_plus(architectures.params(architectures.lenet5()), 0.001)


@pytest.mark.parametrize(("density", "head"), [(0.1, 0.5), (0.2, 1.0), (0.5, 0.1)])
def test_erk_plus(density, head):
    network = architectures.resnet50()
    params, shapes = architectures.params(network), [shape for _, shape, _ in network]
    sizes = [math.prod(shape) for shape in shapes]
    found = distributions.erk_plus(params, density, head_density=head)
    rest = (density * sum(sizes) - head * sizes[-1]) / sum(sizes[:-1])
    np.testing.assert_allclose([found[path] for path, _, _ in network[:-1]], oracles.erk(shapes[:-1], rest), rtol=1e-12)
    assert found["head"] == head
    assert abs(kept(shapes, [found[path] for path, _, _ in network]) - density * sum(sizes)) <= 2 * len(sizes)


def test_erk_plus_says_what_is_feasible():
    params = architectures.params(architectures.resnet50())  # the head has 2,048,000 of 25,502,912 weights
    with pytest.raises(ValueError, match=r"head: 1.* above 0.0803046 and at most 1, not 0.05"):
        distributions.erk_plus(params, 0.05)
    with pytest.raises(ValueError, match=r"head: 'haed' matches no leaf; the nearest path is 'head'"):
        distributions.erk_plus(params, 0.5, head="haed")


def test_set_epsilon():
    """SET's MLP for MNIST, 784-1000-1000-1000-10 with ε = 20; the output layer is dense."""
    shapes = {"fc1": (784, 1000), "fc2": (1000, 1000), "fc3": (1000, 1000), "head": (1000, 10)}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    by_hand = [20 * 1784 / 784_000, 20 * 2000 / 1e6, 20 * 2000 / 1e6, 1.0]
    held = 20 * 1784 + 2 * 40_000 + 10_000
    density = held / (784_000 + 2_000_000 + 10_000)
    assert list(distributions.set_epsilon()(params, density).values()) == pytest.approx(by_hand)
    assert list(distributions.set_epsilon()(params, round(density, 3)).values()) == pytest.approx(by_hand)
    quick = {"fc1": (784, 1000), "fc2": (1000, 784)}  # QuickSelection's autoencoder, without a dense layer
    quick = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in quick.items()}
    found = distributions.set_epsilon(13, head=False)(quick, 13 * 1784 / 784_000)
    assert list(found.values()) == pytest.approx([13 * 1784 / 784_000] * 2)
    with pytest.raises(ValueError, match=f"ask for sparsity={1 - density:.5g}$"):
        distributions.set_epsilon()(params, 0.1)
    with pytest.raises(ValueError, match="epsilon=0 must be finite and above 0"):
        distributions.set_epsilon(0)


def lamp_scores(weight):
    squares = oracles.exact(weight).ravel() ** 2
    scores = np.array([square / squares[squares >= square].sum() if square else 0.0 for square in squares])
    return scores.reshape(weight.shape)


def lamp_masks(weights, masks, count):
    """The best `count` scores of the active weights over all layers."""
    scores = [lamp_scores(np.where(m, w, 0)) for w, m in zip(weights, masks, strict=True)]
    flat = oracles.top_among(
        np.concatenate([s.ravel() for s in scores]), np.concatenate([m.ravel() for m in masks]), count
    )
    ends = np.cumsum([w.size for w in weights])[:-1]
    return [part.reshape(w.shape) for part, w in zip(np.split(flat, ends), weights, strict=True)]


SHAPES = {"conv": (3, 3, 4, 8), "fc": (20, 24), "head": (24, 10)}


def trees():
    """Three trees of normal numbers whose layers are of very different scales."""
    draw = np.random.default_rng(11)
    scales = [(1.0, 0.1, 9.0), (0.01, 1.0, 1.0), (3.0, 3.0, 0.001)]
    make = lambda scale: {
        name: {"kernel": jnp.asarray(draw.normal(size=shape) * s, jnp.float32)}
        for (name, shape), s in zip(SHAPES.items(), scale, strict=True)
    }
    return [make(scale) for scale in scales]


@pytest.mark.parametrize("density", [0.02, 0.1, 0.5, 1.0])
def test_lamp_densities(density):
    for params in trees():
        weights = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
        total = sum(w.size for w in weights)
        wanted = lamp_masks(weights, [np.ones(w.shape, bool) for w in weights], oracles.kept(total, 1 - density))
        found = jax.tree.leaves(distributions.lamp(params, density))
        assert found == [mask.mean() for mask in wanted]
        assert all(found) and kept(SHAPES.values(), found) == oracles.kept(total, 1 - density)


def test_lamp_while_training():
    """gmp by LAMP: five prunings of three trees; within a layer the scores rank as magnitudes do."""
    tx = sparsejax.gmp(optax.sgd(0.1), sparsity=0.9, update_end=10, update_every=2, distribution="lamp")
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees())
    state, update = jax.vmap(tx.init)(params), jax.jit(jax.vmap(tx.update))
    total, moved = 288 + 480 + 240, 0
    for t in range(12):
        grads = jax.tree.map(lambda w, t=t: jnp.cos(31 * w + t), params)
        before = [[np.asarray(leaf[k]) for leaf in jax.tree.leaves((params, state.masks))] for k in range(3)]
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        moved += bool(t and t % 2 == 0 and t <= 10)
        for k, course in enumerate(before):
            count = oracles.kept(total, oracles.cubic(0.9, 0.0, 0, 10, t // 2 * 2))
            wanted = lamp_masks(course[:3], course[3:], count)
            for leaf, mask in zip(jax.tree.leaves(state.masks), wanted, strict=True):
                np.testing.assert_array_equal(leaf[k], mask, err_msg=f"step {t}, tree {k}")
    assert moved == 5
    assert all(leaf[k].any() for leaf in jax.tree.leaves(state.masks) for k in range(3))


def test_lamp_scores_stacked_layers_apart():
    draw = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6, 8)) * np.array([[[1]], [[50]], [[1e-3]]]))
    layout = sparsejax.stacked("layers")
    both = {"layers": draw}, {str(i): draw[i] for i in range(3)}
    where = lambda path, leaf: True
    tx, apart = (
        sparsejax.one_shot(optax.sgd(0.1), sparsity=0.5, distribution="lamp", where=where, layout=each)
        for each in (layout, None)
    )
    masks = [
        one.update(params, one.init(params), params)[1].masks for one, params in zip((tx, apart), both, strict=True)
    ]
    np.testing.assert_array_equal(masks[0]["layers"], np.stack([masks[1][str(i)] for i in range(3)]))
    assert masks[0]["layers"].sum() == 72
    found = distributions.lamp(both[0], 0.5, layout)["layers"]
    assert found == 0.5


def test_lamp_needs_values():
    params = {"a": jax.ShapeDtypeStruct((4, 4), jnp.float32)}
    with pytest.raises(ValueError, match=r'values.*distribution="lamp" of gmp'):
        distributions.lamp(params, 0.5)
    with pytest.raises(ValueError, match=r"density=0\.05 of 16 weights is 1, less than one"):
        distributions.lamp({"a": jnp.ones((2, 4)), "b": jnp.ones((2, 4))}, 0.05)
    with pytest.raises(ValueError, match=r"'lamp' is for gmp and one_shot"):
        sparsejax.rigl(optax.sgd(0.1), sparsity=0.5, distribution="lamp")


@pytest.mark.parametrize(
    ("text", "densities"),
    [
        ("uniform", [0.5, 0.5]),
        ("uniform_plus(head_density=0.75)", [0.375, 0.75]),
        ("erk(power=0.0)", [0.5, 0.5]),
        ("erk_plus", [1 / 4, 1.0]),
        ("erk_plus(head_density=0.5)", [0.5, 0.5]),
        ("table({'head': 0.8})", [0.35, 0.8]),
        ("table({'head': 0.8}, 'erk')", [180 / 512, 0.8]),
        ("set_epsilon(4, head=False)", [4 * 48 / 512, 4 * 40 / 256]),
        ("smart_ratio(['dense', 'head'], linear=0.5)", [0.5, 0.5]),
    ],
)
def test_names_in_a_config(text, densities):
    params = {"dense": jnp.ones((16, 32)), "head": jnp.ones((32, 8))}
    found = arguments_of({"method_args": {"distribution": text}})["distribution"]
    density = 4 * 88 / 768 if text.startswith("set_epsilon") else 0.5
    assert list(found(params, density).values()) == pytest.approx(densities)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("erkk", "unknown 'erkk'; one of"),
        ("erk(2.0)", "takes no arguments but power, by name; or write 'erk'"),
        ("uniform(power=1)", "takes no arguments; or write 'uniform'"),
        ("lamp(x=1)", "takes no arguments"),
        ("table", r"needs arguments, such as table\("),
        ("table({'head/*': 2.0})", r"densities\['head/\*'\]=2.0 must be above 0"),
        ("table({'head/*': 0.5}, 'global')", "not a distribution by which"),
        ("set_epsilon(-1)", "epsilon=-1 must be finite"),
        ("smart_ratio(['a'], linear=7)", "linear=7 must be above 0"),
    ],
)
def test_bad_names_in_a_config(text, words):
    with pytest.raises(ConfigError, match=words):
        arguments_of({"method_args": {"distribution": text}})

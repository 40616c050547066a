"""Distributions: known densities and FLOPs to the digits given, and the promises that hold for all shapes."""

import functools
import itertools
import math
import re

import architectures
import jax
import jax.numpy as jnp
import pytest

from sparsejax import distributions
from sparsejax.leaves import equinox_layout, flax_layout, stacked

MIXED = {
    "stem": {"kernel": (3, 3, 3, 16)},
    "block": {"kernel": (3, 3, 16, 32), "scale": None},
    "attention": {"query": {"kernel": (64, 4, 16)}, "out": {"kernel": (4, 16, 64)}},
    "layers": {"kernel": (5, 64, 128)},
    "head": {"kernel": (128, 10)},
}
SQRT_ERK = functools.partial(distributions.erk, power=0.5)
ALL = [distributions.uniform, distributions.er, distributions.erk, SQRT_ERK]


def shapes(tree):
    def struct(shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    return jax.tree.map(struct, tree, is_leaf=lambda leaf: isinstance(leaf, tuple))


def relative_flops(network, densities):
    macs = architectures.macs(network)
    return sum(macs[path] * densities[path] for path in macs) / sum(macs.values())


def kept(size, density):
    return size - math.floor((1 - density) * size + 1e-6)


@pytest.mark.parametrize(
    ("network", "weights", "mega_macs"),
    [
        (architectures.resnet50(), 25_502_912, 4089.2),
        (architectures.wrn22_2(), 1_076_912, 157.7),
        (architectures.vgg19(), 20_024_000, 398.1),
        (architectures.resnet20(), 270_896, 40.8),
    ],
)
def test_architectures_are_the_published_ones(network, weights, mega_macs):
    assert architectures.weights(network) == weights
    assert round(sum(architectures.macs(network).values()) / 1e6, 1) == mega_macs


@pytest.mark.parametrize(
    ("network", "ratios"),
    [
        (architectures.resnet50(), {0.8: 0.414, 0.9: 0.242, 0.95: 0.122, 0.965: 0.085, 0.99: 0.024}),
        (architectures.wrn22_2(), {0.8: 0.352, 0.9: 0.174, 0.95: 0.088}),
        (architectures.vgg19(), {0.9: 0.222, 0.95: 0.113, 0.98: 0.047}),
        (architectures.resnet20(), {0.8: 0.358, 0.9: 0.177, 0.95: 0.087}),
    ],
)
def test_erk_inference_flops(network, ratios):
    for sparsity, ratio in ratios.items():
        densities = distributions.erk(architectures.params(network), 1 - sparsity, flax_layout)
        assert round(relative_flops(network, densities), 3) == ratio


def test_uniform_inference_flops_of_resnet50_with_its_first_convolution_dense():
    network = architectures.resnet50()
    params = architectures.params(network)
    for sparsity, ratio in {0.8: 0.223, 0.9: 0.126}.items():
        by_hand = distributions.uniform({**params, "stem": None}, 1 - sparsity, flax_layout)
        assert round(relative_flops(network, {**by_hand, "stem": 1.0}), 3) == ratio
        pinned = distributions.per_layer({"stem": 1.0})(params, 1 - sparsity, flax_layout)
        assert round(relative_flops(network, pinned), 3) == ratio


def test_erk_keeps_these_layers_of_resnet50_dense():
    params = architectures.params(architectures.resnet50())

    def dense(sparsity):
        densities = distributions.erk(params, 1 - sparsity, flax_layout)
        return {path for path, density in densities.items() if density == 1}

    assert dense(0.9) == {"stage1/block1/conv1"}
    early = {f"stage1/block{block}/conv{conv}" for block in (1, 2, 3) for conv in (1, 3)}
    assert dense(0.8) == early | {"stage1/block1/shortcut", "stage2/block1/conv1"}
    assert all(params[path].shape[:2] == (1, 1) for path in dense(0.8))


def rounded(densities, digits):
    return [round(density, digits) for density in densities.values()]


@pytest.mark.parametrize("distribution", [distributions.erk, distributions.er])
@pytest.mark.parametrize(
    ("sparsity", "expected"),
    [
        (0.90, [0.0796, 0.2302, 1.0]),
        (0.95, [0.0385, 0.1113, 0.9185]),
        (0.98, [0.0154, 0.0445, 0.3674]),
        (0.99, [0.0077, 0.0223, 0.1837]),
    ],
)
def test_lenet_300_100(distribution, sparsity, expected):
    params = architectures.params(architectures.lenet_300_100())
    assert rounded(distribution(params, 1 - sparsity, flax_layout), 4) == expected


def test_lenet5():
    params = architectures.params(architectures.lenet5())
    assert rounded(distributions.erk(params, 0.05, flax_layout), 3) == [0.346, 0.041, 0.037, 0.062, 0.342]
    assert rounded(distributions.er(params, 0.05, flax_layout), 3) == [1.0, 0.386, 0.021, 0.034, 0.188]


def test_er_does_not_depend_on_where_a_framework_puts_the_channels():
    flax, torch = shapes({"a": (3, 3, 8, 32), "b": (64, 10)}), shapes({"a": (32, 8, 3, 3), "b": (10, 64)})
    for distribution in (distributions.er, distributions.erk):
        assert distribution(flax, 0.2, flax_layout) == distribution(torch, 0.2, equinox_layout)
    # 8 -> 32 channels and 64 -> 10: the densities are as (8 + 32) / (8 * 32) to (64 + 10) / (64 * 10).
    densities = distributions.er(flax, 0.1, None)
    assert densities["a"] / densities["b"] == pytest.approx((40 / 256) / (74 / 640))


@pytest.mark.parametrize("distribution", ALL)
@pytest.mark.parametrize("density", [1e-4, 0.01, 0.05, 0.1, 1 / 3, 0.5, 0.9, 0.999, 1.0])
def test_overall_density_is_met_to_one_weight_a_layer(distribution, density):
    params, layout = shapes(MIXED), stacked("layers/*")
    densities = distribution(params, density, layout)
    assert jax.tree.structure(densities) == jax.tree.structure(params)
    assert all(type(value) is float and 0 < value <= 1 for value in jax.tree.leaves(densities))
    slices = [5 if leaf.shape[0] == 5 else 1 for leaf in jax.tree.leaves(params)]
    sizes = [math.prod(leaf.shape) // count for leaf, count in zip(jax.tree.leaves(params), slices)]
    layers = list(zip(sizes, slices, jax.tree.leaves(densities)))
    uniform = sum(kept(size, density) * count for size, count, _ in layers)
    assert 0 <= sum(kept(size, value) * count for size, count, value in layers) - uniform <= sum(slices)
    assert abs(sum(size * value * count for size, count, value in layers) - uniform) < sum(slices)


@pytest.mark.parametrize("distribution", ALL)
def test_more_density_is_more_in_every_layer(distribution):
    params = shapes(MIXED)
    rows = [jax.tree.leaves(distribution(params, step / 64, flax_layout)) for step in range(1, 65)]
    assert all(low <= high for row, after in itertools.pairwise(rows) for low, high in zip(row, after))
    assert rows[-1] == [1.0] * len(rows[-1])


@pytest.mark.parametrize("distribution", ALL)
@pytest.mark.parametrize("density", [0.03, 0.3, 0.7])
def test_stacked_slices_are_separate_layers(distribution, density):
    together = shapes({"layers": (4, 31, 57), "head": (57, 10)})
    apart = shapes({**{f"layer{index}": (31, 57) for index in range(4)}, "head": (57, 10)})
    first = distribution(together, density, stacked("layers"))
    second = distribution(apart, density, flax_layout)
    assert first["head"] == pytest.approx(second["head"], rel=1e-12)
    assert all(first["layers"] == pytest.approx(second[f"layer{index}"], rel=1e-12) for index in range(4))


def test_power_zero_is_uniform():
    densities = distributions.erk(shapes({"a": (10, 10), "b": (20, 50)}), 0.3, flax_layout, power=0.0)
    assert jax.tree.leaves(densities) == pytest.approx([0.3, 0.3])


def test_arrays_and_empty_trees():
    arrays = {"a": jnp.ones((8, 4)), "b": None}
    assert distributions.uniform(arrays, 1, flax_layout) == {"a": 1.0, "b": None}
    for distribution in [*ALL, distributions.per_layer({})]:
        assert distribution({"b": None}, 0.5, flax_layout) == {"b": None}
        no_weights = distribution(shapes({"a": (0, 4), "b": (4, 4)}), 0.5, flax_layout)
        assert no_weights["b"] == 0.5


@pytest.mark.parametrize("density", [0, -0.1, 1.5, 50, math.nan])
@pytest.mark.parametrize("distribution", [*ALL, distributions.per_layer({})])
def test_density_out_of_range(distribution, density):
    with pytest.raises(ValueError, match=rf"density={density} must be above 0 and at most 1"):
        distribution(shapes(MIXED), density, flax_layout)


def test_power_out_of_range():
    for power in (-1, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"power={power} must be finite and at least 0"):
            distributions.erk(shapes(MIXED), 0.1, flax_layout, power=power)


@pytest.mark.parametrize("default", [None, *ALL])
def test_per_layer_keeps_the_total(default):
    params = shapes(MIXED)
    table = {"stem/*": 1.0, "*/out/*": 0.25}
    densities = distributions.per_layer(table, default=default)(params, 0.2, flax_layout)
    assert densities["stem"]["kernel"] == 1.0
    assert densities["attention"]["out"]["kernel"] == 0.25
    assert densities["block"]["scale"] is None
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(params)]
    total = sum(kept(size, value) for size, value in zip(sizes, jax.tree.leaves(densities)))
    assert abs(total - 0.2 * sum(sizes)) <= 2 * len(sizes)


def test_per_layer_resolves_the_default_on_the_rest():
    # By hand: 20 of 200 weights at density 1 leave 0.4 * 200 - 20 = 60 for the other 180.
    params = shapes({"a": (4, 5), "b": (10, 10), "c": (8, 10)})
    densities = distributions.per_layer({"a": 1.0})(params, 0.4, flax_layout)
    assert densities == {"a": 1.0, "b": pytest.approx(60 / 180), "c": pytest.approx(60 / 180)}
    rest = distributions.erk({"a": None, "b": params["b"], "c": params["c"]}, 60 / 180, flax_layout)
    densities = distributions.per_layer({"a": 1.0}, default=distributions.erk)(params, 0.4, flax_layout)
    assert {**densities, "a": None} == pytest.approx(rest)


def test_per_layer_takes_the_first_glob_that_matches():
    params = shapes({"a": (4, 5), "b": (10, 10)})
    densities = distributions.per_layer({"a": 0.5, "*": 0.1})(params, 20 / 120, flax_layout)
    assert densities == {"a": 0.5, "b": 0.1}


def test_per_layer_says_what_is_feasible():
    params = shapes({"a": (10, 10), "b": (10, 30)})
    # a keeps 100 of 400 weights: between 0.25 (b empty, which is not allowed) and 1 are possible.
    with pytest.raises(ValueError, match=r"\(a: 1\).* above 0.25 and at most 1, not 0.2$"):
        distributions.per_layer({"a": 1.0})(params, 0.2, flax_layout)
    with pytest.raises(ValueError, match=r"\(a: 1\).* above 0.25"):
        distributions.per_layer({"a": 1.0})(params, 0.25, flax_layout)
    with pytest.raises(ValueError, match=r"\(b: 0.1\).* above 0.075 and at most 0.325, not 0.5"):
        distributions.per_layer({"b": 0.1})(params, 0.5, flax_layout)
    with pytest.raises(ValueError, match=r"\(a: 0.5, b: 0.1\).* can be 0.2, not 0.3"):
        distributions.per_layer({"a": 0.5, "b": 0.1})(params, 0.3, flax_layout)
    everything = distributions.per_layer({"a": 0.5, "b": 0.1})(params, 0.2, flax_layout)
    assert everything == {"a": 0.5, "b": 0.1}
    at_the_limit = distributions.per_layer({"b": 0.1})(params, 0.325, flax_layout)
    assert at_the_limit == {"a": 1.0, "b": 0.1}


def test_per_layer_rejects_bad_tables():
    with pytest.raises(ValueError, match=r"densities\['a'\]=0 must be above 0 and at most 1"):
        distributions.per_layer({"a": 0})
    params = {**shapes({"a": (4, 5)}), "bias": None}
    for glob in ("hed/*", "bias"):
        with pytest.raises(ValueError, match=f"densities: {re.escape(repr(glob))} matches no"):
            distributions.per_layer({glob: 0.5})(params, 0.4, flax_layout)

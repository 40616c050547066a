"""Patterns against loops over the same units in plain NumPy, with the exact count for every shape."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import many_devices
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sparsejax.leaves import Axes, equinox_layout, flax_layout, stacked
from sparsejax.patterns import (
    block,
    channel,
    check_pattern_globs,
    fan_in,
    kept_units,
    nm,
    pattern_mask,
    pattern_of,
    unstructured,
)

DENSE = ("Dense_0/kernel", (64, 10))
ODD = ("Dense_1/kernel", (9, 6))
CONV = ("Conv_0/kernel", (3, 3, 8, 12))
QUERY = ("attention/query/kernel", (16, 4, 8))
OUT = ("attention/out/kernel", (4, 8, 16))
STACK = ("layers/kernel", (5, 8, 12))
layout = stacked("layers/*")
make = jax.jit(pattern_mask, static_argnums=(0, 3))


def scores_of(shape, seed=0):
    """Integers, so that means over units are exact in float32, with many ties."""
    return np.random.default_rng(seed).integers(-20, 20, shape).astype(np.float32)


def kept_of(groups, count, shape):
    """The mask of the `count` units with the largest mean in each group; a unit is a list of indices."""
    mask = np.zeros(shape, bool)
    for group in groups:
        ranked = sorted(range(len(group)), key=lambda i: -group[i][0])  # stable: the lowest index first among equals
        for i in ranked[:count]:
            for index in group[i][1]:
                mask[index] = True
    return mask


def unit(scores, indices):
    indices = list(indices)
    return float(np.mean([scores[index] for index in indices], dtype=np.float64)), indices


def every_index(shape, fixed=None):
    """All indices of an array, in order, some axes held at a value."""
    return itertools.product(*([fixed[a]] if fixed and a in fixed else range(size) for a, size in enumerate(shape)))


def slices_of(shape, axes):
    for values in itertools.product(*(range(shape[axis]) for axis in axes.stacked)):
        yield dict(zip(axes.stacked, values, strict=True))


def single_weights(scores, axes):
    return [[unit(scores, [i]) for i in every_index(scores.shape, held)] for held in slices_of(scores.shape, axes)]


def runs_of(m, axis):
    def groups(scores, axes):
        found = []
        for index in every_index(scores.shape):
            if index[axis] % m == 0:
                run = [(*index[:axis], index[axis] + step, *index[axis + 1 :]) for step in range(m)]
                found.append([unit(scores, [i]) for i in run])
        return found

    return groups


def inputs_of_neurons(scores, axes):
    """One group for each index along the stacked and the output axes."""
    along = (*axes.stacked, *axes.outputs)
    places = itertools.product(*(range(scores.shape[axis]) for axis in along))
    held = [dict(zip(along, place, strict=True)) for place in places]
    return [[unit(scores, [i]) for i in every_index(scores.shape, fixed)] for fixed in held]


def blocks_of(height, width):
    def groups(scores, axes):
        row, column = axes.inputs[-1], axes.outputs[-1]
        found = []
        for held in slices_of(scores.shape, axes):
            members = {}
            for index in every_index(scores.shape, held):
                corner = list(index)
                corner[row] -= index[row] % height
                corner[column] -= index[column] % width
                members.setdefault(tuple(corner), []).append(index)
            found.append([unit(scores, members[corner]) for corner in sorted(members)])
        return found

    return groups


def channels_of(axis):
    def groups(scores, axes):
        size = scores.shape[axis]
        return [
            [unit(scores, every_index(scores.shape, {**held, axis: at})) for at in range(size)]
            for held in slices_of(scores.shape, axes)
        ]

    return groups


CASES = [
    *[(unstructured(), leaf, single_weights) for leaf in (DENSE, ODD, CONV, QUERY, OUT, STACK)],
    *[
        (nm(2, 4), leaf, runs_of(4, axis))
        for leaf, axis in ((DENSE, 0), (CONV, 2), (QUERY, 0), (OUT, 1), (STACK, 1))
    ],
    *[(fan_in(), leaf, inputs_of_neurons) for leaf in (DENSE, ODD, CONV, QUERY, OUT, STACK)],
    (nm(1, 3), ODD, runs_of(3, 0)),
    (nm(3, 3, axis=-1), ODD, runs_of(3, 1)),
    (nm(1, 4, axis=3), CONV, runs_of(4, 3)),
    *[
        (block(shape), leaf, blocks_of(*shape))
        for shape, leaf in [
            ((4, 4), ODD), ((8, 8), DENSE), ((5, 5), DENSE), ((4, 8), CONV), ((3, 5), QUERY), ((3, 5), OUT),
            ((5, 5), STACK), ((100, 100), ODD), ((1, 1), ODD),
        ]
    ],
    *[(channel(), leaf, channels_of(axis)) for leaf, axis in ((DENSE, 1), (CONV, 3), (QUERY, 2), (OUT, 2), (STACK, 2))],
    (channel(axis=-2), CONV, channels_of(2)),
    (channel(axis=1), STACK, channels_of(1)),
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "leaf", "groups"), CASES, ids=lambda value: str(value).partition(" at ")[0])
def test_every_group_keeps_its_best_units_whatever_the_shape(pattern, leaf, groups):
    path, shape = leaf
    axes = layout(path, jnp.zeros(shape))
    scores = scores_of(shape)
    expected = groups(scores, axes)
    size = pattern.group_size(shape, axes)
    assert {len(group) for group in expected} == {size}
    assert sum(len(members) for group in expected for _, members in group) == math.prod(shape)
    for count in sorted({0, 1, size // 2, size - 1, size}):
        mask = np.asarray(make(pattern, scores, count, axes))
        assert mask.shape == shape
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, kept_of(expected, count, shape), err_msg=f"count {count} of {size}")


@pytest.mark.parametrize(("pattern", "leaf", "groups"), CASES, ids=lambda value: str(value).partition(" at ")[0])
def test_units_of_a_mask_are_all_kept_or_all_gone(pattern, leaf, groups):
    path, shape = leaf
    axes = layout(path, jnp.zeros(shape))
    mask = make(pattern, scores_of(shape), max(1, pattern.group_size(shape, axes) // 2), axes)
    units = jax.jit(functools.partial(pattern.units, axes=axes))(mask.astype(jnp.float32))
    assert set(np.unique(units)) <= {0.0, 1.0}
    group, layer = pattern.group_axes(shape, axes), pattern.slice_axes(shape, axes)
    assert set(group) <= set(layer)
    kept = np.asarray(units).sum(group)
    assert len(np.unique(kept)) == 1
    layers = np.asarray(units).sum(layer)
    assert layers.size == math.prod(shape[axis] for axis in axes.stacked)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(data=st.data())
def test_any_shape_and_count_agree_with_the_loops(data):
    shape = data.draw(st.sampled_from([(9, 6), (8, 12)]))
    chosen = {
        unstructured(): single_weights,
        nm(1, shape[0] // 2 if shape[0] % 2 == 0 else 3): runs_of(shape[0] // 2 if shape[0] % 2 == 0 else 3, 0),
        fan_in(): inputs_of_neurons,
        block((4, 4)): blocks_of(4, 4),
        channel(): channels_of(1),
    }
    pattern = data.draw(st.sampled_from(list(chosen)))
    axes = flax_layout("kernel", jnp.zeros(shape))
    count = data.draw(st.integers(0, pattern.group_size(shape, axes)))
    scores = np.array(data.draw(st.lists(st.integers(-3, 3), min_size=math.prod(shape), max_size=math.prod(shape))))
    scores = scores.reshape(shape).astype(np.float32)
    expected = kept_of(chosen[pattern](scores, axes), count, shape)
    np.testing.assert_array_equal(make(pattern, scores, count, axes), expected)


def test_one_count_for_each_stacked_layer():
    path, shape = STACK
    axes = layout(path, jnp.zeros(shape))
    counts = jnp.array([0, 1, 40, 95, 96]).reshape(5, 1, 1)
    mask = make(unstructured(), scores_of(shape), counts, axes)
    assert mask.sum((1, 2)).tolist() == [0, 1, 40, 95, 96]


def test_layers_of_other_scale_each_keep_their_share():
    path, shape = STACK
    scaled = scores_of(shape) * np.array([1.0, 1e-3, 1e3, 1e-6, 1.0], np.float32)[:, None, None]
    mask = make(unstructured(), scaled, 48, layout(path, scaled))
    assert mask.sum((1, 2)).tolist() == [48] * 5


def test_the_default_axes_are_those_of_a_flax_kernel():
    scores = jnp.asarray(scores_of((8, 12)))
    np.testing.assert_array_equal(
        make(nm(1, 4), scores, 1, None), make(nm(1, 4, axis=0), scores, 1, Axes((), (0,), (1,)))
    )


def test_equinox_weights_group_along_their_last_axis():
    scores = scores_of((6, 8))
    axes = equinox_layout("weight", scores)
    np.testing.assert_array_equal(make(nm(2, 4), scores, 2, axes), kept_of(runs_of(4, 1)(scores, axes), 2, (6, 8)))
    np.testing.assert_array_equal(make(channel(), scores, 2, axes), kept_of(channels_of(0)(scores, axes), 2, (6, 8)))
    np.testing.assert_array_equal(make(fan_in(), scores, 3, axes), kept_of(inputs_of_neurons(scores, axes), 3, (6, 8)))


def test_equinox_convolutions_group_along_their_input_channels():
    weight = jnp.zeros((16, 8, 3, 3))
    axes = equinox_layout("conv/weight", weight)
    assert nm(2, 4).units(weight, axes).shape == (16, 2, 4, 3, 3)
    assert nm(2, 4).group_axes(weight.shape, axes) == (2,)
    assert block((4, 8)).group_size(weight.shape, axes) == 2 * 2 * 9


@pytest.mark.parametrize(
    ("kind", "spec"),
    [(AxisType.Auto, ("x", "y")), (AxisType.Explicit, ("x", "y")), (AxisType.Explicit, (None, ("x", "y")))],
    ids=str,
)
def test_sharded_scores_give_the_same_mask(kind, spec):
    """Units within a device's part, across parts (32 of 64 rows on 4 devices), and with remainders (5 x 5)."""
    scores = scores_of((64, 48))
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    cases = ((nm(2, 4), 2), (nm(2, 32), 2), (fan_in(), 13), (block((4, 4)), 20), (block((5, 5)), 20), (channel(), 7))
    with many_devices(), jax.set_mesh(mesh):
        placed = jax.device_put(scores, NamedSharding(mesh, PartitionSpec(*spec)))
        masks = jax.jit(lambda placed: [pattern_mask(pattern, placed, count) for pattern, count in cases])(placed)
    alone = jax.jit(lambda scores: [pattern_mask(pattern, scores, count) for pattern, count in cases])(scores)
    for mask, expected in zip(masks, alone, strict=True):
        np.testing.assert_array_equal(mask, expected)


def test_random_ties_keep_the_count_in_every_group():
    for pattern, count in ((nm(2, 4), 2), (fan_in(), 7), (block((4, 4)), 3), (channel(), 5), (unstructured(), 77)):
        axes = flax_layout("kernel", jnp.zeros((20, 12)))
        masks = [np.asarray(make(pattern, jnp.ones((20, 12)), count, axes, jax.random.key(i))) for i in (0, 1)]
        for mask in masks:
            units = np.asarray(pattern.units(jnp.asarray(mask, jnp.float32), axes))
            assert set(np.unique(units.sum(pattern.group_axes((20, 12), axes)))) == {count}
        assert not np.array_equal(*masks)


def test_a_unit_with_nan_is_kept_last():
    scores = np.ones((8, 4), np.float32)
    scores[1, 1] = np.nan
    for pattern, count in ((unstructured(), 31), (nm(3, 4), 3), (fan_in(), 7), (block((2, 2)), 7), (channel(), 3)):
        assert not make(pattern, scores, count, flax_layout("kernel", scores))[1, 1]


def test_bfloat16_scores_are_averaged_in_float32():
    scores = jnp.ones((256, 2), jnp.bfloat16).at[0, 1].set(1.0078125)  # one step above 1: lost in a bfloat16 mean
    mask = make(channel(), scores, 1, None)
    assert mask[:, 1].all()
    assert not mask[:, 0].any()


# What is refused.


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: nm(5, 4), r"nm\(5, 4\).*0 < n <= m"),
        (lambda: nm(0, 4), r"nm\(0, 4\)"),
        (lambda: nm(-1, 4), r"nm\(-1, 4\)"),
        (lambda: nm(1.0, 4), r"nm\(1.0, 4\)"),
        (lambda: nm(2, 4, axis="in"), "axis='in'"),
        (lambda: nm(2, 4, indivisible="ignore"), r"indivisible='ignore'.*'raise' or 'skip'"),
        (lambda: block((4, 0)), r"block\(\(4, 0\)\).*positive"),
        (lambda: block((4,)), r"block\(\(4,\)\)"),
        (lambda: block((4, 4.0)), r"block\(\(4, 4.0\)\)"),
        (lambda: block(4), r"block\(4\)"),
        (lambda: channel(axis=1.5), "axis=1.5"),
    ],
)
def test_a_pattern_out_of_range_is_refused_when_it_is_built(build, says):
    with pytest.raises(ValueError, match=says):
        build()


def test_an_axis_that_m_does_not_divide_is_refused_or_skipped():
    axes = flax_layout("head/kernel", jnp.zeros((10, 8)))
    with pytest.raises(ValueError, match=r"head/kernel: axis 0 of \(10, 8\) has 10 entries, which m = 4"):
        nm(2, 4).check("head/kernel", (10, 8), axes)
    assert not nm(2, 4, indivisible="skip").check("head/kernel", (10, 8), axes)
    assert nm(2, 4, axis=1).check("head/kernel", (10, 8), axes)
    with pytest.raises(ValueError, match="which m = 4 does not divide"):
        pattern_mask(nm(2, 4), jnp.ones((10, 8)), 2)
    assert pattern_mask(nm(2, 4, indivisible="skip"), jnp.ones((10, 8)), 2).all()


@pytest.mark.parametrize("pattern", [nm(2, 4, axis=2), channel(axis=-3)], ids=str)
def test_an_axis_that_is_not_there_is_refused(pattern):
    with pytest.raises(ValueError, match=rf"head/kernel: .*axis {pattern.axis} is not an axis of \(8, 8\)"):
        pattern.check("head/kernel", (8, 8), flax_layout("head/kernel", jnp.zeros((8, 8))))


@pytest.mark.parametrize("pattern", [nm(2, 4, axis=0), channel(axis=-3)], ids=str)
def test_a_stacked_axis_is_refused(pattern):
    with pytest.raises(ValueError, match=rf"layers/kernel: .*axis {pattern.axis} of \(4, 8, 8\) is stacked"):
        pattern.check("layers/kernel", (4, 8, 8), Axes((0,), (1,), (2,)))


@pytest.mark.parametrize("axes", [Axes((), (0, 1), ()), Axes((0,), (), (1,))])
@pytest.mark.parametrize(("pattern", "says"), [(block((4, 4)), r"block\(4, 4\)"), (fan_in(), r"fan_in\(\)")], ids=str)
def test_what_needs_inputs_and_outputs_is_refused_without(pattern, says, axes):
    with pytest.raises(ValueError, match=rf"a/kernel: {says} needs an input and an output axis"):
        pattern.check("a/kernel", (8, 8), axes)


# Which pattern a leaf gets.


def test_globs_map_leaves_to_patterns_and_the_first_that_matches_wins():
    table = {"blocks/0/*": nm(1, 4), "blocks/*": nm(2, 4), "head/*": channel()}
    assert pattern_of(table, "blocks/0/kernel") == nm(1, 4)
    assert pattern_of(table, "blocks/7/kernel") == nm(2, 4)
    assert pattern_of(table, "head/kernel") == channel()
    assert pattern_of(table, "stem/kernel") == unstructured()
    assert pattern_of(None, "stem/kernel") == unstructured()
    assert pattern_of({"head/*": fan_in()}, "head/kernel") == fan_in()
    assert pattern_of(block((2, 2)), "stem/kernel") == block((2, 2))


def test_a_glob_of_a_table_that_matches_nothing_is_refused():
    paths = ["blocks/0/kernel", "head/kernel"]
    check_pattern_globs({"blocks/*": nm(2, 4)}, paths)
    check_pattern_globs(nm(2, 4), paths)
    check_pattern_globs(None, paths)
    with pytest.raises(ValueError, match=r"pattern: 'block/\*' matches no leaf; the nearest path is 'blocks/0/kernel'"):
        check_pattern_globs({"block/*": nm(2, 4)}, paths)


def test_what_is_not_a_pattern_is_refused():
    for wrong in ("2:4", {"head/*": "2:4"}):
        with pytest.raises(ValueError, match=r"head/kernel: pattern='2:4'.*nm\(n, m\)"):
            pattern_of(wrong, "head/kernel")


# Counts.


@pytest.mark.parametrize(
    ("units", "sparsity", "kept"),
    [(1000, 0.9, 100), (10, 0.7, 3), (100, 0.29, 71), (7, 0.5, 4), (5, 0.0, 5), (3, 0.99, 1), (0, 0.5, 0)],
)
def test_how_many_units_stay(units, sparsity, kept):
    assert kept_units(units, sparsity) == kept


def test_counts_are_exact_where_float32_is_not():
    assert kept_units(124_439_808, 0.9) == 124_439_808 - 111_995_827
    assert kept_units(2**40, 0.5) == 2**39


def test_patterns_compare_and_print():
    assert nm(2, 4) == nm(2, 4) != nm(1, 4)
    assert len({block((4, 4)), block([4, 4]), block((8, 8))}) == 2
    assert len({unstructured(), fan_in(), channel()}) == 3
    assert str(channel()) == "Channel(axis=None)"

"""Selection: exact masks against NumPy's stable sort, on one device and on eight, whatever the dtype and ties."""

import contextlib
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from devices import many_devices
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import sparsejax
from sparsejax import selection
from sparsejax.selection import (
    Scores,
    as_count,
    count_true,
    counts,
    kth_largest,
    minus,
    order_key,
    scaled,
    select_across,
    top_mask,
)
from sparsejax.selection.random_masks import Draw, drawn_masks
from sparsejax.selection.slices import kept_shape

FLOATS = [np.dtype(np.float32), np.dtype(jnp.bfloat16), np.dtype(np.float16)]
INTEGERS = [np.dtype(kind) for kind in (np.int32, np.int8, np.uint32, np.bool_)]
SHAPES = [(24,), (4, 6), (2, 3, 4)]
fast = settings(deadline=None, derandomize=True, max_examples=60)
top = jax.jit(top_mask, static_argnames="axes")


def best(scores, k):
    """The mask of the k largest entries of a flat array, by a stable sort; NaN last, then the lowest index first."""
    wide = scores.astype(np.float64 if scores.dtype in FLOATS else np.int64)
    missing = wide != wide
    order = np.lexsort((np.where(missing, 0, -wide), missing))
    mask = np.zeros(scores.size, bool)
    mask[order[:k]] = True
    return mask


def oracle(scores, k, axes=None):
    """`best` in each slice along the axes that are not ranked together."""
    axes = tuple(range(scores.ndim)) if axes is None else axes
    rest = tuple(axis for axis in range(scores.ndim) if axis not in axes)
    moved = np.transpose(scores, (*rest, *axes))
    counts = np.broadcast_to(k, [1 if axis in axes else size for axis, size in enumerate(scores.shape)])
    rows = moved.reshape(math.prod(scores.shape[axis] for axis in rest), -1)
    chosen = np.stack([best(row, count) for row, count in zip(rows, counts.ravel(), strict=True)])
    return np.transpose(chosen.reshape(moved.shape), np.argsort((*rest, *axes)))


def special(dtype):
    """Values at which an order by bit pattern could go wrong."""
    if dtype in FLOATS:
        info = jnp.finfo(dtype)
        tiny, small, large = info.smallest_subnormal, info.smallest_normal, info.max
        values = [0.0, np.inf, np.nan, 1.0, 1.5, tiny, small, large]
        return np.array([sign * value for value in values for sign in (1.0, -1.0)], dtype)
    if dtype == np.bool_:
        return np.array([False, True])
    info = np.iinfo(dtype)
    return np.array([info.min, info.min + 1, 0, 1, 2, info.max // 2, info.max // 2 + 1, info.max - 1, info.max], dtype)


def random_scores(dtype, shape, seed=0):
    random = np.random.default_rng(seed)
    if dtype in FLOATS:
        return random.standard_normal(shape).astype(dtype)
    values = special(dtype)
    return values[random.integers(0, len(values), shape)]


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=str)
def test_every_count_keeps_what_a_stable_sort_keeps(dtype):
    for scores in (random_scores(dtype, (4, 6)), np.resize(special(dtype), (4, 6)), np.zeros((4, 6), dtype)):
        for k in range(scores.size + 1):
            np.testing.assert_array_equal(top(scores, k), oracle(scores, k), err_msg=f"k = {k} of {scores}")


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=str)
@fast
@given(data=st.data())
def test_any_scores_keep_what_a_stable_sort_keeps(dtype, data):
    values = special(dtype)
    shape = data.draw(st.sampled_from(SHAPES if dtype == np.float32 else SHAPES[1:2]))
    picks = data.draw(st.lists(st.integers(0, len(values) - 1), min_size=24, max_size=24))
    k = data.draw(st.integers(0, 24))
    scores = values[picks].reshape(shape)
    np.testing.assert_array_equal(top(scores, k), oracle(scores, k))


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_each_slice_is_ranked_on_its_own_with_its_own_count(axes):
    random = np.random.default_rng(1)
    scores = random.integers(-4, 4, (5, 6, 7)).astype(np.float32)
    shape = [1 if axis in axes else size for axis, size in enumerate(scores.shape)]
    size = math.prod(scores.shape[axis] for axis in axes)
    counts = random.integers(0, size + 1, shape)
    counts.flat[:2] = (0, size)
    np.testing.assert_array_equal(top(scores, counts, axes=axes), oracle(scores, counts, axes))
    np.testing.assert_array_equal(top(scores, 3, axes=axes), oracle(scores, 3, axes))


def test_axes_may_be_negative_and_in_any_order():
    scores = np.random.default_rng(2).integers(-2, 2, (3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(top(scores, 7, axes=(-1, -2)), oracle(scores, 7, (1, 2)))


def test_ranking_single_entries_scalars_and_empty_arrays():
    counts = jnp.array([[1, 0, 1], [0, 0, 1]])
    np.testing.assert_array_equal(top(jnp.ones((2, 3)), counts, axes=()), counts == 1)
    assert top(jnp.float32(-1.0), 1).tolist() is True
    assert top(jnp.float32(-1.0), 0).tolist() is False
    assert top(jnp.zeros((0, 3)), 0).shape == (0, 3)


def test_mostly_zeros_are_counted_exactly():
    random = np.random.default_rng(3)
    scores = random.standard_normal((200, 300)).astype(np.float32)
    scores[random.random(scores.shape) < 0.95] = 0.0
    scores[::2] *= -1.0  # so that half of the zeros are -0
    for k in (0, 1, 1_000, 5_000, 30_000, 59_999, 60_000):
        mask = np.asarray(top(scores, k))
        assert mask.sum() == k
        np.testing.assert_array_equal(mask, oracle(scores, k))


def test_counts_beyond_sixteen_bits():
    scores = np.random.default_rng(4).standard_normal(400_000).astype(np.float32)
    scores[100_000:300_000] = 0.25
    for k in (65_535, 65_536, 65_537, 131_072, 250_000):
        np.testing.assert_array_equal(top(scores, k), oracle(scores, k))


def test_wide_types_under_x64():
    with jax.enable_x64(True):
        floats = np.random.default_rng(5).standard_normal((4, 6))
        floats[1] = 1.0 + np.arange(6) * 2.0**-52  # differ beyond float32
        integers = (floats * 2.0**60).astype(np.int64)
        for scores, reference in ((floats, floats), (integers, integers)):
            order = np.argsort(-reference, axis=None, kind="stable")
            wide = jax.jit(lambda scores, k: top_mask(scores, k))
            for k in (1, 7, 20):
                assert set(np.flatnonzero(wide(scores, k))) == set(order[:k])


# The k-th largest value.


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=str)
def test_kth_largest_is_what_partition_finds(dtype):
    scores = random_scores(dtype, (211,), seed=6)
    wide = np.sort(scores.astype(np.float64))
    kth = jax.jit(kth_largest)
    for k in (1, 2, 57, 210, 211):
        found = np.asarray(kth(scores, k))
        assert found.dtype == dtype
        assert found.astype(np.float64) == np.partition(wide, scores.size - k)[scores.size - k]


def test_kth_largest_finds_infinities_subnormals_and_nan():
    values = np.array([np.nan, -np.inf, 0.0, 1e-45, np.inf, -3e-42], np.float32)
    found = [np.asarray(jax.jit(kth_largest)(values, k)) for k in range(1, 7)]
    assert [float(value) for value in found[:5]] == [np.inf, float(values[3]), 0.0, float(values[5]), -np.inf]
    assert np.isnan(found[5])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_keys_order_every_pair_of_values_and_leave_room_at_both_ends(dtype):
    values = special(dtype)
    keys = np.asarray(order_key(jnp.asarray(values))).astype(np.int64)
    wide = values.astype(np.float64)
    wide = np.where(np.isnan(wide), -np.inf, wide)
    nan = np.isnan(values.astype(np.float64))
    for i in range(len(values)):
        for j in range(len(values)):
            assert (keys[i] < keys[j]) == (wide[i] < wide[j] or (nan[i] and not nan[j])), (values[i], values[j])
    assert keys.min() > 0
    assert keys.max() < 2 ** (8 * dtype.itemsize) - 1


# Ties at random.


TIED = np.repeat(np.array([1, 0, 0, 0, -1], np.float32), 8).reshape(5, 8)
draw_ties = jax.jit(jax.vmap(lambda k, key: top_mask(TIED, k, ties=key)))


def test_random_ties_keep_the_count_and_choose_among_the_tied_alone():
    masks = np.asarray(draw_ties(np.full(2_000, 14), jax.random.split(jax.random.key(0), 2_000)))
    assert (masks.sum((1, 2)) == 14).all()
    assert masks[:, TIED > 0].all()
    assert not masks[:, TIED < 0].any()
    share = masks[:, TIED == 0].mean(0)  # 6 of 24: a standard error of 0.0097
    assert abs(share - 0.25).max() < 0.05
    assert len({mask.tobytes() for mask in masks}) > 1_900


def test_random_ties_with_all_or_none_of_the_tied():
    ks = np.resize([0, 8, 32, 40], 2_000)
    masks = np.asarray(draw_ties(ks, jax.random.split(jax.random.key(1), 2_000)))
    for k, mask in zip(ks[:40], masks[:40], strict=True):
        np.testing.assert_array_equal(mask, oracle(TIED, k))


def test_random_ties_of_a_scalar():
    assert bool(top_mask(jnp.float32(1), 1, ties=jax.random.key(0)))
    assert not bool(top_mask(jnp.float32(1), 0, ties=jax.random.key(0)))


def test_random_ties_in_slices():
    scores = jnp.zeros((4, 50))
    counts = jnp.array([[0], [1], [25], [50]])
    mask = np.asarray(top(scores, counts, axes=(1,), ties=jax.random.key(2)))
    assert mask.sum(1).tolist() == [0, 1, 25, 50]
    assert not (mask[2] == oracle(np.zeros(50), 25)).all()


# Several leaves under one threshold.


def across(arrays, k, ties=None):
    return select_across([Scores(order_key, (array,)) for array in arrays], k, ties)


def test_one_threshold_over_leaves_prefers_the_first_leaf_among_equals():
    random = np.random.default_rng(7)
    arrays = [random.integers(-3, 3, shape).astype(np.float32) for shape in ((4, 5), (7,), (2, 3, 2), (1, 1))]
    joined = np.concatenate([array.ravel() for array in arrays])
    run = jax.jit(across)
    for k in (0, 1, 13, 20, 39, 40):
        masks = run(arrays, k)
        assert [mask.shape for mask in masks] == [array.shape for array in arrays]
        np.testing.assert_array_equal(np.concatenate([np.ravel(mask) for mask in masks]), best(joined, k))


def test_one_threshold_over_a_single_leaf():
    scores = np.random.default_rng(8).integers(-3, 3, (4, 5)).astype(np.float32)
    (mask,) = jax.jit(across)([scores], 7)
    np.testing.assert_array_equal(mask, oracle(scores, 7))


def test_one_threshold_with_random_ties_keeps_the_count():
    arrays = [jnp.zeros((4, 5)), jnp.ones(3), jnp.zeros(30)]
    keys = jax.random.split(jax.random.key(3), 3)
    masks = [np.asarray(mask) for mask in jax.jit(across)(arrays, 13, list(keys))]
    assert sum(mask.sum() for mask in masks) == 13
    assert masks[1].all()


def test_one_threshold_refuses_scores_of_several_types():
    with pytest.raises(ValueError, match=r"uint16.*uint32|uint32.*uint16"):
        across([jnp.ones(4), jnp.ones(4, jnp.bfloat16)], 2)


# Counts and indices of more than one word.


@pytest.mark.parametrize(
    ("word", "axes"),
    [(2, (0, 1, 2)), (5, (0, 1, 2)), (9, (0, 1, 2)), (40, (0, 1, 2)), (4, (1, 2)), (9, (0, 2)), (3, (2,))],
)
def test_two_words_of_counts_and_indices(word, axes, monkeypatch):
    scores = np.random.default_rng(9).integers(-2, 2, (3, 4, 5)).astype(np.float32)
    size = math.prod(scores.shape[axis] for axis in axes)
    monkeypatch.setattr(counts, "WORD", word)
    small = jax.jit(lambda scores, k: top_mask(scores, k, axes=axes))
    for k in (0, 1, size // 2, size - 1, size):
        np.testing.assert_array_equal(small(scores, k), oracle(scores, k, axes), err_msg=f"k = {k}")


def test_two_words_across_leaves(monkeypatch):
    random = np.random.default_rng(16)
    arrays = [random.integers(-1, 2, shape).astype(np.float32) for shape in ((3, 4), (5, 2, 2))]
    monkeypatch.setattr(counts, "WORD", 6)
    joined = np.concatenate([array.ravel() for array in arrays])
    small = jax.jit(lambda arrays, k: across(arrays, k))
    for k in (0, 7, 16, 31, 32):
        np.testing.assert_array_equal(np.concatenate([np.ravel(mask) for mask in small(arrays, k)]), best(joined, k))


@pytest.mark.parametrize("word", [4, 30, 2**32])
def test_counts_over_some_axes(word, monkeypatch):
    monkeypatch.setattr(counts, "WORD", word)
    mask = np.random.default_rng(10).random((3, 4, 5)) < 0.6
    for axes in ((0,), (0, 1), (1, 2), (0, 1, 2), ()):
        found = count_true([jnp.asarray(mask), jnp.asarray(~mask)], axes)
        for count, expected in zip(found, (mask, ~mask), strict=True):
            np.testing.assert_array_equal(integer(count), expected.sum(axes, keepdims=True))


def integer(count):
    """A Count as Python integers, in an array of its shape."""
    hi, lo = (np.asarray(word).astype(object) for word in count)
    return np.asarray(hi * 2**16 + lo, object)


def test_counts_of_many_rows_carry():
    rows = np.random.default_rng(11).integers(2**31, 2**32, (70_001, 1)).astype(np.uint32)
    rows[:70_000] |= 0xFFFF
    total = counts.total(as_count(jnp.asarray(rows)), (0,))
    assert integer(total).item() == int(rows.astype(object).sum())


# Arithmetic of counts. Jitted, so that hundreds of examples cost little.

words = [(0, 200), (2**16 - 2, 2**16 + 2), (2**31 - 2, 2**33), (0, 2**48 - 1)]
whole = st.one_of([st.integers(*ends) for ends in words])
jit_minus, jit_plus, jit_min = (jax.jit(f) for f in (minus, lambda *each: counts.plus(each), counts.smaller))
jit_scaled = jax.jit(scaled, static_argnames="rounding")


@fast
@given(a=whole)
def test_a_python_integer_becomes_a_count(a):
    count = as_count(a)
    assert integer(count).item() == a
    assert count.hi.dtype == count.lo.dtype == jnp.uint32
    if a < 2**32:
        assert integer(as_count(jnp.uint32(a))).item() == a
    assert integer(as_count(np.int64(a))).item() == a


@fast
@given(a=whole, b=whole)
def test_count_arithmetic_is_that_of_integers(a, b):
    x, y = as_count(a), as_count(b)
    assert integer(jit_minus(x, y)).item() == max(a - b, 0)
    assert integer(jit_min(x, y)).item() == min(a, b)
    if a + b < 2**48:
        plus = jit_plus(x, y)
        assert integer(plus).item() == a + b
        assert plus.lo < 2**16


@fast
@given(
    a=st.integers(0, 2**20),
    fraction=st.floats(0, 1, width=32, allow_subnormal=False),
    rounding=st.sampled_from(["floor", "ceil"]),
)
def test_a_share_of_a_count_rounds_as_asked(a, fraction, rounding):
    found = integer(jit_scaled(as_count(a), np.float32(fraction), rounding=rounding)).item()
    exact = a * fraction
    near = 4e-7 * exact  # a product this close to an integer counts as that integer
    low, high = (math.floor, math.floor) if rounding == "floor" else (math.ceil, math.ceil)
    assert low(exact - near) <= found <= min(a, high(exact + near))


def test_decimal_shares_are_what_a_person_expects():
    for n, fraction, expected in ((10, 0.3, 3), (1000, 0.1, 100), (7, 1.0, 7), (100, 0.29, 29), (3, 0.0, 0)):
        for rounding in ("floor", "ceil"):
            assert integer(scaled(as_count(n), fraction, rounding)).item() == expected


@fast
@given(a=st.integers(2**24, 2**47), fraction=st.floats(0, 1, width=32))
def test_a_share_of_a_large_count_is_right_to_float32(a, fraction):
    found = integer(jit_scaled(as_count(a), np.float32(fraction))).item()
    assert 0 <= found <= a
    assert abs(found - a * fraction) <= 1 + 5e-7 * a * fraction


def test_a_count_beyond_32_bits_keeps_everything():
    assert top_mask(jnp.arange(5.0), 2**40).all()


# Many leaves by the same passes.


LEAVES = {"long": ((70_001,), (0,)), "kernel": ((3, 3, 40, 60), (0, 1, 2, 3)), "stack": ((3, 80, 90), (1, 2)),
          "small": ((5, 7), (0, 1)), "middle": ((9_000, 2), (0,))}  # fmt: skip


def requests(arrays, keep):
    return [
        selection.Request(Scores(order_key, (arrays[name],)), keep(name), axes) for name, (_, axes) in LEAVES.items()
    ]


def drawn_leaves(kind, dtype):
    """Leaves whose values are spread, tied, clustered or all the same."""
    random = np.random.default_rng(17)
    values = {
        "spread": lambda shape: random.standard_normal(shape),
        "tied": lambda shape: random.integers(-2, 3, shape),
        "clustered": lambda shape: np.where(random.random(shape) < 0.3, 1e-3, 1) * (1 + 1e-6 * random.random(shape)),
        "one value": lambda shape: np.full(shape, 0.25),
    }[kind]
    return {name: jnp.asarray(values(shape), dtype) for name, (shape, _) in LEAVES.items()}


@pytest.fixture(params=["on a processor", "on an accelerator"])
def kind_of_device(request, monkeypatch):
    """What the search would be on each, run here."""
    monkeypatch.setattr(selection.devices, "on_processor", lambda: request.param == "on a processor")


@pytest.mark.usefixtures("kind_of_device")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)
def test_many_leaves_searched_together_get_the_masks_of_a_stable_sort(dtype):
    @jax.jit
    def chosen(arrays, share):
        counts = lambda name: as_count((share * math.prod(LEAVES[name][0][a] for a in LEAVES[name][1])).astype(int))
        return [answer.mask for answer in selection.answered(requests(arrays, counts))]

    for kind in ("spread", "tied", "clustered", "one value"):
        arrays = drawn_leaves(kind, dtype)
        for share in (0.0, 0.01, 0.7, 1.0):
            masks = chosen(arrays, jnp.float32(share))
            for mask, (name, (shape, axes)) in zip(masks, LEAVES.items(), strict=True):
                count = int(jnp.float32(share) * math.prod(shape[a] for a in axes))
                expected = oracle(np.asarray(arrays[name]), count, axes)
                np.testing.assert_array_equal(mask, expected, err_msg=f"{kind} {name} {share}")


SIDE_BY_SIDE = {"neurons": ((300, 20), (0,)), "few rows": ((5, 64), (0,)), "kernel": ((3, 3, 7, 33), (0, 1, 2)),
                "stack": ((2, 147, 9), (1,)), "pairs": ((2, 3_001, 2), (1,))}  # fmt: skip


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)
def test_slices_side_by_side_get_the_masks_of_a_stable_sort(dtype):
    """Each slice has a scale and a count of its own; some hold one value only, or many zeros."""
    random = np.random.default_rng(23)
    kinds = {
        "scaled": lambda shape, per: random.standard_normal(shape) * np.exp(2 * random.standard_normal(per)),
        "tied": lambda shape, per: random.integers(-1, 2, shape) * random.integers(0, 2, per),
    }

    @jax.jit
    def chosen(arrays, counts):
        asked = [
            selection.Request(Scores(order_key, (arrays[name],)), as_count(counts[name]), axes)
            for name, (_, axes) in SIDE_BY_SIDE.items()
        ]
        assert all(map(selection.columns.fits, asked))
        return [answer.mask for answer in selection.answered(asked)]

    for draw in kinds.values():
        per = {name: kept_shape(shape, axes) for name, (shape, axes) in SIDE_BY_SIDE.items()}
        arrays = {name: draw(shape, per[name]) for name, (shape, _) in SIDE_BY_SIDE.items()}
        arrays = {name: jnp.asarray(x, dtype) for name, x in arrays.items()}
        size = {name: math.prod(shape[a] for a in axes) for name, (shape, axes) in SIDE_BY_SIDE.items()}
        counts = {name: random.integers(0, size[name] + 1, shape).astype(np.uint32) for name, shape in per.items()}
        for mask, (name, (_, axes)) in zip(chosen(arrays, counts), SIDE_BY_SIDE.items(), strict=True):
            expected = oracle(np.asarray(arrays[name]), counts[name], axes)
            np.testing.assert_array_equal(mask, expected, err_msg=name)


def test_a_share_of_slices_side_by_side_and_entries_that_are_not_finite():
    x = np.random.default_rng(24).standard_normal((90, 80)).astype(np.float32)
    x[x < 0] = 0
    scores = Scores(lambda x: jnp.where(x > 0, order_key(x), 0), (jnp.asarray(x),))
    ask = lambda finite: selection.Request(scores, selection.AllBut(0.25), (0,), None, finite)
    plain, told = jax.jit(lambda: selection.answered([ask(None), ask(Scores(lambda x: x < 2, (jnp.asarray(x),)))]))()
    number = (x > 0).sum(0, keepdims=True)
    np.testing.assert_array_equal(integer(plain.candidates), number)
    np.testing.assert_array_equal(plain.mask, oracle(x, number - number // 4, (0,)))
    assert integer(told.refused) == (x >= 2).sum()


@pytest.mark.usefixtures("kind_of_device")
def test_leaves_ranked_together_get_the_masks_of_one_stable_sort():
    random = np.random.default_rng(19)
    for values in (lambda shape: random.standard_normal(shape), lambda shape: random.integers(-1, 2, shape)):
        arrays = [values(shape).astype(np.float32) for shape in ((70, 90), (3, 5, 40), (2_000,))]
        for k in (0, 1, 700, 8_000, 8_900):
            masks = jax.jit(across)([jnp.asarray(x) for x in arrays], k)
            joined = np.concatenate([np.ravel(mask) for mask in masks])
            np.testing.assert_array_equal(
                joined, best(np.concatenate([np.ravel(x) for x in arrays]), k), err_msg=f"{k}"
            )


@pytest.mark.parametrize("method", ["rigl", "set_", "gmp"])
def test_a_method_finds_the_same_masks_on_either_kind_of_device(method, monkeypatch):
    options = dict(update_end=10) if method == "gmp" else {}
    tx = getattr(sparsejax, method)(optax.adamw(1e-2), sparsity=0.7, update_every=2, packed=True, **options)
    draw = lambda seed: {
        "a": {"kernel": jax.random.normal(jax.random.key(seed), (40, 48))},
        "b": {"kernel": jax.random.normal(jax.random.key(seed + 1), (3, 3, 8, 20))},
    }

    def run():
        params = draw(1)
        state = tx.init(params)
        step = jax.jit(lambda grads, state, params: tx.update(grads, state, params))
        for t in range(5):
            updates, state = step(draw(10 + t), state, params)
            params = optax.apply_updates(params, updates)
        return jax.tree.leaves(sparsejax.get_masks(state))

    found = run()
    monkeypatch.setattr(selection.devices, "on_processor", lambda: False)
    for mask, other in zip(found, run(), strict=True):
        np.testing.assert_array_equal(mask, other)


@pytest.mark.usefixtures("kind_of_device")
def test_a_share_of_the_candidates_and_entries_that_are_not_finite():
    """Keys of 0 are no candidates; entries that are not finite are counted, on one device and where shards may be."""
    x = np.random.default_rng(18).standard_normal((90, 80)).astype(np.float32)
    x[x < 0] = 0
    scores = Scores(lambda x: jnp.where(x > 0, order_key(x), 0), (jnp.asarray(x),))
    finite = Scores(lambda x: x < 2, (jnp.asarray(x),))
    ask = lambda finite: selection.Request(scores, selection.AllBut(0.25), (0, 1), None, finite)
    for place in (contextlib.nullcontext, many_devices):
        with place():
            plain, told = jax.jit(lambda: selection.answered([ask(None), ask(finite)]))()
        number = int((x > 0).sum())
        assert integer(plain.candidates).item() == number
        np.testing.assert_array_equal(plain.mask, oracle(x, number - number // 4))
        assert integer(told.refused) == (x >= 2).sum()


def test_random_masks_are_the_same_alone_and_among_shards_and_spread_evenly():
    draws = [
        Draw(salt, shape, axes, keep)
        for salt, shape, axes, keep in [
            (1, (300, 200), (0, 1), 6_000),
            (2, (3, 90, 80), (1, 2), 720),
            (3, (6, 4), (0,), 2),
        ]
    ]
    key = jax.random.key_data(jax.random.key(7))
    alone = drawn_masks(key, draws)
    with many_devices():
        for mask, other in zip(alone, jax.jit(lambda key: drawn_masks(key, draws))(key), strict=True):
            np.testing.assert_array_equal(mask, other)
    for mask, traced in zip(alone, jax.jit(lambda key: drawn_masks(key, draws))(key), strict=True):
        np.testing.assert_array_equal(mask, traced)
    assert [int(mask.sum()) for mask in alone] == [6_000, 3 * 720, 2 * 4]
    rows = np.asarray(alone[0]).sum(1)  # of 200 at density 0.1: variance 18
    assert abs(rows.mean() - 20) < 1e-6 and 12 < rows.var() < 25
    other = drawn_masks(jax.random.key_data(jax.random.key(8)), draws)[0]
    assert abs(int((alone[0] & other).sum()) - 600) < 120  # independent: 10 % of 6,000


# Transformations, shardings, memory.


def test_vmap_is_a_loop_over_lanes():
    scores = np.random.default_rng(12).integers(-3, 3, (6, 4, 5)).astype(np.float32)
    ks = np.array([0, 1, 7, 13, 19, 20])
    masks = jax.jit(jax.vmap(lambda lane, k: top_mask(lane, k)))(scores, ks)
    for lane, k, mask in zip(scores, ks, masks, strict=True):
        np.testing.assert_array_equal(mask, oracle(lane, k))
    sliced = jax.jit(jax.vmap(lambda lane, k: top_mask(lane, k, axes=(1,)), in_axes=(0, None)))(scores, 2)
    np.testing.assert_array_equal(sliced, oracle(scores, 2, (2,)))


def test_eager_and_jitted_agree():
    scores = np.random.default_rng(13).integers(-3, 3, (4, 5)).astype(np.float32)
    np.testing.assert_array_equal(top_mask(jnp.asarray(scores), 9), oracle(scores, 9))


@functools.cache
def mesh(kind):
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))


DEVICES = 8


def collectives(hlo):
    """The largest result, in entries, of each kind of collective, sort and gather in compiled text."""
    found = {}
    names = "all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter|sort|gather"
    for line in hlo.splitlines():
        match = re.search(rf" = (.*?) ({names})(?:-start)?\(", line)
        if match:
            sizes = [math.prod(int(d) for d in dims.split(",") if d) for dims in re.findall(r"\[([\d,]*)\]", match[1])]
            found[match[2]] = max(*sizes, found.get(match[2], 0))
    return found


@pytest.mark.parametrize("spec", [("x", "y"), (None, ("x", "y")), ("y", None)], ids=str)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_sharded_scores_give_the_same_mask_without_a_gather(kind, spec):
    scores = np.random.default_rng(14).integers(-9, 9, (64, 48)).astype(np.float32)
    with many_devices(), jax.set_mesh(mesh(kind)):
        sharding = NamedSharding(mesh(kind), PartitionSpec(*spec))
        placed = jax.device_put(scores, sharding)
        for axes, slices in ((None, 1), ((1,), 64)):
            run = jax.jit(functools.partial(top_mask, axes=axes)).lower(placed, 13).compile()
            mask = run(placed, 13)
            np.testing.assert_array_equal(mask, oracle(scores, 13, axes))
            assert mask.sharding.is_equivalent_to(sharding, 2)
            found = collectives(run.as_text())
            assert set(found) <= {"all-reduce", "all-gather"}, found  # XLA may gather the devices' counts to add them
            assert max(found.values()) <= DEVICES * slices, found


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_sharded_random_ties_are_those_of_one_device(kind):
    scores = np.zeros((64, 48), np.float32)
    alone = top(scores, 1_000, ties=jax.random.key(4))
    with many_devices(), jax.set_mesh(mesh(kind)):
        placed = jax.device_put(scores, NamedSharding(mesh(kind), PartitionSpec("x", "y")))
        mask = jax.jit(top_mask)(placed, 1_000, ties=jax.random.key(4))
        assert mask.sharding.spec == PartitionSpec("x", "y")
    np.testing.assert_array_equal(mask, alone)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_one_threshold_over_sharded_leaves(kind):
    random = np.random.default_rng(15)
    arrays = [random.integers(-5, 5, shape).astype(np.float32) for shape in ((64, 16), (32, 8, 4), (40,))]
    specs = (PartitionSpec("x", "y"), PartitionSpec(None, "x"), PartitionSpec("y"))
    with many_devices(), jax.set_mesh(mesh(kind)):
        placed = [jax.device_put(a, NamedSharding(mesh(kind), spec)) for a, spec in zip(arrays, specs, strict=True)]
        run = jax.jit(across).lower(placed, 1_500).compile()
        masks = run(placed, 1_500)
        found = collectives(run.as_text())
        assert set(found) <= {"all-reduce", "all-gather"}, found
        assert max(found.values()) <= DEVICES, found
    joined, masks = (np.concatenate([np.ravel(leaf) for leaf in leaves]) for leaves in (arrays, masks))
    np.testing.assert_array_equal(masks, best(joined, 1_500))


def stored(dtype, axes):
    """Bytes that ranking a leaf of 4 M entries needs besides the leaf and the mask."""
    leaf, count = jax.ShapeDtypeStruct((2048, 2048), dtype), jax.ShapeDtypeStruct((), jnp.int32)
    run = jax.jit(functools.partial(top_mask, axes=axes)).lower(leaf, count).compile()
    return run.memory_analysis().temp_size_in_bytes


def test_nothing_of_the_size_of_a_leaf_that_may_be_sharded_is_stored():
    with many_devices():
        for dtype, axes, slices in ((jnp.float32, None, 1), (jnp.bfloat16, (1,), 2048)):
            words = 16 * 4 * slices  # each slice's bracket, candidates and counts
            assert stored(dtype, axes) < 64_000 + words, (dtype, axes)


def test_nothing_of_the_size_of_a_leaf_is_stored_on_one_device():
    for dtype in (jnp.float32, jnp.bfloat16):
        assert stored(dtype, None) < 128_000


def test_compiled_text_of_a_large_leaf_sorts_and_gathers_a_sample_only():
    run = jax.jit(across).lower([jax.ShapeDtypeStruct((1024, 512), jnp.float32)] * 2, 1_000).compile()
    assert max(collectives(run.as_text()).values()) <= 2**14, "of a million"
    assert run.memory_analysis().temp_size_in_bytes < 128_000

"""Selection inside small groups against NumPy's stable sort: every count, all keys, sharded leaves, what is counted."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import many_devices
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from selection_test import FLOATS, INTEGERS, collectives, integer, mesh, oracle, random_scores, special

from sparsejax import selection
from sparsejax.selection import AllBut, Request, Scores, as_count, groups, order_key, slices, top_mask

GROUPS = [  # axes before, between, behind; several; pairs and networks; one entry, and as many as a word has bits
    ((6, 4, 5), (1,)), ((7, 1), (1,)), ((3, 16), (1,)), ((16, 7), (0,)), ((3, 3, 3, 4), (0, 1, 2)),
    ((5, 2, 3, 4), (1, 3)), ((32, 3), (0,)),
]  # fmt: skip


def each_count(scores, axes):
    """The masks of every count, as one array."""
    size = math.prod(scores.shape[axis] for axis in axes)
    return jax.jit(jax.vmap(lambda k: top_mask(scores, k, axes=axes)))(jnp.arange(size + 2))


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=str)
def test_every_count_and_kind_of_key(dtype):
    for shape, axes in ((6, 4, 5), (1,)), ((3, 16), (1,)):
        size = math.prod(shape)
        mixed = np.random.default_rng(1).permutation(np.resize(special(dtype), size)).reshape(shape)
        for scores in (random_scores(dtype, shape), mixed, np.zeros(shape, dtype)):
            for k, mask in enumerate(each_count(scores, axes)):
                np.testing.assert_array_equal(mask, oracle(scores, k, axes), err_msg=f"k = {k} of {scores}")


@pytest.mark.parametrize(("shape", "axes"), GROUPS, ids=str)
def test_groups_anywhere_with_counts_of_their_own(shape, axes):
    scores = np.random.default_rng(2).integers(-3, 3, shape).astype(np.float32)
    scores[(0,) * len(shape)] = np.nan
    assert groups.fits(Request(Scores(order_key, (jnp.asarray(scores),)), 1, axes))
    for k, mask in enumerate(each_count(scores, axes)):
        np.testing.assert_array_equal(mask, oracle(scores, k, axes), err_msg=f"k = {k}")
    size = math.prod(shape[axis] for axis in axes)
    counts = np.random.default_rng(3).integers(0, size + 1, [1 if a in axes else n for a, n in enumerate(shape)])
    own = jax.jit(lambda k: top_mask(scores, k, axes=axes))(counts)
    np.testing.assert_array_equal(own, oracle(scores, counts, axes))
    for k in (0, 1, 2, size, 2**40):  # known when the program is built
        known = jax.jit(lambda k=k: top_mask(scores, k, axes=axes))()
        np.testing.assert_array_equal(known, oracle(scores, min(k, size), axes), err_msg=f"k = {k}")


def test_lanes_have_their_own_scores():
    scores = np.random.default_rng(4).integers(-3, 3, (3, 8, 4, 5)).astype(np.float32)
    ks = np.array([1, 2, 4])
    masks = jax.jit(jax.vmap(lambda lane, k: top_mask(lane, k, axes=(1,))))(scores, ks)
    for lane, k, mask in zip(scores, ks, masks, strict=True):
        np.testing.assert_array_equal(mask, oracle(lane, k, (1,)))


@pytest.mark.parametrize("size", [4, 16, 24])
def test_candidates_and_entries_that_are_not_finite_are_counted_as_the_search_counts_them(size):
    x = np.random.default_rng(5).standard_normal((9, size, 7)).astype(np.float32)
    x[x < 0] = 0
    scores = Scores(lambda x: jnp.where(x > 0, order_key(x), 0), (jnp.asarray(x),))
    finite = Scores(lambda x: x < 2, (jnp.asarray(x),))
    for keep in (AllBut(0.3), AllBut(0.3, "ceil"), as_count(2), 2):
        plain = Request(scores, keep, (1,))
        ranked = jax.jit(lambda plain=plain: selection.answered([plain, plain._replace(finite=finite)]))
        found, told = ranked()
        expected = jax.jit(lambda plain=plain: slices.select_one(plain))()
        np.testing.assert_array_equal(found.mask, expected.mask)
        np.testing.assert_array_equal(integer(found.candidates), (x > 0).sum(1, keepdims=True))
        assert integer(told.refused) == (x >= 2).sum() > 0
        assert integer(found.refused) == 0
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, expected)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize(("size", "keep"), [(4, 2), (16, 1), (16, 5)])
def test_sharded_groups_stay_where_they_are(kind, size, keep):
    scores = np.random.default_rng(6).integers(-9, 9, (16, size, 48)).astype(np.float32)
    with many_devices(), jax.set_mesh(mesh(kind)):
        sharding = NamedSharding(mesh(kind), PartitionSpec("x", None, "y"))
        placed = jax.device_put(scores, sharding)
        for k in (keep, None):
            run = (
                jax.jit(lambda x, given, k=k: top_mask(x, given if k is None else k, axes=(1,)))
                .lower(placed, 1)
                .compile()
            )
            mask = run(placed, keep)
            np.testing.assert_array_equal(mask, oracle(scores, keep, (1,)))
            assert mask.sharding.is_equivalent_to(sharding, 3)
            assert collectives(run.as_text()) == {}


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_groups_that_are_cut_by_shards_get_the_same_mask(kind):
    scores = np.random.default_rng(7).integers(-9, 9, (16, 8)).astype(np.float32)
    with many_devices(), jax.set_mesh(mesh(kind)):
        placed = jax.device_put(scores, NamedSharding(mesh(kind), PartitionSpec("x", "y")))
        mask = jax.jit(lambda x: top_mask(x, 3, axes=(1,)))(placed)
    np.testing.assert_array_equal(mask, oracle(scores, 3, (1,)))


def test_nothing_but_words_is_stored():
    """Of float32 in fours a byte a group; were the keys stored, or a loop made of words and mask, it would be other."""
    leaf = jax.ShapeDtypeStruct((512, 4, 1024), jnp.float32)
    run = (
        jax.jit(lambda x: selection.answered([Request(Scores(order_key, (x,)), 2, (1,))])[0].mask).lower(leaf).compile()
    )
    assert 512 * 1024 <= run.memory_analysis().temp_size_in_bytes < 512 * 1024 + 64_000

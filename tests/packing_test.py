"""Packed masks: one bit a weight, there and back; the same training; nothing of a byte a weight in a compiled step."""

import contextlib
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from devices import many_devices
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import sparsejax
from sparsejax.masks import get_masks, set_masks
from sparsejax.packing import Packed, pack, packed_axis, unpack
from sparsejax.training.checkpoint import Checkpoints

# There and back.


def bits_by_hand(mask, axis):
    """The bytes of a mask, entry by entry: bit i of byte b is entry 8 b + i along the axis."""
    at = mask.ndim + axis
    bits = np.zeros([-(-size // 8) if a == at else size for a, size in enumerate(mask.shape)], np.uint8)
    for place in zip(*np.nonzero(mask), strict=True):
        byte = tuple(int(i) // 8 if a == at else int(i) for a, i in enumerate(place))
        bits[byte] += 2 ** (int(place[at]) % 8)
    return bits


def some_mask(shape, seed=0):
    return np.random.default_rng(seed).random(shape) < 0.4


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((), 0),
        ((5,), -1),
        ((16, 3), -2),
        ((3, 3, 64, 7), -2),
        ((16, 3, 7), -3),  # the hindmost that 8 divides
        ((3, 3, 3, 64), -1),
        ((50257, 768), -2),  # wastes little
        ((9, 768), -1),
        ((16, 1), -2),
        ((0, 3), -2),
        ((3, 0), -1),
        ((1, 1), -1),
    ],
)
def test_the_axis_follows_from_the_shape(shape, axis):
    assert packed_axis(shape) == axis


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([0, 1, 2, 3, 7, 8, 9, 16, 17]), max_size=4), st.integers(0, 3), st.booleans())
def test_there_and_back(shape, seed, traced):
    mask = some_mask(tuple(shape), seed)
    packed = (jax.jit(pack) if traced else pack)(jnp.asarray(mask))
    if shape:
        np.testing.assert_array_equal(packed.bits, bits_by_hand(mask, packed_axis(mask.shape)))
    assert packed.bits.dtype == jnp.uint8
    back = (jax.jit(unpack) if traced else unpack)(packed)
    assert back.dtype == bool
    np.testing.assert_array_equal(back, mask)


@pytest.mark.parametrize("shape", [(), (5,), (16, 3), (9, 5), (3, 3, 17, 4)])
def test_a_batch_is_packed_as_each_of_it(shape):
    masks = some_mask((2, 3, *shape))
    packed = jax.vmap(jax.vmap(pack))(jnp.asarray(masks))
    np.testing.assert_array_equal(packed.bits[1, 2], pack(jnp.asarray(masks[1, 2])).bits)
    np.testing.assert_array_equal(unpack(packed), masks)
    np.testing.assert_array_equal(jax.vmap(unpack)(packed), masks)
    np.testing.assert_array_equal(pack(jnp.asarray(masks), packed.axis).bits, packed.bits)


def test_one_leaf_with_a_path():
    packed = {"kernel": pack(jnp.ones((16, 3), bool))}
    ((path, bits),) = jax.tree_util.tree_leaves_with_path(packed)
    assert jax.tree_util.keystr(path) == "['kernel'].bits"
    assert (bits.shape, bits.dtype) == ((2, 3), jnp.uint8)
    assert jax.eval_shape(pack, jnp.ones((16, 3), bool)) == Packed(jax.ShapeDtypeStruct((2, 3), jnp.uint8), -2, 16)


# The same training.

METHODS = {
    "static": lambda inner, **options: sparsejax.static(inner, sparsity=0.7, **options),
    "one_shot": lambda inner, **options: sparsejax.one_shot(inner, sparsity=0.7, at_step=2, **options),
    "gmp": lambda inner, **options: sparsejax.gmp(inner, sparsity=0.7, update_end=6, update_every=2, **options),
    "gmp global": lambda inner, **options: METHODS["gmp"](inner, distribution="global", **options),
    "set": lambda inner, **options: sparsejax.set_(inner, sparsity=0.7, update_every=2, **options),
    "rigl": lambda inner, **options: sparsejax.rigl(inner, sparsity=0.7, update_every=2, **options),
    "rigl free": lambda inner, **options: METHODS["rigl"](inner, regrow_dropped=False, ties="random", **options),
    "rigl block": lambda inner, **options: METHODS["rigl"](inner, pattern=sparsejax.block((4, 2)), **options),
    "custom": lambda inner, **options: sparsejax.sparse_wrapper(
        inner,
        lambda leaf: sparsejax.patterns.pattern_mask(leaf.pattern, jnp.abs(leaf.grad), 1, leaf.axes),
        plan=(sparsejax.schedules.rewire(2, 0.0),),
        pattern=sparsejax.nm(1, 4),
        **options,
    ),
}


def weights(seed=0):
    draw = np.random.default_rng(seed)
    shapes = {"conv": (3, 3, 4, 8), "dense": (20, 12), "wide": (24, 16)}
    params = {name: {"kernel": jnp.asarray(draw.normal(size=shape), jnp.float32)} for name, shape in shapes.items()}
    return params | {"bias": jnp.ones(12)}


def trained(tx, params, state, steps=7):
    """The params and masks after every step, and the last state."""

    def step(carry, seed):
        params, state = carry
        grads = jax.tree.map(lambda w: jax.random.normal(jax.random.key(seed), w.shape), params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, get_masks(state))

    (_, state), seen = jax.lax.scan(step, (params, state), jnp.arange(steps))
    return seen, state


def identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", METHODS)
def test_packed_and_bool_masks_train_alike(name):
    def both(packed):
        tx = METHODS[name](optax.adam(0.1), packed=packed)
        state = tx.init(weights())
        return get_masks(state), *jax.jit(lambda state: trained(tx, weights(), state))(state)

    first, seen, last = both(True)
    wanted_first, wanted, wanted_last = both(False)
    identical(first, wanted_first)
    identical(seen, wanted)
    identical(last.inner_state, wanted_last.inner_state)
    assert all(isinstance(last.masks[layer]["kernel"], Packed) for layer in ("conv", "dense", "wide"))
    assert last.masks["bias"] is None
    assert {mask.dtype for mask in jax.tree.leaves(wanted_last.masks)} == {jnp.dtype(bool)}
    moved = any((mask[0] != mask[-1]).any() for mask in jax.tree.leaves(seen[1]))
    assert moved is (name != "static")

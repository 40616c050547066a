"""Packed masks: there and back, the same training, no mask of a byte a weight in a compiled step, sharded, saved."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract_cells import quickly_compiled
from devices import many_devices
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import sparsejax
from sparsejax.masks import apply_masks, get_masks, set_masks
from sparsejax.packing import Packed, pack, packed_axis, unpack
from sparsejax.training.checkpoint import Checkpoints
from sparsejax.training.compiling import accepted

quick = pytest.fixture(quickly_compiled)

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


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([0, 1, 2, 3, 7, 8, 9, 16, 17]), max_size=4), st.integers(0, 3))
def test_there_and_back(shape, seed):
    mask = some_mask(tuple(shape), seed)

    def both(mask):
        packed = pack(mask)
        return packed, unpack(packed)

    for packed, back in (both(jnp.asarray(mask)), jax.jit(both)(mask)):
        if shape:
            np.testing.assert_array_equal(packed.bits, bits_by_hand(mask, packed_axis(mask.shape)))
        assert (packed.bits.dtype, back.dtype) == (jnp.uint8, bool)
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


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ("gmp global", "rigl", "custom") else pytest.mark.long) for n in METHODS]
)
def test_packed_and_bool_masks_train_alike(name):
    # Two programs have the same bits by the emitters that users get; by the older ones rounding hangs on what is fused.
    users = accepted({"xla_cpu_use_fusion_emitters": True})

    def both(packed):
        tx = METHODS[name](optax.adam(0.1), packed=packed)
        state = tx.init(weights())
        run = jax.jit(lambda state: trained(tx, weights(), state), compiler_options=users)
        return get_masks(state), *run(state)

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


def test_only_true_and_false():
    with pytest.raises(ValueError, match="packed='yes': True or False"):
        sparsejax.rigl(optax.sgd(0.1), sparsity=0.5, packed="yes")


def test_seeds_are_batched_and_masks_are_found_at_any_depth():
    tx = optax.chain(optax.clip(1.0), METHODS["set"](optax.adam(0.1), packed=True))
    alone = [METHODS["set"](optax.adam(0.1), packed=True, seed=seed).init(weights()) for seed in range(2)]
    start = lambda seed: METHODS["set"](optax.adam(0.1), packed=True, seed=seed).init(weights())
    batched = jax.vmap(start)(jnp.arange(2))
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *map(get_masks, alone))
    identical(get_masks(batched), stacked)
    flipped = jax.tree.map(jnp.logical_not, stacked)
    changed = set_masks(batched, flipped)
    assert jax.tree.structure(changed) == jax.tree.structure(batched)
    identical(get_masks(changed), flipped)
    identical(get_masks(tx.init(weights())), get_masks(alone[0]))
    with pytest.raises(
        ValueError, match=r"conv/kernel: a mask must be a bool array of shape \(3, 3, 4, 8\), not uint8"
    ):
        set_masks(alone[0], jax.tree.map(lambda mask: mask.astype(jnp.uint8), get_masks(alone[0])))


def test_set_masks_hold_in_the_next_step():
    tx = METHODS["rigl"](optax.adam(0.1), packed=True)
    state = tx.init(weights())
    flipped = jax.tree.map(jnp.logical_not, get_masks(state))
    updates, after = tx.update(weights(1), set_masks(state, flipped), weights())
    params = optax.apply_updates(weights(), updates)
    identical(get_masks(after), flipped)
    identical(params, apply_masks(params, flipped))
    identical(apply_masks(params, after.masks), params)


def test_inside_an_nnx_optimizer():
    model = nnx.Linear(16, 6, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, METHODS["rigl"](optax.sgd(0.1), packed=True), wrt=nnx.Param)
    before, params = jax.tree.structure(optimizer.opt_state), nnx.state(model, nnx.Param)
    assert [leaf.shape for leaf in jax.tree.leaves(optimizer.opt_state.masks)] == [(2, 6)]
    masks = get_masks(optimizer.opt_state)
    flipped = jax.tree.map(jnp.logical_not, masks)
    optimizer.opt_state = set_masks(optimizer.opt_state, flipped)
    optimizer.update(model, jax.tree.map(jnp.ones_like, params))
    assert jax.tree.structure(optimizer.opt_state) == before
    identical(get_masks(optimizer.opt_state), flipped)
    assert (np.asarray(model.kernel[...])[np.asarray(masks["kernel"])] == 0).all()


# A compiled step.

LARGE = {"conv": (3, 3, 32, 64), "dense": (128, 160), "table": (509, 48)}


def compiled_step(method, packed, dtype=jnp.float32):
    """An optimized step on one device, its params and state donated."""
    tx = METHODS[method](optax.adamw(1e-3), packed=packed)
    params = {name: {"kernel": jax.ShapeDtypeStruct(shape, dtype)} for name, shape in LARGE.items()}

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, params)
    return jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()


def stored_masks(text):
    """The results, of the size of a leaf, that are bool and that the entry of a compiled program stores."""
    entry = text[text.index("ENTRY") :].splitlines()
    stored = [line for line in entry if " fusion(" in line or " copy(" in line or " conditional(" in line]
    sizes = {int(np.prod(shape)) for shape in LARGE.values()}
    assert len(stored) >= 3 * len(LARGE)
    found = re.findall(r"pred\[([\d,]*)\]", "".join(line.split("(%")[0] for line in stored))
    return [shape for shape in found if int(np.prod([int(n) for n in shape.split(",") if n])) in sizes]


@pytest.mark.parametrize("method", ["static", "rigl"])
def test_an_ordinary_step_stores_no_bool_mask(method):
    step = compiled_step(method, packed=True)
    assert stored_masks(step.as_text()) == []
    if method == "static":
        assert step.memory_analysis().temp_size_in_bytes < min(np.prod(shape) for shape in LARGE.values())


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=str)
def test_an_ordinary_step_of_sixteen_bits_stores_nothing_that_is_masked(dtype):
    step = compiled_step("static", packed=True, dtype=dtype)
    assert step.memory_analysis().temp_size_in_bytes < min(np.prod(shape) for shape in LARGE.values())


def test_bool_masks_would_be_seen():
    assert len(stored_masks(compiled_step("rigl", packed=False).as_text())) == len(LARGE)


# Sharded.


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_masks_are_those_of_one_device(axis_type):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    shapes = {"divisible": (64, 16), "not": (24, 16)}
    draw = np.random.default_rng(0)
    params, grads = ({name: {"w": draw.normal(size=shape)} for name, shape in shapes.items()} for _ in range(2))
    places = {name: {"w": NamedSharding(mesh, PartitionSpec("x", "y"))} for name in shapes}

    def updated(params, grads, packed):
        tx = sparsejax.rigl(optax.sgd(0.1), sparsity=0.5, update_every=1, packed=packed)
        state = jax.jit(tx.init)(params)._replace(count=jnp.int32(1))
        return jax.block_until_ready(jax.jit(tx.update)(grads, state, params))[1]

    cast = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
    wanted = get_masks(updated(cast(params), cast(grads), packed=False))
    with many_devices(), jax.set_mesh(mesh):
        placed = jax.device_put(cast(params), places)
        state = updated(placed, jax.device_put(cast(grads), places), packed=True)
        identical(get_masks(state), wanted)
        masked = jax.block_until_ready(apply_masks(placed, get_masks(state)))
        assert masked["not"]["w"].sharding.is_equivalent_to(places["not"]["w"], 2)
    bits = state.masks["divisible"]["w"].bits
    assert bits.sharding.is_equivalent_to(places["divisible"]["w"], 2)


# Saved.


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    tx = METHODS["rigl"](optax.adam(0.1), packed=True)
    init = lambda seed: jax.vmap(lambda _: tx.init(weights(seed)))(jnp.arange(2))
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(3, init(1))
    checkpoints.close()
    step, state = Checkpoints(tmp_path / "checkpoints", keep=1).restore(jax.eval_shape(lambda: init(1)))
    assert step == 3
    identical(state, init(1))
    identical(get_masks(state), get_masks(init(1)))

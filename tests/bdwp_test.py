"""BDWP against NumPy: two weights in each layer, forward and backward, and the masks' books."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from contract_cells import quickly_compiled
from jax import lax

import sparsejax
from sparsejax.bidirectional import bdwp_conv, bdwp_dot_general
from sparsejax.masks import mask_leaves
from sparsejax.models import MLP, GPTToy, LeNet5
from sparsejax.models.bidirectional import Bidirectional

compile_quickly = pytest.fixture(autouse=True)(quickly_compiled)


def numbers(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def kept(weight, axis, n, m):
    """The weight with zeros off the n largest |w| of every m along an axis."""
    return np.where(oracles.n_of_m(weight, n, m, axis), weight, np.float32(0))


class Net(nn.Module):
    """8 -> 16 -> 8 with ReLU between."""

    dot: object = None

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(16, dot_general=self.dot, name="first")(x))
        return nn.Dense(8, dot_general=self.dot, name="second")(x)


def test_a_net_forward_and_backward_by_hand():
    """Loss, gradient of the input and of every weight and bias, as plain NumPy has them."""
    x, aim = numbers((5, 8)), numbers((5, 8), 1)
    params = {
        "first": {"kernel": numbers((8, 16), 2), "bias": numbers(16, 3)},
        "second": {"kernel": numbers((16, 8), 4), "bias": numbers(8, 5)},
    }
    net = Net(bdwp_dot_general(2, 8))
    loss = lambda params, x: 0.5 * jnp.sum((net.apply({"params": params}, x) - aim) ** 2)
    value, (grads, grad_x) = jax.jit(jax.value_and_grad(loss, (0, 1)))(params, x)

    first, second = params["first"]["kernel"], params["second"]["kernel"]
    hidden = x @ kept(first, 0, 2, 8) + params["first"]["bias"]
    seen = np.maximum(hidden, 0)
    error = seen @ kept(second, 0, 2, 8) + params["second"]["bias"] - aim
    back = (error @ kept(second, 1, 2, 8).T) * (hidden > 0)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
    close(value, 0.5 * (error**2).sum())
    close(grads["second"]["kernel"], seen.T @ error)
    close(grads["second"]["bias"], error.sum(0))
    close(grads["first"]["kernel"], x.T @ back)
    close(grads["first"]["bias"], back.sum(0))
    close(grad_x, back @ kept(first, 1, 2, 8).T)


# a Flax layer, its input's shape, and the axes of its kernel that are masked forward and backward
LAYERS = {
    "dense": (lambda f: nn.Dense(8, dot_general=f), (3, 8), 0, 1),
    "query": (lambda f: nn.DenseGeneral((2, 8), dot_general=f), (3, 5, 8), 0, 2),
    "out": (lambda f: nn.DenseGeneral(8, axis=(-2, -1), dot_general=f), (3, 2, 8), 1, 2),
    "first axes": (lambda f: nn.DenseGeneral(4, axis=(0, 1), dot_general=f), (2, 8, 3), 1, 2),
    "batched": (lambda f: nn.DenseGeneral(8, axis=-1, batch_dims=(0,), dot_general=f), (2, 3, 4), 1, 2),
}
CONVS = {
    "same": (dict(features=8, kernel_size=(3, 3)), (2, 5, 6, 4)),
    "strided": (dict(features=8, kernel_size=(3, 2), strides=2, padding="VALID", use_bias=False), (2, 7, 6, 4)),
    "dilated": (dict(features=4, kernel_size=(3,), kernel_dilation=2, input_dilation=2, padding=2), (2, 9, 8)),
    "grouped": (dict(features=8, kernel_size=(3,), feature_group_count=2, padding="CIRCULAR"), (2, 6, 8)),
    "unbatched": (dict(features=4, kernel_size=(2, 2, 2)), (3, 4, 3, 4)),
}


def compare(layer, function, x, axes, n, m):
    """Output and gradients of a layer with the function; and those of a plain layer, its kernel masked by hand."""
    variables = jax.tree.map(np.asarray, jax.jit(layer(None).init)(jax.random.key(0), x))
    kernel = numbers(variables["params"]["kernel"].shape, 7)
    masked = [kept(kernel, axis, n, m) for axis in axes]

    @jax.jit
    def run(x, kernel, forward, backward):
        found = []
        for how, weight in ((function, kernel), (None, kernel), (None, forward), (None, backward)):
            compute = lambda x, w, how=how: layer(how).apply({"params": {**variables["params"], "kernel": w}}, x)
            y, pull = jax.vjp(compute, x, weight)
            found.append((y, *pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))))
        return found

    mine, plain, forward, backward = run(x, kernel, *masked)
    for found, wanted in zip(mine, (forward[0], backward[1], plain[2]), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert np.abs(forward[1] - backward[1]).max() > 1e-2


@pytest.mark.parametrize("name", LAYERS)
def test_dense_layers_of_every_layout(name):
    layer, shape, *axes = LAYERS[name]
    compare(layer, bdwp_dot_general(1, 4), jnp.asarray(numbers(shape)), axes, 1, 4)


@pytest.mark.parametrize("name", CONVS)
def test_convolutions_of_every_layout(name):
    options, shape = CONVS[name]
    layer = lambda f: nn.Conv(**options, conv_general_dilated=f)
    compare(layer, bdwp_conv(1, 4), jnp.asarray(numbers(shape)), (-2, -1), 1, 4)


def test_other_layouts_of_a_convolution():
    """Without dimension numbers, a kernel is (out, in, space): lax's own default."""
    x, kernel = numbers((2, 4, 6)), numbers((8, 4, 3), 1)
    arguments = dict(window_strides=(1,), padding="SAME")

    @jax.jit
    def run(x, forward, backward):
        y, pull = jax.vjp(lambda x: bdwp_conv(1, 4)(x, kernel, **arguments), x)
        _, hand = jax.vjp(lambda x: lax.conv_general_dilated(x, backward, **arguments), x)
        return (y, *pull(y)), (lax.conv_general_dilated(x, forward, **arguments), *hand(y))

    mine, by_hand = run(x, kept(kernel, 1, 1, 4), kept(kernel, 0, 1, 4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), mine, by_hand)


def test_lanes_and_mixed_precision():
    """vmap ranks each lane's kernel; bfloat16 operands with float32 sums give gradients of the operands' dtypes."""
    x, kernels = jnp.asarray(numbers((3, 8))), jnp.asarray(numbers((2, 8, 8), 1))
    function = bdwp_dot_general(2, 8)
    one = (((1,), (0,)), ((), ()))

    @jax.jit
    def run(x, kernels):
        low = (x.astype(jnp.bfloat16), kernels[0].astype(jnp.bfloat16))
        y, pull = jax.vjp(lambda x, w: function(x, w, one, preferred_element_type=jnp.float32), *low)
        return jax.vmap(lambda w: function(x, w, one))(kernels), y, pull(y)

    lanes, y, pulled = run(x, kernels)
    for lane, kernel in zip(lanes, kernels, strict=True):
        np.testing.assert_allclose(lane, x @ kept(kernel, 0, 2, 8), rtol=1e-5, atol=1e-5)
    assert y.dtype == jnp.float32
    assert [grad.dtype for grad in pulled] == [jnp.bfloat16] * 2


def test_axes_that_m_does_not_divide():
    """They are refused in a line that names the kernel, or that pass sees the dense weight."""
    x, kernel, one = jnp.asarray(numbers((3, 8))), numbers((8, 6), 1), (((1,), (0,)), ((), ()))
    function = bdwp_dot_general(2, 4, path="mlp/kernel")
    with pytest.raises(ValueError, match=r"mlp/kernel: axis 1 of \(8, 6\) has 6 entries, which m = 4"):
        jax.grad(lambda x: function(x, kernel, one).sum())(x)
    skips = bdwp_dot_general(2, 4, indivisible="skip")
    value, grad = jax.jit(jax.value_and_grad(lambda x: skips(x, kernel, one).sum()))(x)
    np.testing.assert_allclose(value, (x @ kept(kernel, 0, 2, 4)).sum(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grad, np.ones((3, 6)) @ kernel.T, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="has 2 entries"):  # outputs of a group
        layer = nn.Conv(4, (3,), feature_group_count=2, conv_general_dilated=bdwp_conv(2, 4))
        params = {"params": {"kernel": jnp.ones((3, 4, 4)), "bias": jnp.ones(4)}}
        jax.grad(lambda x: layer.apply(params, x).sum())(jnp.ones((1, 5, 8)))
    for arguments in ((3, 2), (0, 4), (2, 4, "drop")):
        with pytest.raises(ValueError):
            bdwp_dot_general(*arguments)


@pytest.mark.parametrize("tree", range(3))
def test_masks_dense_weights_and_the_end(tree):
    """The masks are M_in of the params at each step; the weights move as without a method, and end sparse."""
    shapes = {"conv": (3, 3, 4, 8), "dense": (16, 6), "query": (8, 2, 4)}
    axes = {"conv": 2, "dense": 0, "query": 0}
    params = {k: {"kernel": jnp.asarray(numbers(s, 3 * tree + i))} for i, (k, s) in enumerate(shapes.items())}
    params = {**params, "bias": jnp.ones(3)}
    inner = optax.adamw(0.3, weight_decay=0.1)
    tx = sparsejax.bdwp(inner, pattern=sparsejax.nm(1, 4), update_end=7)
    update, bare = jax.jit(tx.update), jax.jit(inner.update)
    state, dense, dense_state = tx.init(params), params, inner.init(params)
    assert all(mask.all() for mask in jax.tree.leaves(sparsejax.get_masks(state)))
    changed = 0
    for t in range(10):
        grads = jax.tree.map(lambda w, t=t: jnp.asarray(numbers(w.shape, 100 + t)), params)
        before = sparsejax.get_masks(state)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        masks = sparsejax.get_masks(state)
        if t < 7:
            moves, dense_state = bare(grads, dense_state, dense)
            dense = optax.apply_updates(dense, moves)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, dense)
        changed += any((a != b).any() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(masks), strict=True))
        for name, axis in axes.items():
            weight, mask = np.asarray(params[name]["kernel"]), np.asarray(masks[name]["kernel"])
            if t < 7:
                np.testing.assert_array_equal(mask, kept(weight, axis, 1, 4) != 0, err_msg=f"{t} {name}")
            else:
                np.testing.assert_array_equal(weight != 0, mask)
                np.testing.assert_array_equal(mask, before[name]["kernel"])
    assert changed == 7


def test_refusals():
    for bad in (sparsejax.unstructured(), sparsejax.nm(2, 4, axis=0), "nm"):
        with pytest.raises(ValueError, match="bdwp needs nm"):
            sparsejax.bdwp(optax.sgd(0.1), pattern=bad)
    with pytest.raises(ValueError, match="leave sparsity out"):
        sparsejax.bdwp(optax.sgd(0.1), sparsity=0.9)
    with pytest.raises(ValueError, match="update_end=0"):
        sparsejax.bdwp(optax.sgd(0.1), update_end=0)


MODELS = {
    "mlp": (MLP(8, (16, 24), dtype="bfloat16"), (2, 8), None),
    "lenet": (LeNet5(10, dtype="float32"), (2, 28, 28), sparsejax.only("conv2/kernel", "fc1/kernel")),
    "gpt": (
        GPTToy(16, layers=2, width=32, scan=True, remat=True, tied=False),
        (2, 6),
        sparsejax.except_("unembed/*"),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_compute_with_two_weights(name):
    """Any model: it gives what the plain one gives with the masks of `get_masks`, and every weight has a gradient."""
    model, shape, where = MODELS[name]
    x = jnp.asarray(numbers(shape)) if "gpt" not in name else jnp.arange(12).reshape(shape) % 16
    twofold = Bidirectional(model, sparsejax.nm(1, 2), where)
    layout = getattr(twofold, "layout", None)
    tx = sparsejax.bdwp(optax.sgd(0.0), pattern=sparsejax.nm(1, 2), where=where, layout=layout)
    init = jax.jit(twofold.init)

    @jax.jit
    def run(variables):
        params = variables["params"]
        # What the model computes in is what its masks are of.
        params = jax.tree.map(lambda w: w.astype(jnp.bfloat16).astype(w.dtype), params)
        y, grads = jax.value_and_grad(
            lambda params: jnp.sum(jnp.square(twofold.apply({**variables, "params": params}, x).astype(jnp.float32)))
        )(params)
        masks = sparsejax.get_masks(tx.update(grads, tx.init(params), params)[1])
        plain = model.apply({**variables, "params": sparsejax.apply_masks(params, masks)}, x).astype(jnp.float32)
        return y, jnp.sum(jnp.square(plain)), grads, masks

    y, plain, grads, masks = run(init(jax.random.key(0), x))
    np.testing.assert_allclose(y, plain, rtol=1e-5)
    assert sparsejax.density(masks) == 0.5
    for path, mask in mask_leaves(masks).items():
        grad = np.asarray(mask_leaves(grads)[path])
        assert (grad[~np.asarray(mask)] != 0).mean() > 0.2, path

"""FLOPs and bytes: every count here was written by hand from the definition of the layer."""

import math

import architectures
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sparsejax import distributions, flops
from sparsejax.leaves import flax_layout, stacked


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def module_flops(module, *inputs):
    params = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return flops.layer_flops(lambda params, *x: module.apply({"params": params}, *x), params, *inputs)


def test_dense_counts_multiply_and_add_and_no_bias():
    assert module_flops(nn.Dense(7), shape(1, 5)) == {"kernel": 2 * 5 * 7}
    assert module_flops(nn.Dense(7), shape(3, 11, 5)) == {"kernel": 33 * 2 * 5 * 7}
    counted = module_flops(nn.DenseGeneral((4, 3), axis=(-2, -1)), shape(1, 6, 5))
    assert counted == {"kernel": 2 * 6 * 5 * 4 * 3}


@pytest.mark.parametrize(
    ("options", "out", "taps_and_channels"),
    [
        ({"padding": "SAME"}, 9 * 12, 15 * 8),
        ({"padding": "VALID"}, 7 * 8, 15 * 8),
        ({"strides": (2, 3), "padding": "SAME"}, 5 * 4, 15 * 8),
        ({"strides": (2, 3), "padding": "VALID"}, 4 * 3, 15 * 8),
        ({"feature_group_count": 4}, 9 * 12, 15 * 2),
        ({"kernel_dilation": (2, 2), "padding": "VALID"}, 5 * 4, 15 * 8),
        ({"padding": ((2, 0), (1, 4))}, 9 * 13, 15 * 8),
        ({"padding": "CIRCULAR"}, 9 * 12, 15 * 8),
        ({"input_dilation": (1, 1), "use_bias": False}, 9 * 12, 15 * 8),
    ],
)
def test_convolutions(options, out, taps_and_channels):
    counted = module_flops(nn.Conv(16, (3, 5), **options), shape(2, 9, 12, 8))
    assert counted == {"kernel": 2 * 2 * out * 16 * taps_and_channels}


def test_one_and_three_dimensional_convolutions():
    assert module_flops(nn.Conv(4, (3,)), shape(1, 10, 2)) == {"kernel": 2 * 10 * 4 * 3 * 2}
    assert module_flops(nn.Conv(4, (1, 2, 3)), shape(1, 5, 6, 7, 2)) == {"kernel": 2 * 210 * 4 * 6 * 2}


def test_transposed_convolution_skips_inserted_zeros():
    # Stride = kernel: every input meets every tap once.
    counted = module_flops(nn.ConvTranspose(3, (2, 2), strides=(2, 2)), shape(1, 5, 6, 4))
    assert counted == {"kernel": 2 * 5 * 6 * 4 * 3 * 4}
    # Kernel 3, stride 2: outputs take turns with one and with two taps.
    counted = module_flops(nn.ConvTranspose(1, (3,), strides=(2,), padding="SAME"), shape(1, 8, 1))
    assert counted == {"kernel": 2 * 8 * 3}


def test_attention():
    module = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=6, out_features=8)
    counted = module_flops(module, shape(1, 5, 8), shape(1, 9, 8))
    assert counted == {
        "query/kernel": 2 * 5 * 8 * 6,
        "key/kernel": 2 * 9 * 8 * 6,
        "value/kernel": 2 * 9 * 8 * 6,
        "out/kernel": 2 * 5 * 6 * 8,
        "": 2 * (2 * 5 * 9 * 6),
    }


class Block(nn.Module):
    """A residual block with a norm scale, which must not own the multiplications after it."""

    width: int

    @nn.compact
    def __call__(self, x, _=None):
        hidden = nn.gelu(nn.Dense(3 * self.width)(nn.LayerNorm()(x)))
        return x + nn.silu(nn.Dense(self.width)(hidden)), None


class Scanned(nn.Module):
    """Embedding, four scanned blocks (rematerialised if asked), logits by the embedding table."""

    remat: bool = False

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(11, 8)
        block = nn.remat(Block, prevent_cse=False) if self.remat else Block
        layers = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=4)
        x, _ = layers(8, name="layers")(embed(tokens), None)
        return embed.attend(x)


@pytest.mark.parametrize("remat", [False, True])
def test_scanned_layers_and_tied_embedding(remat):
    counted = module_flops(Scanned(remat), shape(1, 6, dtype=jnp.int32))
    assert counted == {
        "layers/Dense_0/kernel": 4 * 2 * 6 * 8 * 24,
        "layers/Dense_1/kernel": 4 * 2 * 6 * 24 * 8,
        "Embed_0/embedding": 2 * 6 * 8 * 11,
    }


class ResNet20(nn.Module):
    """ResNet-20 of width 16 with 1x1 shortcuts, named as in architectures.py."""

    @nn.compact
    def __call__(self, x):
        def conv(width, kernel, stride, name):
            return nn.Conv(width, (kernel, kernel), (stride, stride), use_bias=False, name=name)

        x = nn.relu(nn.GroupNorm(4)(conv(16, 3, 1, "stem")(x)))
        for stage, width in enumerate((16, 32, 64), start=1):
            for block in (1, 2, 3):
                name, stride = f"stage{stage}/block{block}", 2 if stage > 1 and block == 1 else 1
                y = nn.relu(nn.GroupNorm(4)(conv(width, 3, stride, f"{name}/conv1")(x)))
                y = nn.GroupNorm(4)(conv(width, 3, 1, f"{name}/conv2")(y))
                x = nn.relu(y + (conv(width, 1, stride, f"{name}/shortcut")(x) if stride == 2 else x))
        return nn.Dense(10, name="head")(x.mean((1, 2)))


def test_resnet20_has_the_published_macs_and_ratios():
    network = architectures.resnet20()
    counted = module_flops(ResNet20(), shape(1, 32, 32, 3))
    assert counted == {f"{path}/kernel": 2 * macs for path, macs in architectures.macs(network).items()}
    assert round(sum(counted.values()) / 2e6, 1) == 40.8
    params = {f"{path}/kernel": leaf for path, leaf in architectures.params(network).items()}
    for sparsity, ratio in {0.8: 0.358, 0.9: 0.177, 0.95: 0.087}.items():
        densities = distributions.erk(params, 1 - sparsity, flax_layout)
        assert round(flops.relative_inference_flops(counted, densities), 3) == ratio


def test_a_parameter_is_followed_to_its_multiplication():
    params = {"w": shape(8, 6), "gain": shape(6), "mask": shape(8, 6, dtype=jnp.bool_), "w16": shape(2, 3, 4)}

    def fun(params, x):
        kernel = params["w"] - params["w"].mean(0, keepdims=True)
        kernel = jnp.where(params["mask"], kernel * params["gain"][None], 0.0)
        x = x @ kernel.astype(jnp.bfloat16)
        reshaped = jnp.transpose(params["w16"], (2, 0, 1)).reshape(4, 6)[:2]
        return x @ reshaped.T

    assert flops.layer_flops(fun, params, shape(3, 8, dtype=jnp.bfloat16)) == {
        "w": 2 * 3 * 8 * 6,
        "w16": 2 * 3 * 6 * 2,
    }


def test_masks_closed_over_or_passed():
    mask = np.eye(4, dtype=bool)
    params, x = {"w": shape(4, 4)}, shape(1, 4)
    assert flops.layer_flops(lambda p, x: x @ (p["w"] * mask), params, x) == {"w": 32}
    masked = shape(4, 4, dtype=jnp.bool_)
    assert flops.layer_flops(lambda p, mask, x: x @ (p["w"] * mask), params, masked, x) == {"w": 32}


def test_learned_queries_and_products_of_weights():
    params = {"query": shape(2, 8), "w": shape(8, 8), "bias": shape(8), "a": shape(8, 2), "b": shape(2, 8)}

    def fun(params, x):
        query = params["query"] @ params["w"] + params["bias"][None]
        scores = jax.nn.softmax(query @ x.T)
        return (scores @ x) @ (params["a"] @ params["b"])

    counted = flops.layer_flops(fun, params, shape(5, 8))
    # query w is the larger one's; query x^T and scores x have no parameter; a b has; x (a b) has none again.
    product = counted.pop("a", 0) + counted.pop("b", 0)
    assert product == 2 * 8 * 2 * 8
    assert counted == {"w": 2 * 2 * 8 * 8, "": 2 * (2 * 8 * 5) * 2 + 2 * 2 * 8 * 8}


@jax.custom_vjp
def straight_through(x, w):
    return x @ w


straight_through.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))


@jax.custom_jvp
def through(x, w):
    return x @ w


through.defjvp(lambda primals, tangents: (through(*primals), tangents[0] @ primals[1]))


@pytest.mark.parametrize("wrapped", [straight_through, through, jax.jit(jnp.dot), jax.checkpoint(jnp.dot)])
def test_calls_are_followed(wrapped):
    assert flops.layer_flops(lambda p, x: wrapped(x, p), shape(8, 6), shape(3, 8)) == {"": 2 * 3 * 8 * 6}
    assert flops.layer_flops(lambda p, x: wrapped(x, p["w"]), {"w": shape(8, 6)}, shape(3, 8)) == {"w": 288}


def test_batches_made_by_vmap():
    params, x = {"w": shape(8, 6)}, shape(3, 8)
    assert flops.layer_flops(lambda p, x: jax.vmap(lambda row: row @ p["w"])(x), params, x) == {"w": 288}
    stack = {"w": shape(3, 8, 6)}
    assert flops.layer_flops(lambda p, x: jax.vmap(jnp.dot)(x, p["w"]), stack, x) == {"w": 288}


def test_loops_and_branches():
    params, x = {"w": shape(4, 4), "v": shape(4, 4)}, shape(2, 4)
    once = 2 * 2 * 4 * 4

    def loop(params, x):
        return jax.lax.fori_loop(0, 5, lambda _, x: x @ params["w"], x)

    def search(params, x):
        def body(x):
            return x @ params["w"] @ params["w"]

        return jax.lax.while_loop(lambda x: (x @ params["v"]).sum() > 1, body, x)

    def swap(params, x):
        # The carry swaps its places: each matrix is in both, so the larger owns what the loop does.
        def body(carry, _):
            first, second, x = carry
            return (second, first, x @ first), None

        return jax.lax.scan(body, (params["w"], params["v"], x), None, length=4)[0][2]

    def branch(params, x):
        branches = [lambda x: x, lambda x: x @ params["w"], lambda x: x @ params["v"] @ params["v"]]
        return jax.lax.switch(jnp.int32(x[0, 0]), branches, x) @ params["w"]

    assert flops.layer_flops(loop, params, x) == {"w": 5 * once}
    assert flops.layer_flops(search, params, x) == {"w": 2 * once, "v": once}
    assert sum(flops.layer_flops(swap, params, x).values()) == 4 * once
    assert flops.layer_flops(branch, params, x) == {"w": once, "v": 2 * once}


def test_mixture_of_experts():
    def fun(params, x, sizes):
        return jax.lax.ragged_dot(x, params["experts"], sizes)

    counted = flops.layer_flops(fun, {"experts": shape(4, 8, 6)}, shape(10, 8), shape(4, dtype=jnp.int32))
    assert counted == {"experts": 2 * 10 * 8 * 6}


def test_nothing_to_count():
    assert flops.layer_flops(lambda p, x: x + p["b"], {"b": shape(3), "off": None}, shape(3)) == {}
    assert flops.relative_inference_flops({}, {}) == 1


def test_what_cannot_be_followed_is_an_error():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()

    def fun(params, x):
        split = jax.shard_map(jnp.dot, mesh=mesh, in_specs=(rows, whole), out_specs=rows)
        return split(x, params["w"])

    with pytest.raises(ValueError, match=r"cannot count the FLOPs inside 'shard_map'"):
        flops.layer_flops(fun, {"w": shape(8, 6)}, shape(4, 8))


def test_inference_flops_from_masks_and_densities():
    layers = {"a/kernel": 1000, "b/kernel": 500, "": 30}
    masks = {"a": {"kernel": jnp.arange(8).reshape(2, 4) < 2, "bias": None}, "b": {"kernel": None}}
    assert flops.inference_flops(layers, masks) == 250 + 500 + 30
    assert flops.inference_flops(layers, {"a/kernel": 0.1, "b/kernel": 0.5}) == pytest.approx(100 + 250 + 30)
    assert flops.relative_inference_flops(layers, masks) == 780 / 1530
    assert flops.inference_flops(layers, {"a": None}) == 1530
    with pytest.raises(ValueError, match=r"no path \(params/a/kernel\) is one of the layers \(a/kernel, b/"):
        flops.inference_flops(layers, {"params": masks})
    with pytest.raises(ValueError, match=r"float32\[2\] is neither a boolean mask nor a number"):
        flops.inference_flops(layers, {"a/kernel": jnp.array([0.1, 0.2])})


def test_training_flops():
    # RigL's own table, ResNet-50 at 80 and 90 %: ERK 0.42 and 0.25 (with inference at 0.42 and 0.24).
    assert flops.dense_training(2.0) == 6
    assert flops.sparse_training(0.5) == 1.5
    assert flops.dense_gradient_training(0.5, 2.0) == 3
    assert flops.rigl_training(0.5, 2.0, 1) == (1.5 + 3) / 2
    for f_sparse, published in ((0.4138, 0.42), (0.2418, 0.25)):
        relative = flops.rigl_training(f_sparse, 1.0, 100) / flops.dense_training(1.0)
        assert relative == pytest.approx((3 * f_sparse * 100 + 2 * f_sparse + 1) / 101 / 3)
        assert relative == pytest.approx(published, abs=0.006)
    for wrong in (0, -5):
        with pytest.raises(ValueError, match=f"update_every={wrong} must be at least 1"):
            flops.rigl_training(0.5, 1.0, wrong)


def test_gradual_training_is_the_mean_over_the_schedule():
    assert flops.gradual_training([1.0]) == flops.dense_training(1.0)
    assert flops.gradual_training([1.0, 0.5, 0.0]) == 1.5
    assert flops.gradual_training([1.0, 0.2], durations=[25, 75]) == pytest.approx(3 * 0.4)
    # The cubic schedule from 0 to S over the whole run: the mean density is 1 - 3 S / 4.
    sparsity = [0.8 * (1 - (1 - (step + 0.5) / 1000) ** 3) for step in range(1000)]
    assert flops.gradual_training([1 - s for s in sparsity]) == pytest.approx(3 * (1 - 0.6), abs=1e-5)
    for stages, durations in (([], None), ([1.0], [1, 2]), ([1.0, 1.0], [-1, 2]), ([1.0], [0])):
        with pytest.raises(ValueError, match="one length for each"):
            flops.gradual_training(stages, durations)


def test_bytes_of_every_format():
    # 6 x 8 of bfloat16 with 10 kept, a float32 bias of 8: dense 96 + 32.
    masks = {"kernel": jnp.arange(48).reshape(6, 8) % 5 == 0, "bias": None}
    params = {"kernel": shape(6, 8, dtype=jnp.bfloat16), "bias": shape(8)}
    sizes = flops.bytes_of(masks, params)
    assert sizes == {"dense": 128, "bool_mask": 176, "bit_mask": 134, "csr": 10 * (2 + 4) + 4 * 7 + 32}
    # 6 inputs are no multiple of 4, so 2:4 does not fit; 1:3 keeps 16 bfloat16 and 2 bits for each.
    assert flops.bytes_of(masks, params, nm=(2, 4))["n_m"] == 128
    assert flops.bytes_of(masks, params, nm=(1, 3))["n_m"] == 16 * 2 + 16 * 2 // 8 + 32


def test_bytes_of_n_m_reads_the_input_axis():
    params = {"kernel": shape(3, 4, 8, 2)}
    fits = jnp.broadcast_to((jnp.arange(8) % 4 < 2)[:, None], (3, 4, 8, 2))
    packed = 3 * 4 * 8 * 2 // 2
    assert flops.bytes_of({"kernel": fits}, params, nm=(2, 4))["n_m"] == 4 * packed + packed // 4
    crowded = fits.at[0, 0, 2, 0].set(True)
    assert flops.bytes_of({"kernel": crowded}, params, nm=(2, 4))["n_m"] == 4 * math.prod((3, 4, 8, 2))
    by_output = jnp.broadcast_to(jnp.arange(4) % 4 < 2, (4, 4))
    matrix = {"kernel": shape(4, 4)}
    assert flops.bytes_of({"kernel": by_output}, matrix, nm=(2, 4))["n_m"] == 64
    assert flops.bytes_of({"kernel": by_output.T}, matrix, nm=(2, 4))["n_m"] == 34
    layers = {"kernel": shape(4, 2, 4)}
    over_layers = jnp.broadcast_to((jnp.arange(4) < 2)[:, None, None], (4, 2, 4))
    assert flops.bytes_of({"kernel": over_layers}, layers, nm=(2, 4), layout=stacked("kernel"))["n_m"] == 128

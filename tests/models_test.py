"""The vision models: published sizes and FLOPs, forward passes against plain NumPy, and what training relies on."""

import inspect
import math

import architectures
import flax.linen as nn
import jax
import jax.numpy as jnp
import network_oracles
import numpy as np
import optax
import pytest
from model_shapes import CIFAR, IMAGENET, MNIST, kernels, size, traced
from tiny_models import filled, quick

from sparsejax import distributions, flops
from sparsejax.leaves import except_, flax_layout, named_leaves, select_leaves
from sparsejax.models import MODELS, layers, mlp, mobilenet
from sparsejax.models.resnet import ResNet, resnet_cifar
from sparsejax.models.vgg import VGG
from sparsejax.models.wide_resnet import wrn

VISION = [
    *("lenet5", "lenet_300_100", "mlp", "mobilenet_v1", "resnet110", "resnet18", "resnet20", "resnet32", "resnet50"),
    *("resnet56", "resnet_cifar", "set_mlp", "vgg11", "vgg16", "vgg19", "vit", "vit_b", "vit_s", "vit_ti", "wrn"),
    *("wrn16_8", "wrn22_2", "wrn28_10"),
]

# name, arguments, classes, image, parameters, multiply-accumulates.
# Parameters: ResNets of depth 6 n + 2 with option A as a widely used PyTorch port has them (0.27, 0.46, 0.85, 1.7 M in
# He et al.); ResNet-18, -50 and ViT-B torchvision; WRN its paper (36.5, 11.0 M); MobileNet Keras and its paper; ViT-Ti
# and -S timm; VGG-11 and -16 a PyTorch port, less a bias for each channel; the others B.1's weights, biases and norms.
# MACs: B.1; ResNet-56 and -110 as pruning papers have them (125.49, 252.89 M); torchvision (1.81, 4.09, 17.56 G);
# MobileNet's paper (569, 325, 149, 41 M); DeiT (1.3, 4.6, 17.6 G); results.md for ResNet-18, -50, WRN and VGG on CIFAR.
PUBLISHED = [
    ("lenet_300_100", {}, 10, MNIST, 266_610, 266_200),
    ("lenet5", {}, 10, MNIST, 44_190 + 236, 281_640),
    ("lenet5", {"channels": (20, 50), "features": (500,)}, 10, MNIST, 431_080, 2_293_000),
    ("set_mlp", {}, 10, CIFAR, 20_328_000 + 9_010 + 4 * 9_000, 20_328_000),
    ("resnet20", {"shortcut": "pad"}, 10, CIFAR, 269_722, 40.55e6),
    ("resnet32", {"shortcut": "pad"}, 10, CIFAR, 464_154, 68.86e6),
    ("resnet_cifar", {"shortcut": "pad", "depth": 44}, 10, CIFAR, 658_586, 97.17e6),
    ("resnet56", {"shortcut": "pad"}, 10, CIFAR, 853_018, 125.49e6),
    ("resnet110", {"shortcut": "pad"}, 10, CIFAR, 1_727_962, 252.89e6),
    ("resnet18", {}, 1000, IMAGENET, 11_689_512, 1.814e9),
    ("resnet50", {}, 1000, IMAGENET, 25_557_032, 4.089e9),
    ("resnet18", {"stem": "cifar"}, 10, CIFAR, 11_173_962, 0.5554e9),
    ("resnet50", {"stem": "cifar"}, 10, CIFAR, 23_520_842, 1.2978e9),
    ("resnet50", {"stem": "cifar"}, 100, CIFAR, 23_705_252, 2.596e9 / 2),
    ("wrn22_2", {}, 10, CIFAR, 1_076_912 + 2_720 + 10, 157.7e6),
    ("wrn28_10", {}, 10, CIFAR, 36_479_194, 5.243e9),
    ("wrn16_8", {}, 10, CIFAR, 10_961_370, 1.548e9),
    ("vgg11", {}, 10, CIFAR, 9_231_114 - 2_752, 152.8e6),
    ("vgg16", {}, 10, CIFAR, 14_728_266 - 4_224, 313.2e6),
    ("vgg19", {}, 10, CIFAR, 20_024_000 + 2 * 5_504 + 10, 398.1e6),
    ("mobilenet_v1", {}, 1000, IMAGENET, 4_231_976, 568.7e6),
    ("mobilenet_v1", {"width": 0.75}, 1000, IMAGENET, 2.6e6, 325e6),
    ("mobilenet_v1", {"width": 0.5}, 1000, IMAGENET, 1.3e6, 149e6),
    ("mobilenet_v1", {"width": 0.25}, 1000, IMAGENET, 0.5e6, 41e6),
    ("vit_ti", {}, 1000, IMAGENET, 5_717_416, 1.254e9),
    ("vit_s", {}, 1000, IMAGENET, 22_050_664, 4.6e9),
    ("vit_b", {}, 1000, IMAGENET, 86_567_656, 17.56e9),
]


@pytest.mark.parametrize(("name", "arguments", "classes", "image", "parameters", "macs"), PUBLISHED)
def test_published_parameters_and_flops(name, arguments, classes, image, parameters, macs):
    params, _, counted = traced(name, classes, image, **arguments)
    if isinstance(parameters, int):
        assert size(params) == parameters
    else:
        assert round(size(params) / 1e6, 1) == parameters / 1e6
    if isinstance(macs, int):
        assert sum(counted.values()) == 2 * macs
    else:
        assert sum(counted.values()) / 2 == pytest.approx(macs, rel=0.004)
    assert counted.keys() - {""} == kernels(params).keys(), "every kernel takes part in the FLOPs, and nothing else"


NETWORKS = [
    ("resnet20", 10, CIFAR, architectures.resnet20()),
    ("resnet50", 1000, IMAGENET, architectures.resnet50()),
    ("wrn22_2", 10, CIFAR, architectures.wrn22_2()),
    ("vgg19", 10, CIFAR, architectures.vgg19()),
    ("lenet_300_100", 10, MNIST, architectures.lenet_300_100()),
    ("lenet5", 10, MNIST, architectures.lenet5()),
]


@pytest.mark.parametrize(("name", "classes", "image", "network"), NETWORKS)
def test_each_layer_against_lists_written_by_hand(name, classes, image, network):
    params, _, counted = traced(name, classes, image)
    places = {"fc1": "Dense_0", "fc2": "Dense_1", "fc3": "Dense_2"}
    if name == "lenet5":
        places = {"fc3": "head"}
    ours = {path: f"{places.get(path, path.replace('/', '_', 1))}/kernel" for path, *_ in network}
    macs = architectures.macs(network)
    assert counted == {ours[path]: 2 * macs[path] for path in macs}
    assert kernels(params) == {ours[path]: shape for path, shape, _ in network}


# From B.1: the ratio of inference FLOPs of ERK to dense.
ERK = [
    ("resnet50", 1000, IMAGENET, 25_502_912, {0.8: 0.414, 0.9: 0.242, 0.95: 0.122, 0.965: 0.085, 0.99: 0.024}),
    ("wrn22_2", 10, CIFAR, 1_076_912, {0.8: 0.352, 0.9: 0.174, 0.95: 0.088}),
    ("vgg19", 10, CIFAR, 20_024_000, {0.9: 0.222, 0.95: 0.113, 0.98: 0.047}),
    ("resnet20", 10, CIFAR, 270_896, {0.8: 0.358, 0.9: 0.177, 0.95: 0.087}),
]


@pytest.mark.parametrize(("name", "classes", "image", "weights", "ratios"), ERK)
def test_default_where_takes_the_papers_weights_and_erk_has_their_flops(name, classes, image, weights, ratios):
    params, _, counted = traced(name, classes, image)
    chosen = select_leaves(params)
    assert size(chosen) == weights
    for sparsity, ratio in ratios.items():
        densities = distributions.erk(chosen, 1 - sparsity, flax_layout)
        assert round(flops.relative_inference_flops(counted, densities), 3) == ratio


def test_where_takes_every_kernel_but_patch_embeddings_and_docstrings_name_the_exceptions():
    for name, arguments, classes, image, *_ in PUBLISHED:
        params, _, _ = traced(name, classes, image, **arguments)
        chosen = {path for path, _ in named_leaves(select_leaves(params))}
        assert chosen == {path for path in kernels(params) if "embed" not in path}, name
    params, _, _ = traced("mobilenet_v1", 1000, IMAGENET)
    sparse = select_leaves(params, except_("stem/*", "*_depthwise/*"))
    assert size(sparse) == 4_209_088 - 27 * 32 - 9 * (32 + 64 + 2 * 128 + 2 * 256 + 6 * 512 + 1024)
    params, _, _ = traced("set_mlp", 10, CIFAR)
    assert size(select_leaves(params, except_("Dense_3/*"))) == 20_328_000 - 40_000


def test_depthwise_layers_are_counted_as_such():
    _, _, counted = traced("mobilenet_v1", 1000, IMAGENET)
    assert counted["stem/kernel"] == 2 * 112**2 * 27 * 32
    assert counted["block1_depthwise/kernel"] == 2 * 112**2 * 9 * 32
    assert counted["block2_depthwise/kernel"] == 2 * 56**2 * 9 * 64
    assert counted["block13_pointwise/kernel"] == 2 * 7**2 * 1024 * 1024


@pytest.mark.parametrize("name", VISION)
def test_what_a_config_relies_on(name):
    parameters = inspect.signature(MODELS[name]).parameters
    for parameter in parameters.values():
        assert parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        assert parameter.name == "classes" or parameter.default is not parameter.empty
        assert parameter.default is parameter.empty or not callable(parameter.default)
    assert "classes" in parameters
    assert inspect.getdoc(MODELS[name]).partition("\n")[0].endswith((".", ":"))
    model = MODELS[name](classes=7)
    assert isinstance(model, nn.Module)
    train = inspect.signature(model.__call__).parameters["train"]
    assert (train.kind, train.default) == (train.KEYWORD_ONLY, False)
    assert list(MODELS) == sorted(MODELS)


SMALL = {
    "lenet5": (MODELS["lenet5"](classes=3, channels=(2, 3), features=(5, 4)), 16),
    "set_mlp": (mlp.set_mlp(classes=3, features=(6, 5), dropout=0.0), 4),
    "resnet": (ResNet(3, (1, 2), 4), 8),
    "resnet_pad": (ResNet(3, (1, 1), 2, shortcut="pad"), 8),
    "resnet_imagenet": (ResNet(3, (1, 1), 2, bottleneck=True, stem="imagenet"), 20),
    "wrn": (wrn(3, depth=10, width=1), 8),
    "vgg": (VGG(3, (1, 2, 1, 1, 1), 2), 8),
    "mobilenet": (MODELS["mobilenet_v1"](classes=3, width=0.07), 16),
}
ORACLES = {
    "lenet5": network_oracles.lenet5,
    "set_mlp": lambda *args: network_oracles.mlp(*args, layers=2),
    "resnet": lambda *args: network_oracles.resnet(*args, blocks=(1, 2)),
    "resnet_pad": lambda *args: network_oracles.resnet(*args, blocks=(1, 1)),
    "resnet_imagenet": lambda *args: network_oracles.resnet(*args, blocks=(1, 1), bottleneck=True, imagenet=True),
    "wrn": lambda *args: network_oracles.wide_resnet(*args, blocks=1),
    "vgg": lambda *args: network_oracles.vgg(*args, convs=(1, 2, 1, 1, 1)),
    "mobilenet": lambda *args: network_oracles.mobilenet(*args, blocks=4),
}


@pytest.mark.parametrize("name", SMALL)
def test_forward_and_backward(name, monkeypatch):
    monkeypatch.setattr(mobilenet, "_BLOCKS", mobilenet._BLOCKS[:4])  # 13 take long to compile
    model, side = SMALL[name]
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(4, side, side, 3)), jnp.float32), jnp.array([0, 1, 2, 0])
    variables = filled(jax.eval_shape(model.init, jax.random.key(0), x), rng)
    params, stats = variables["params"], variables.get("batch_stats", {})

    @quick
    def run(params, stats, x):
        def loss(params):
            logits, new = model.apply({"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), (logits, new)

        (_, trained), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        evaluated, changed = model.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
        return evaluated, changed.get("batch_stats", {}), trained, gradients

    evaluated, unchanged, (logits, new), gradients = run(params, stats, x)
    assert evaluated.dtype == logits.dtype == jnp.float32
    assert evaluated.shape == logits.shape == (4, 3)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, stats))
    np.testing.assert_allclose(evaluated, ORACLES[name](*exact, np.asarray(x, np.float64)), rtol=2e-4, atol=2e-5)

    for path, gradient in named_leaves(gradients):
        assert bool(jnp.isfinite(gradient).all()), path
        assert bool((gradient != 0).any()), path
    assert jax.tree.structure(unchanged) == jax.tree.structure(stats)
    for path, after in named_leaves(unchanged):
        np.testing.assert_array_equal(after, dict(named_leaves(stats))[path])
    for path, after in named_leaves(new.get("batch_stats", {})):
        assert bool((after != dict(named_leaves(stats))[path]).all()), path


def test_batch_norm_takes_a_tenth_of_each_batch():
    model, _ = SMALL["resnet"]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 3)), jnp.float32)
    params = filled(jax.eval_shape(model.init, jax.random.key(0), x)["params"], np.random.default_rng(1))
    start = {"mean": jnp.full(4, 2.0), "var": jnp.full(4, 3.0)}

    class Stem(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = layers.conv(4, 3, init="lecun_normal", dtype="float32", name="stem")(x)
            return layers.batch_norm(train, "float32", "stem_norm")(x)

    variables = {"params": {"stem": params["stem"], "stem_norm": params["stem_norm"]}}
    variables["batch_stats"] = {"stem_norm": start}
    _, new = Stem().apply(variables, x, True, mutable=["batch_stats"])
    seen = network_oracles.conv(np.asarray(x, np.float64), np.asarray(params["stem"]["kernel"], np.float64))
    means, variances = seen.mean((0, 1, 2)), seen.var((0, 1, 2))
    np.testing.assert_allclose(new["batch_stats"]["stem_norm"]["mean"], 1.8 + 0.1 * means, rtol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["stem_norm"]["var"], 2.7 + 0.1 * variances, rtol=1e-5)


FAMILIES = {**SMALL, "vit": (MODELS["vit"](classes=3, width=8, depth=1, heads=2, patch=4), 8)}


def apply_shape(model, *shape):
    """The logits' shape for a batch, and the params' shapes."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.eval_shape(model.apply, variables, x), variables["params"]


@pytest.mark.parametrize("name", FAMILIES)
def test_greyscale_images_need_no_channel_axis(name):
    model, side = FAMILIES[name]
    without, params = apply_shape(model, 2, side, side)
    with_axis, same = apply_shape(model, 2, side, side, 1)
    assert without == with_axis == jax.ShapeDtypeStruct((2, 3), jnp.float32)
    assert params == same
    if name != "set_mlp":
        assert min(leaf.shape[2] for path, leaf in named_leaves(params) if leaf.ndim == 4) == 1
        with pytest.raises(ValueError, match=r"x: shape \(2, 16\) is neither \(B, H, W, C\) nor \(B, H, W\)"):
            apply_shape(model, 2, 16)


def multiplications(jaxpr):
    """The dtypes of the operands of every matrix product and convolution."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            found.append({str(value.aval.dtype) for value in eqn.invars})
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            found += multiplications(inner) if hasattr(inner, "eqns") else []
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_computes_in_it_with_float32_params_and_logits(name):
    model, side = FAMILIES[name]
    model = model.clone(dtype="bfloat16")
    logits, params = apply_shape(model, 2, side, side, 3)
    assert logits.dtype == jnp.float32
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"float32"}
    x = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {"float32"}
    *inner, last = multiplications(jax.make_jaxpr(model.apply)(variables, x).jaxpr)
    assert last == {"float32"}
    assert inner and all(dtypes == {"bfloat16"} for dtypes in inner)


def test_bfloat16_is_near_float32():
    model, side = SMALL["wrn"]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, side, side)), jnp.float32)
    variables = filled(jax.eval_shape(model.init, jax.random.key(0), x), np.random.default_rng(1))
    exact = quick(model.apply)(variables, x)
    rounded = quick(model.clone(dtype=jnp.bfloat16).apply)(variables, x)
    assert 0 < float(jnp.abs(rounded - exact).max()) < 0.05 * float(jnp.abs(exact).max())


@pytest.mark.parametrize("name", ["set_mlp", "wrn"])
def test_dropout_acts_in_training_alone(name):
    model, side = SMALL[name]
    model = model.clone(dropout=0.5)
    x = jnp.ones((2, side, side, 3))
    variables = filled(jax.eval_shape(model.init, jax.random.key(0), x), np.random.default_rng(1))

    @quick
    def run(key):
        train = lambda key: model.apply(variables, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"])[0]
        return train(key), train(jax.random.fold_in(key, 1)), train(key), model.apply(variables, x)

    first, second, again, evaluated = run(jax.random.key(0))
    np.testing.assert_array_equal(first, again)
    assert bool((first != second).any()) and bool(jnp.isfinite(evaluated).all())


def test_initialisers_have_the_variances_of_their_docstring():
    shape, key = (3, 3, 32, 96), jax.random.key(0)
    fan_in, fan_out = 9 * 32, 9 * 96
    variances = {
        "glorot_normal": 2 / (fan_in + fan_out), "glorot_uniform": 2 / (fan_in + fan_out),
        "kaiming_fan_in": 2 / fan_in, "kaiming_fan_out": 2 / fan_out, "lecun_normal": 1 / fan_in,
        "normal_0.01": 1e-4, "normal_0.02": 4e-4, "torch_default": 1 / (3 * fan_in),
    }  # fmt: skip
    assert variances.keys() == layers.INITIALIZERS.keys()
    drawn = quick(lambda key: {name: layers.initializer(name)(key, shape) for name in variances})(key)
    for name, variance in variances.items():
        values = drawn[name]
        assert float(values.var()) == pytest.approx(variance, rel=0.03), name
        assert layers.variance(name, shape) == pytest.approx(variance), name
        assert abs(float(values.mean())) < 4 * math.sqrt(variance / values.size), name


STARTS = {
    "lenet_300_100": ({}, "Dense_0/kernel", "glorot_normal"),
    "set_mlp": ({"features": (100,)}, "Dense_0/kernel", "glorot_uniform"),
    "resnet_cifar": ({"depth": 8, "width": 32}, "stage3_block1/conv1/kernel", "kaiming_fan_in"),
    "resnet18": ({"width": 16}, "stage4_block1/conv1/kernel", "kaiming_fan_out"),
    "wrn": ({"depth": 10}, "stage3_block1/conv2/kernel", "kaiming_fan_in"),
    "vgg11": ({"width": 16}, "stage5_conv1/kernel", "kaiming_fan_out"),
    "mobilenet_v1": ({"width": 0.25}, "block13_pointwise/kernel", "lecun_normal"),
    "vit": ({"width": 64, "heads": 4, "depth": 1, "patch": 4}, "block_0/mlp_in/kernel", "normal_0.02"),
}


def test_models_start_as_documented():
    def kernel(name, key):
        # Only the leaf in question is kept, so that the compiler drops the rest.
        model = MODELS[name](classes=10, **STARTS[name][0])
        return dict(named_leaves(model.init(key, jnp.zeros((1, 8, 8, 3)))["params"]))[STARTS[name][1]]

    found = quick(lambda key: {name: kernel(name, key) for name in STARTS})(jax.random.key(1))
    kurtosis = lambda values: float((values**4).mean() / (values**2).mean() ** 2)
    for name, (_, _, start) in STARTS.items():
        expected = np.asarray(layers.initializer(start)(jax.random.key(2), found[name].shape))
        assert float(found[name].std()) == pytest.approx(float(expected.std()), rel=0.05), name
        assert kurtosis(np.asarray(found[name])) == pytest.approx(kurtosis(expected), rel=0.08), name


def test_zero_init_makes_each_block_the_identity():
    model = ResNet(3, (2,), 4, zero_init=True)
    scales = quick(lambda key: model.init(key, jnp.zeros((1, 8, 8)))["params"])(jax.random.key(0))
    assert not bool(scales["stage1_block2"]["norm2"]["scale"].any())
    assert bool((scales["stage1_block2"]["norm1"]["scale"] == 1).all())


WRONG = [
    (lambda: resnet_cifar(10, depth=19), "depth: 19 is not 8, 14, 20"),
    (lambda: wrn(10, depth=20), "depth: 20 is not 10, 16, 22"),
    (lambda: apply_shape(MODELS["resnet18"](classes=2, stem="cifr"), 1, 8, 8), "stem: 'cifr' is not one of cifar, im"),
    (lambda: apply_shape(resnet_cifar(2, shortcut="a"), 1, 8, 8), "shortcut: 'a' is not one of projection, pad"),
    (lambda: apply_shape(resnet_cifar(2, initializer="he"), 1, 8, 8), "initializer: 'he' is not one of glorot_normal"),
    (lambda: apply_shape(resnet_cifar(2, dtype="bf16"), 1, 8, 8), "dtype: 'bf16' is not float32, bfloat16"),
    (lambda: apply_shape(resnet_cifar(2, dtype="int32"), 1, 8, 8), "dtype: 'int32' is not float32, bfloat16"),
    (lambda: apply_shape(MODELS["mlp"](classes=2, activation="silu"), 1, 8), "activation: 'silu' is not one of gelu"),
    (lambda: apply_shape(MODELS["lenet5"](classes=2), 1, 8, 8), "x: images of 8 x 8 are too small for LeNet-5"),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_wrong_arguments_are_one_line(make, message):
    with pytest.raises(ValueError, match=message):
        make()

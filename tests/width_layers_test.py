"""Layers that trade density for width: Sparse-IFT, Monarch matrices and random parameter sharing."""

import math

import jax
import jax.numpy as jnp
import network_oracles as oracle
import numpy as np
import optax
import pytest
from tiny_models import KEY, quick, texts
from zoo_training_test import batch_of, drawn, three_steps

import sparsejax
from sparsejax import distributions, flops
from sparsejax.leaves import named_leaves
from sparsejax.models import MODELS
from sparsejax.models.forms import in_form
from sparsejax.models.gpt import GPT
from sparsejax.models.lenet import LeNet5
from sparsejax.models.mlp import MLP
from sparsejax.models.monarch import MonarchDense, monarch, project, to_dense
from sparsejax.models.resnet import ResNet
from sparsejax.models.roast import Roast, plan_of, read, roast
from sparsejax.models.sparse_ift import FAMILIES, sparse_ift
from sparsejax.models.wide_resnet import wrn
from sparsejax.training.config import resolve
from sparsejax.training.errors import ConfigError
from sparsejax.training.model import make_model
from sparsejax.training.trial import prepare


def costs(model, *image):
    """path -> (leaf, dense FLOPs) of each leaf that is multiplied, for one image."""
    x = jax.ShapeDtypeStruct((1, *image), jnp.float32)
    variables = dict(jax.eval_shape(model.init, KEY, x))
    params = variables.pop("params")
    counted = flops.layer_flops(
        lambda params, rest, x: model.apply({"params": params, **rest}, x), params, variables, x
    )
    return {path: (leaf, counted[path]) for path, leaf in named_leaves(params) if path in counted}


def fed(params, tree):
    """Leaves in float64."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, tree))


# ---- Sparse-IFT

# model, image, the layers that stay dense, and of the others: taps, inputs, outputs, output positions
NETS = {
    "resnet": (
        ResNet(10, (1, 1), 16), (8, 8, 3), ("stem", "head"),
        [(9, 16, 16, 64), (9, 16, 16, 64), (9, 16, 32, 16), (9, 32, 32, 16), (1, 16, 32, 16)],
    ),
    "bottleneck": (
        ResNet(10, (1,), 16, bottleneck=True, stem="imagenet"), (32, 32, 3), ("stem", "head"),
        [(1, 16, 16, 64), (9, 16, 16, 64), (1, 16, 64, 64), (1, 16, 64, 64)],
    ),
    "wrn": (
        wrn(10, depth=10, width=1), (8, 8, 3), ("stem", "head"),
        [(9, 16, 16, 64), (9, 16, 16, 64), (9, 16, 32, 16), (9, 32, 32, 16), (1, 16, 32, 16), (9, 32, 64, 4),
         (9, 64, 64, 4), (1, 32, 64, 4)],
    ),
    "lenet5": (
        LeNet5(10, (20, 50), (500, 80)), (28, 28), ("conv1", "head"),
        [(25, 20, 50, 64), (1, 800, 500, 1), (1, 500, 80, 1)],
    ),
    "mlp": (MLP(10, (300, 100, 64)), (50,), ("Dense_0", "Dense_3"), [(1, 300, 100, 1), (1, 100, 64, 1)]),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NETS)
def test_flops_at_the_sparsity_are_the_dense_nets(name, family):
    plain, image, ends, layers = NETS[name]
    before = costs(plain, *image)
    inner = sum(2 * taps * f_in * f_out * places for taps, f_in, f_out, places in layers)
    at_ends = {path: work for path, (_, work) in before.items() if path.startswith(ends)}
    assert sum(work for _, work in before.values()) == inner + sum(at_ends.values()), (
        "the layers are written down right"
    )
    assert plain.where is None
    for sparsity in (0.5, 0.8 if family == "parallel" else 0.75):
        model = sparse_ift(plain, sparsity, family)
        after = costs(model, *image)
        sparse = {path: work for path, (leaf, work) in after.items() if model.where(path, leaf)}
        dense = {path: work for path, (_, work) in after.items() if path not in sparse}
        low_rank = sum(work for path, work in dense.items() if "_low_" in path)
        cost = (1 - sparsity) * sum(sparse.values()) + low_rank
        one_wider = sum(2 * (taps * f_in + f_out) * places for taps, f_in, f_out, places in layers)
        if family == "factorized":  # each inner width is off by half a unit at most
            assert abs(cost - inner) <= 0.5 * (1 - sparsity) * one_wider
        elif family == "doped":  # each rank is rounded down
            assert inner - one_wider < cost <= inner
        else:
            rounded = family == "wide" and sparsity == 0.5
            assert cost == pytest.approx(inner, rel=0.045 if rounded else 1e-9)
        stay = {path: work for path, work in dense.items() if "_low_" not in path}
        if family == "wide":
            # One side of these is the data's or the classes'; nothing pays for the other.
            wider = sum(at_ends.values()) / math.sqrt(1 - sparsity)
            assert sum(stay.values()) == pytest.approx(wider, rel=0.025) and stay.keys() == at_ends.keys()
        else:
            assert stay == at_ends


def test_weights_by_formula():
    """Of a 3x3 layer from 16 to 32 channels, as the reference has them."""
    plain = ResNet(10, (1, 1), 16)

    def at(family, sparsity):
        model = plain if sparsity is None else sparse_ift(plain, sparsity, family)
        params = jax.eval_shape(model.init, KEY, jax.ShapeDtypeStruct((1, 8, 8), jnp.float32))["params"]
        return {path: leaf.shape for path, leaf in named_leaves(params)}

    name = "stage2_block1/conv1"
    assert at("wide", 0.75)[f"{name}/kernel"] == (3, 3, 32, 64)
    assert at("wide", 0.9)[f"{name}/kernel"] == (3, 3, 51, 102)
    parallel = at("parallel", 0.75)
    assert [parallel.get(f"{name}_branch{i}/kernel") for i in range(6)] == [None, *[(3, 3, 16, 32)] * 4, None]
    inner = round(9 * 16 * 32 / (0.25 * (9 * 16 + 32)))
    factorized = at("factorized", 0.75)
    assert (factorized[f"{name}_u/kernel"], factorized[f"{name}_v/kernel"]) == ((3, 3, 16, inner), (1, 1, inner, 32))
    rank = int(0.9 * 9 * 16 * 32 / (9 * 16 + 32))
    doped = at("doped", 0.9)
    assert doped[f"{name}/kernel"] == (3, 3, 16, 32)
    assert (doped[f"{name}_low_u/kernel"], doped[f"{name}_low_v/kernel"]) == ((3, 3, 16, rank), (1, 1, rank, 32))
    assert at("wide", 0.0) == at("parallel", 0.0) == at("doped", 0.0) == at("", None)
    assert sparse_ift(MODELS["wrn28_10"](classes=10), 0.75).sparse_ift.width(160) == 320


def form(params, stats, family, x, name, apply):
    """The layer of that name in its form, by its definition; apply: (x, its params, whether it is pointwise) -> y."""
    if family == "parallel":
        names = [each for each in params if each.startswith(f"{name}_branch") and not each.endswith("_norm")]
        assert len(names) == 2
        return sum(oracle.norm(apply(x, params[each], False), params, stats, f"{each}_norm") for each in names)
    if family == "factorized":
        inner = oracle.norm(apply(x, params[f"{name}_u"], False), params, stats, f"{name}_u_norm")
        return apply(oracle.relu(inner), params[f"{name}_v"], True)
    y = apply(x, params[name], False)
    if family == "doped":
        y = y + apply(apply(x, params[f"{name}_low_u"], False), params[f"{name}_low_v"], True)
    return y


@pytest.mark.parametrize("family", FAMILIES)
def test_residual_networks_compute_the_family_s_definition(family):
    model = sparse_ift(ResNet(3, (1, 1), 4), 0.5, family)
    x, _ = batch_of(8)
    params, state = drawn(model, x)
    logits = quick(model.apply)({"params": params, **state}, x)
    p, s = fed(params, state["batch_stats"])
    y = oracle.relu(oracle.norm(oracle.conv(np.asarray(x, np.float64), p["stem"]["kernel"]), p, s, "stem_norm"))
    for block, stride in (("stage1_block1", 1), ("stage2_block1", 2)):
        own, stats = p[block], s[block]

        def normed(x, name, norm, stride, own=own, stats=stats):
            apply = lambda x, layer, pointwise: oracle.conv(x, layer["kernel"], 1 if pointwise else stride)
            out = form(own, stats, family, x, name, apply)
            return out if family == "parallel" else oracle.norm(out, own, stats, norm)

        inner = oracle.relu(normed(y, "conv1", "norm1", stride))
        past = normed(y, "shortcut", "shortcut_norm", stride) if stride == 2 else y
        y = oracle.relu(past + normed(inner, "conv2", "norm2", 1))
    np.testing.assert_allclose(logits, oracle.dense(y.mean((1, 2)), p["head"]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_layers_compute_the_family_s_definition(family):
    model = sparse_ift(MLP(3, (7, 6, 5)), 0.5, family)
    x, _ = batch_of(4)
    params, state = drawn(model, x)
    logits = quick(model.apply)({"params": params, **state}, x)
    p, s = fed(params, state.get("batch_stats", {}))
    y = oracle.relu(oracle.dense(np.asarray(x, np.float64).reshape(len(x), -1), p["Dense_0"]))
    apply = lambda x, layer, pointwise: x @ layer["kernel"] + layer.get("bias", 0)
    for name in ("Dense_1", "Dense_2"):
        y = oracle.relu(form(p, s, family, y, name, apply))
    np.testing.assert_allclose(logits, oracle.dense(y, p["Dense_3"]), rtol=1e-4, atol=1e-5)


METHODS = {
    "static": lambda tx, **options: sparsejax.static(tx, distribution=distributions.uniform, **options),
    "rigl": lambda tx, **options: sparsejax.rigl(tx, update_every=1, distribution=distributions.uniform, **options),
}
SMALL_GPT = dict(vocab=11, width=16, heads=4, context=8)
TRAINED = {
    **{f"mlp_{family}": (sparse_ift(MLP(3, (7, 5)), 0.5, family), 4) for family in FAMILIES},
    "resnet_parallel": (sparse_ift(ResNet(3, (1,), 4), 0.5, "parallel"), 8),
    "resnet_factorized": (sparse_ift(ResNet(3, (1,), 4), 0.5, "factorized"), 8),
    "lenet5_doped": (sparse_ift(LeNet5(3, (4, 6), (10, 8)), 0.5, "doped"), 16),
    "mlp_monarch": (monarch(MLP(3, (12, 8)), 2), 4),
    "gpt_monarch": (monarch(GPT(**SMALL_GPT, layers=1)), 0),
}
ONCE = {"resnet_parallel": "static", "resnet_factorized": "static", "lenet5_doped": "static", "gpt_monarch": "rigl"}


@pytest.mark.parametrize(
    ("name", "method"), [(name, method) for name in TRAINED for method in METHODS if ONCE.get(name, method) == method]
)
def test_three_masked_steps(name, method):
    model, side = TRAINED[name]
    where, layout = getattr(model, "where", None), getattr(model, "layout", None)
    tx = METHODS[method](optax.adamw(1e-2), sparsity=0.5, where=where, layout=layout)
    params, state, start, _, losses = three_steps(model, tx, *batch_of(side))
    assert np.isfinite(losses).all()
    leaves, given = dict(named_leaves(params)), dict(named_leaves(start))
    masks = {path: np.asarray(mask) for path, mask in named_leaves(sparsejax.get_masks(state)) if mask is not None}
    kernels = {path for path in leaves if path.split("/")[-1].startswith("kernel") and "embed" not in path}
    ends = ("stem", "head", "conv1/", "Dense_0", "Dense_2") if "monarch" not in name else ()
    assert masks.keys() == {path for path in kernels if not path.startswith(ends) and "_low_" not in path}
    for path, mask in masks.items():
        leaf = np.asarray(leaves[path])
        assert (leaf[~mask] == 0).all() and (leaf[mask] != 0).any(), path
        assert mask.sum() == mask.size - mask.size // 2, path
    for path, leaf in leaves.items():
        assert (leaf != given[path]).any(), path


# ---- Monarch


def explicit(first, second, inputs, outputs):
    """The dense kernel: block diagonal, permutation, block diagonal, permutation, each a matrix."""
    (blocks, p, q), s = first.shape, second.shape[2]
    left, right = np.zeros((blocks * p, blocks * q)), np.zeros((blocks * q, blocks * s))
    for k in range(blocks):
        left[k * p : (k + 1) * p, k * q : (k + 1) * q] = first[k]
        right[k * q : (k + 1) * q, k * s : (k + 1) * s] = second[k]
    between, after = np.zeros((blocks * q, blocks * q)), np.zeros((blocks * s, blocks * s))
    for j in range(blocks * q):
        between[j, (j % blocks) * q + j // blocks] = 1
    for j in range(blocks * s):
        after[j, (j % s) * blocks + j // s] = 1
    return (left @ between @ right @ after)[:inputs, :outputs]


SHAPES = [(9, 9, 3), (16, 16, 4), (12, 20, 3), (20, 12, 3), (13, 17, 3), (7, 5, 2), (64, 128, 4)]


def factors_of(inputs, outputs, blocks, seed=0):
    rng = np.random.default_rng(seed)
    p, s = -(-inputs // blocks), -(-outputs // blocks)
    return rng.normal(size=(blocks, p, min(p, s))), rng.normal(size=(blocks, min(p, s), s))


@pytest.mark.parametrize(("inputs", "outputs", "blocks"), SHAPES)
def test_monarch_is_the_product_of_its_explicit_matrices(inputs, outputs, blocks):
    first, second = factors_of(inputs, outputs, blocks)
    matrix = explicit(first, second, inputs, outputs)
    found = to_dense((jnp.asarray(first, jnp.float32), jnp.asarray(second, jnp.float32)), inputs, outputs)
    np.testing.assert_allclose(found, matrix, rtol=1e-4, atol=1e-4)

    layer = MonarchDense(outputs, variance=1 / inputs, nblocks=blocks)
    x = np.random.default_rng(1).normal(size=(2, 3, inputs))
    params = {"kernel_in": jnp.asarray(first, jnp.float32), "kernel_out": jnp.asarray(second, jnp.float32)}
    params["bias"] = jnp.arange(outputs, dtype=jnp.float32)
    y = layer.apply({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(y, x @ matrix + np.arange(outputs), rtol=1e-3, atol=1e-3)

    q = min(-(-inputs // blocks), -(-outputs // blocks))
    weights = blocks * q * (-(-inputs // blocks) - (-outputs // blocks))
    counted = flops.layer_flops(lambda p, x: layer.apply({"params": p}, x), params, jnp.ones((1, inputs)))
    assert sum(counted.values()) == 2 * weights == 2 * sum(params[name].size for name in counted)
    assert jax.tree.map(jnp.shape, jax.eval_shape(layer.init, KEY, jnp.ones((1, inputs)))["params"]) == jax.tree.map(
        jnp.shape, params
    )


def test_gradients_of_monarch_factors_by_finite_differences():
    inputs, outputs, blocks = 7, 8, 2
    factors, rng = factors_of(inputs, outputs, blocks), np.random.default_rng(2)
    x, weight = rng.normal(size=(3, inputs)), rng.normal(size=(3, outputs))
    loss = lambda first, second: float((weight * np.tanh(x @ explicit(first, second, inputs, outputs))).sum())
    layer = MonarchDense(outputs, 1.0, blocks, use_bias=False)
    names = ("kernel_in", "kernel_out")

    def ours(params):
        return (jnp.asarray(weight, jnp.float32) * jnp.tanh(layer.apply({"params": params}, jnp.asarray(x)))).sum()

    found = jax.grad(ours)({name: jnp.asarray(leaf, jnp.float32) for name, leaf in zip(names, factors)})
    for which, name in enumerate(names):
        for index in np.ndindex(factors[which].shape):
            up, down = [leaf.copy() for leaf in factors], [leaf.copy() for leaf in factors]
            up[which][index] += 1e-5
            down[which][index] -= 1e-5
            slope = (loss(*up) - loss(*down)) / 2e-5
            assert float(found[name][index]) == pytest.approx(slope, rel=1e-3, abs=1e-3), (name, index)


@pytest.mark.parametrize(("inputs", "outputs", "blocks"), SHAPES)
def test_projection_recovers_monarch_matrices(inputs, outputs, blocks):
    matrix = explicit(*factors_of(inputs, outputs, blocks), inputs, outputs)
    factors = project(jnp.asarray(matrix, jnp.float32), blocks)
    assert [leaf.shape for leaf in factors] == [leaf.shape for leaf in factors_of(inputs, outputs, blocks)]
    np.testing.assert_allclose(to_dense(factors, inputs, outputs), matrix, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("inputs", "outputs", "blocks"), [(4, 4, 2), (9, 9, 3), (6, 8, 2), (7, 5, 2), (10, 6, 2)])
def test_no_other_monarch_matrix_is_nearer(inputs, outputs, blocks):
    """Against alternating least squares on the explicit matrices, from many starts."""
    target = np.random.default_rng(0).normal(size=(inputs, outputs))
    factors = project(jnp.asarray(target, jnp.float32), blocks)
    ours = float(((np.asarray(to_dense(factors, inputs, outputs), np.float64) - target) ** 2).sum())

    def solved(which, factors):
        """One factor such that the product is nearest, the other given: linear in each."""
        shape, columns = factors[which].shape, []
        for index in np.ndindex(shape):
            unit = [factors[0], factors[1]]
            unit[which] = np.zeros(shape)
            unit[which][index] = 1
            columns.append(explicit(*unit, inputs, outputs).reshape(-1))
        return np.linalg.lstsq(np.stack(columns, 1), target.reshape(-1), rcond=None)[0].reshape(shape)

    best = math.inf
    for seed in range(4):
        found = list(factors_of(inputs, outputs, blocks, seed))
        for _ in range(30):
            for which in (1, 0):
                found[which] = solved(which, found)
        best = min(best, float(((explicit(*found, inputs, outputs) - target) ** 2).sum()))
    assert ours <= best * (1 + 1e-4)
    assert best == pytest.approx(ours, rel=0.02), "the search was a good one"


def test_monarch_models_compute_what_dense_ones_do_with_its_matrices():
    model, (x, _) = monarch(MLP(3, (20, 12)), 3), batch_of(4)
    params, _ = drawn(model, x)
    widths = (48, 20, 12)
    dense = dict(params)
    for index in (0, 1):
        layer = params[f"Dense_{index}"]
        factors = np.asarray(layer["kernel_in"]), np.asarray(layer["kernel_out"])
        kernel = explicit(*factors, *widths[index : index + 2])
        dense[f"Dense_{index}"] = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": layer["bias"]}
    plain = quick(MLP(3, (20, 12)).apply)({"params": dense}, x)
    np.testing.assert_allclose(quick(model.apply)({"params": params}, x), plain, rtol=1e-3, atol=1e-3)

    sizes = SMALL_GPT | dict(layers=1, mlp_width=24)
    model, tokens = monarch(GPT(**sizes), 4), texts()
    params, _ = drawn(model, tokens)
    block = params["block_0"]
    halves = {}
    for name, shape in (("up", (16, 24)), ("down", (24, 16))):
        layer = block["mlp"][name]
        kernel = explicit(np.asarray(layer["kernel_in"]), np.asarray(layer["kernel_out"]), *shape)
        halves[name] = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": layer["bias"]}
    plain = quick(GPT(**sizes).apply)({"params": params | {"block_0": block | {"mlp": halves}}}, tokens)
    np.testing.assert_allclose(quick(model.apply)({"params": params}, tokens), plain, rtol=1e-3, atol=1e-3)
    scanned = jax.eval_shape(model.clone(scan=True, layers=3).init, KEY, tokens)["params"]["blocks"]["mlp"]
    assert scanned["up"]["kernel_in"].shape == (3, 4, 4, 4) and scanned["up"]["kernel_out"].shape == (3, 4, 4, 6)


@pytest.mark.parametrize(("inputs", "outputs"), [(256, 256), (203, 512), (512, 130)])
def test_monarch_layers_start_with_the_dense_layers_variance(inputs, outputs):
    layer = MonarchDense(outputs, variance=0.5 / inputs, nblocks=4)
    x = jax.random.normal(jax.random.key(1), (400, inputs))
    y, variables = quick(layer.init_with_output)(jax.random.key(2), x)
    assert float(y.var()) == pytest.approx(0.5, rel=0.1)
    assert not bool(variables["params"]["bias"].any())


# ---- random parameter sharing


def mixed(number):
    """The last mixing of MurmurHash3, on Python's integers."""
    number = (number ^ number >> 16) * 0x85EBCA6B % 2**32
    number = (number ^ number >> 13) * 0xC2B2AE35 % 2**32
    return number ^ number >> 16


def hashed(number, seed, stream):
    return mixed(number ^ mixed(mixed(seed) ^ stream + 2))


SIZES = {"a/kernel": (5, 4), "b/kernel": (3, 3, 2, 3), "c/kernel": (7, 5)}
STDS = {"a/kernel": 0.5, "b/kernel": 0.2, "c/kernel": 0.1}


def sharing_matrix(spec, sizes, stds):
    """A of w = A θ, weight by weight, for all kernels in a row."""
    weights = sum(map(math.prod, sizes.values()))
    memory = max(1, round(spec.density * weights))
    rows, position = [], 0
    for layer, (path, shape) in enumerate(sizes.items()):
        run = memory if spec.stabilised else min(spec.tile, memory)
        position = position if spec.stabilised else -(-position // run) * run
        for own in range(math.prod(shape)):
            at = position if spec.stabilised else own
            stream, places = (0, memory) if spec.stabilised else (layer, memory - run + 1)
            place = (hashed(at // run, spec.seed, stream) % places + at % run) % memory
            sign = 1 if hashed(position, spec.seed, -1) % 2 else -1
            rows.append(sign * stds[path] / spec.memory_std * (np.arange(memory) == place))
            position += 1
    return np.stack(rows)


SPECS = [
    Roast(0.3), Roast(0.07, seed=3), Roast(1.0), Roast(0.5, stabilised=False, tile=8),
    Roast(0.1, False, 256, 0.1, 5),
]  # fmt: skip


@pytest.mark.parametrize("spec", SPECS)
def test_shared_weights_and_their_gradient_against_the_explicit_matrix(spec):
    plan, matrix = plan_of(spec, SIZES, STDS), sharing_matrix(spec, SIZES, STDS)
    rng = np.random.default_rng(0)
    memory, pull = rng.normal(size=plan.size), rng.normal(size=len(matrix))
    row = lambda kernels: jnp.concatenate([kernels[path].reshape(-1) for path in SIZES])

    def loss(memory):
        kernels = read(memory, plan)
        return (row(kernels) * jnp.asarray(pull, jnp.float32)).sum(), kernels

    @quick
    def run(memory):
        found, kernels = jax.grad(loss, has_aux=True)(memory)
        return kernels, found, jax.jvp(lambda memory: loss(memory)[0], (memory,), (jnp.ones(plan.size),))[1]

    kernels, found, tangent = run(jnp.asarray(memory, jnp.float32))
    assert {path: kernel.shape for path, kernel in kernels.items()} == SIZES
    np.testing.assert_allclose(row(kernels), matrix @ memory, rtol=1e-5, atol=1e-5)

    own = matrix.T @ pull
    if not spec.stabilised:
        return np.testing.assert_allclose(found, own, rtol=1e-4, atol=1e-4)
    # A step along it moves the weights by the projection of their own step on what the sharing allows.
    nearest = np.linalg.lstsq(matrix, pull, rcond=None)[0]
    np.testing.assert_allclose(matrix @ np.asarray(found, np.float64), matrix @ nearest, rtol=1e-3, atol=1e-3)
    shared = (matrix != 0).sum(0)
    assert set(shared) <= {len(matrix) // plan.size, -(-len(matrix) // plan.size)}, "each place has its load"
    assert float(tangent) == pytest.approx(float(found.sum()), rel=1e-3, abs=1e-4)


def test_signs_and_places_look_random():
    plan = plan_of(Roast(0.05, False, 16), {"a": (300, 100), "b": (100, 100)}, {"a": 1.0, "b": 1.0})
    kernels = read(jnp.ones(plan.size), plan)
    signs = np.concatenate([np.sign(np.asarray(kernels[name]).reshape(-1)) for name in "ab"])
    assert abs(signs.mean()) < 4 / math.sqrt(len(signs)) and abs((signs[1:] * signs[:-1]).mean()) < 0.02
    assert len(np.unique(plan.starts)) > 0.6 * min(len(plan.starts), plan.size - 16)
    assert plan.starts.min() < 0.02 * plan.size and plan.starts.max() > 0.97 * (plan.size - 16)


def three_dense_steps(model, params, state, x, y, rate=0.05):
    """(params, losses, logits) after three steps of SGD with momentum and decay."""
    tx = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(rate, momentum=0.9))

    @quick
    def run(params, state):
        opt_state, losses = tx.init(params), []
        for _ in range(3):

            def loss_of(params, state=state):
                logits, new = model.apply({"params": params, **state}, x, train=True, mutable=list(state))
                return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), dict(new)

            (loss, state), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
            losses.append(loss)
            updates, opt_state = tx.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
        return params, losses, model.apply({"params": params, **state}, x)

    return run(params, state)


@pytest.mark.parametrize(
    ("model", "side"),
    [(MLP(3, (7, 5)), 4), (ResNet(3, (1,), 4, head_initializer="normal_0.02"), 8)],
    ids=["mlp", "resnet"],
)
def test_at_full_density_the_shared_model_trains_as_the_dense_one(model, side):
    (x, y), shared = batch_of(side), roast(model, 1.0, memory_std=0.3)
    _, state = drawn(shared, x)
    params = jax.tree.map(lambda leaf: leaf, quick(shared.init)(KEY, x)["params"])
    kernels = {path: leaf for path, leaf in named_leaves(drawn(model, x)[0]) if path.endswith("/kernel")}
    stds = {
        path: math.sqrt((1 if side == 4 else 2) / math.prod(leaf.shape[:-1])) for path, leaf in kernels.items()
    }  # lecun_normal of the MLP, kaiming_fan_in of the ResNet but for its head
    stds |= {"head/kernel": 0.02} if side == 8 else {}
    matrix = sharing_matrix(shared.roast, {path: leaf.shape for path, leaf in kernels.items()}, stds)
    assert (np.abs(matrix) > 0).sum(0).tolist() == [1] * len(matrix)

    def unshared(params):
        row, dense = matrix @ np.asarray(params["memory"], np.float64), {}
        for path, leaf in kernels.items():
            *parents, name = path.split("/")
            node = dense
            for parent in parents:
                node = node.setdefault(parent, {})
            node[name], row = jnp.asarray(row[: leaf.size].reshape(leaf.shape), jnp.float32), row[leaf.size :]
        merge = lambda a, b: {k: merge(a[k], b[k]) if k in a and k in b else (b | a)[k] for k in a | b}
        return merge(dense, {name: tree for name, tree in params.items() if name != "memory"})

    ours, _, logits = three_dense_steps(shared, params, state, x, y)
    dense, _, expected = three_dense_steps(model, unshared(params), state, x, y)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
    found = dict(named_leaves(unshared(ours)))
    assert found.keys() == dict(named_leaves(dense)).keys()
    for path, leaf in named_leaves(dense):
        np.testing.assert_allclose(found[path], leaf, rtol=1e-3, atol=1e-4, err_msg=path)


SHARED = {
    "mlp": (roast(MLP(3, (7, 5)), 0.2), 4, 48 * 7 + 35 + 15),
    "lenet5": (roast(LeNet5(3, (2, 3), (5, 4)), 0.2, stabilised=False, tile=4), 16, 150 + 150 + 15 + 20 + 12),
    "resnet": (roast(ResNet(3, (1, 1), 4), 0.1), 8, 108 + 288 + 288 + 576 + 32 + 24),
    "wrn": (roast(wrn(3, depth=10, width=1), 0.02, stabilised=False, tile=16), 8, 432 + 2 * 2304 + 4608 + 9216 + 512
            + 18432 + 36864 + 2048 + 192),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARED)
def test_shared_models_have_the_memory_and_no_kernels(name):
    model, side, weights = SHARED[name]
    x, _ = batch_of(side)
    shapes = dict(named_leaves(jax.eval_shape(model.init, KEY, x)["params"]))
    assert shapes["memory"].shape == (round(model.roast.density * weights),)
    assert not any("kernel" in path for path in shapes)


@pytest.mark.parametrize("name", ["mlp", "lenet5"])
def test_three_steps_with_shared_weights(name):
    model, side, _ = SHARED[name]
    x, y = batch_of(side)
    start, state = drawn(model, x)
    # Plain ROAST's gradient grows with λ², here above 50: at the usual rate it diverges.
    params, losses, _ = three_dense_steps(model, start, state, x, y, 0.05 if model.roast.stabilised else 1e-6)
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    for path, leaf in named_leaves(params):
        assert (leaf != dict(named_leaves(start))[path]).any(), path
    with pytest.raises(ValueError, match="where matches none"):
        sparsejax.rigl(optax.adamw(1e-2), sparsity=0.5).init(start)


def test_shared_weights_start_with_the_spread_of_their_initialiser():
    model = roast(MLP(10, (60, 40)), 0.5)
    memory = quick(lambda: model.init(KEY, jnp.ones((1, 64)))["params"]["memory"])()
    assert float(memory.std()) == pytest.approx(0.04, rel=0.05)
    sizes = {"Dense_0/kernel": (64, 60), "Dense_1/kernel": (60, 40), "Dense_2/kernel": (40, 10)}
    stds = {path: shape[0] ** -0.5 for path, shape in sizes.items()}
    for path, kernel in read(memory, plan_of(model.roast, sizes, stds)).items():
        assert float(kernel.std()) == pytest.approx(stds[path], rel=0.15), path


# ---- by config, and what is refused

CONFIG = {"model": "mlp", "dataset": "digits", "model_args": {"features": [8, 7]}, "sparsity": 0.75, "method": "rigl"}
UNIFORM = {"method_args": {"distribution": "uniform", "update_every": 10}}


def with_args(**arguments):
    return CONFIG | {"model_args": CONFIG["model_args"] | arguments}


def test_a_config_widens_by_its_own_sparsity_and_leaves_the_ends_dense():
    config = resolve(with_args(sparse_ift="wide") | UNIFORM)
    assert config["model_args"] == {"features": [8, 7], "sparse_ift": "wide", "ift_sparsity": 0.75}
    assert resolve(config) == config
    state, _ = prepare(config).init()
    masks = sparsejax.get_masks(state.opt_state)
    assert masks["Dense_0"]["kernel"] is masks["Dense_2"]["kernel"] is None
    assert masks["Dense_1"]["kernel"].shape == (1, 16, 14) and int(masks["Dense_1"]["kernel"].sum()) == 8 * 7
    dense = resolve(with_args(sparse_ift="wide") | {"method": "dense"})
    assert dense["model_args"]["ift_sparsity"] == 0
    own = resolve(with_args(sparse_ift="wide", ift_sparsity=0.5) | {"method": "dense"})
    assert own["model_args"]["ift_sparsity"] == 0.5
    every = resolve(with_args(sparse_ift="wide") | {"method_args": {"where": "only('*/kernel')", "update_every": 10}})
    masks = sparsejax.get_masks(prepare(every).like.opt_state)
    assert masks["Dense_0"]["kernel"] is not None


class Images:
    classes = 10


@pytest.mark.parametrize("name", ["lenet5", "lenet_300_100", "mlp", "resnet18", "resnet20", "set_mlp", "wrn22_2"])
def test_every_size_of_these_models_takes_the_forms(name):
    made = lambda **arguments: make_model(
        {"model": name, "model_args": arguments, "dtype": "float32", "method": "dense"}, Images
    )
    assert made(roast=0.1, roast_stabilised=False).roast == Roast(0.1, stabilised=False)
    assert made(sparse_ift="parallel", ift_sparsity=0.5).sparse_ift == (0.5, "parallel")
    assert made() == MODELS[name](classes=10, dtype=jnp.float32)
    if "mlp" in name or "300" in name:
        assert made(monarch=2).monarch == 2


REFUSED = [
    (lambda: sparse_ift(MODELS["vgg11"](classes=2), 0.5), "sparse_ift: VGG has no such form; ResNet, WideResNet, M"),
    (lambda: sparse_ift(MLP(2), 0.5, "deep"), "sparse_ift: 'deep' is not one of wide, parallel, factorized, doped"),
    (lambda: sparse_ift(MLP(2), 1.0), r"sparsity: 1.0 is not a number in \[0, 1\)"),
    (lambda: sparse_ift(MLP(2), True), r"sparsity: True is not a number in \[0, 1\)"),
    (lambda: sparse_ift(MLP(2), 0.6, "parallel"), "sparsity: 0.6 asks for 2.5 branches; parallel takes 0.5, 0.75"),
    (lambda: monarch(ResNet(2, (1,), 4)), "monarch: ResNet has no such form; MLP, GPT have"),
    (lambda: monarch(MLP(2), 0), "monarch: 0 is not an integer >= 1"),
    (lambda: MonarchDense(6, 1.0, 4).init(KEY, jnp.ones((1, 9))), "4 blocks are too many for a layer of 9 inputs, 6"),
    (lambda: project(jnp.ones((2, 2, 2))), r"kernel: shape \(2, 2, 2\) is not \(inputs, outputs\)"),
    (lambda: GPT(vocab=5, monarch=1.5), "monarch: 1.5 is not an integer >= 1"),
    (lambda: roast(MODELS["vit"](classes=2), 0.5), "roast: ViT has no such form; MLP, LeNet5, ResNet, WideResNet have"),
    (lambda: roast(MLP(2), 0.0), r"roast: density 0.0 is not a number in \(0, 1\]"),
    (lambda: roast(MLP(2), 0.5, tile=0), "tile: 0 is not an integer >= 1"),
    (lambda: roast(MLP(2), 0.5, seed=-1), "seed: -1 is not an integer >= 0"),
    (lambda: roast(MLP(2), 0.5, memory_std=0.0), "memory_std: 0.0 is not a number > 0"),
    (lambda: roast(MLP(2), 0.5, stabilised=1), "stabilised: 1 is not true or false"),
    (lambda: in_form(MLP(2), sparse_ift="wide", roast=0.5), "roast: the model has its sparse_ift form; one at a time"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_wrong_arguments_are_one_line(make, message):
    with pytest.raises(ValueError, match=message):
        make()


REFUSED_CONFIGS = [
    (with_args(sparse_ift="deep"), "model_args: sparse_ift: 'deep' is not one of wide"),
    (with_args(roast=2), "model_args: roast: density 2 is not"),
    (with_args(roast=0.1), "where matches none"),
    (with_args(monarch=8) | {"method": "dense"}, "8 blocks are too many for a layer of 64 inputs, 8 outputs"),
    (with_args(roasted=0.1), "model_args: unknown 'roasted'; did you mean 'roast'?"),
    (CONFIG | {"model": "vgg11", "model_args": {"sparse_ift": "wide"}}, "model_args: sparse_ift: VGG has no such form"),
]


@pytest.mark.parametrize(("config", "message"), REFUSED_CONFIGS)
def test_wrong_configs_are_one_line(config, message):
    with pytest.raises(ConfigError, match=message) as caught:
        prepare(resolve(config))
    assert "\n" not in str(caught.value)

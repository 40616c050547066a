"""Vision transformers: the forward pass, scan and remat, stochastic depth, and how their layers are ranked."""

import functools

import jax
import jax.numpy as jnp
import network_oracles
import numpy as np
import optax
import pytest
from tiny_models import quick

import sparsejax
from sparsejax import flops
from sparsejax.leaves import named_leaves
from sparsejax.models.scanned import stack_blocks, unstack_blocks
from sparsejax.models.vit import ViT, sincos_positions

SMALL = ViT(classes=3, width=8, depth=3, heads=2, mlp_width=12, patch=4)
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)


def random_params(model, x=IMAGES, seed=0):
    """Params of the model's shapes that make every part matter: scales about 1, all else of variance 1 / 8."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    draw = lambda path, leaf: rng.normal(1.0 if path.endswith("scale") else 0.0, 8**-0.5, leaf.shape)
    leaves = [jnp.asarray(draw(path, leaf), jnp.float32) for path, leaf in named_leaves(shapes)]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def as_tensors(params):
    """The params under the names and in the layout of `transformers`, in float64."""
    parts = {
        "norm1": "layernorm_before", "norm2": "layernorm_after", "attention/out": "attention.output.dense",
        "mlp_in": "intermediate.dense", "mlp_out": "output.dense",
        **{f"attention/{part}": f"attention.attention.{part}" for part in ("query", "key", "value")},
    }  # fmt: skip
    names = {
        "final_norm": "vit.layernorm", "head": "classifier",
        "patch_embed": "vit.embeddings.patch_embeddings.projection",
        **{f"block_{i}/{ours}": f"vit.encoder.layer.{i}.{theirs}" for i in range(9) for ours, theirs in parts.items()},
    }  # fmt: skip
    tensors = {}
    for path, leaf in named_leaves(params):
        array, (layer, _, kind) = np.asarray(leaf, np.float64), path.rpartition("/")
        if kind == "kernel":
            tensors[f"{names[layer]}.weight"] = array.T if array.ndim == 2 else array.transpose(3, 2, 0, 1)
        elif layer:
            tensors[f"{names[layer]}.{'weight' if kind == 'scale' else kind}"] = array
    tensors["vit.embeddings.cls_token"] = np.asarray(params.get("cls_token", 0), np.float64)
    tensors["vit.embeddings.position_embeddings"] = np.asarray(params.get("pos_embed", 0), np.float64)
    return tensors


VARIANTS = {
    "class token, learned positions": {},
    "mean, fixed positions": {"pool": "gap", "positions": "sincos"},
    "mean, learned positions": {"pool": "gap"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_pass(variant):
    options = VARIANTS[variant]
    model = SMALL.clone(depth=2, **options)
    params = random_params(model)
    fixed = sincos_positions(2, 2, 8).astype(np.float64) if options.get("positions") else None
    expected = network_oracles.vit(
        as_tensors(params), np.asarray(IMAGES, np.float64), 2, 1e-6, fixed, token="pool" not in options
    )
    logits = quick(model.apply)({"params": params}, IMAGES)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    learned = "positions" not in options
    assert ("pos_embed" in params) == learned and ("cls_token" in params) == ("pool" not in options)
    assert not learned or params["pos_embed"].shape == (1, 4 + ("pool" not in options), 8)


def test_fixed_positions():
    table = sincos_positions(3, 5, 12)
    assert table.shape == (15, 12) and table.dtype == np.float32
    omega = [1.0, 0.01, 0.0001]
    row, column = 2, 4
    by_hand = [np.sin(column * w) for w in omega] + [np.cos(column * w) for w in omega]
    by_hand += [np.sin(row * w) for w in omega] + [np.cos(row * w) for w in omega]
    np.testing.assert_allclose(table[row * 5 + column], by_hand, rtol=1e-6)
    for width in (4, 10):
        with pytest.raises(ValueError, match=f"width: {width} is not 8, 12, 16"):
            sincos_positions(2, 2, width)


def test_scan_and_remat_compute_what_the_loop_does():
    looped = SMALL.clone(depth=2)
    params = random_params(looped)
    stacked = stack_blocks(params)
    assert "block_1" not in stacked and stacked["blocks"]["mlp_in"]["kernel"].shape == (2, 8, 12)
    again = unstack_blocks(stacked)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    for path, leaf in named_leaves(again):
        np.testing.assert_array_equal(leaf, dict(named_leaves(params))[path])

    def loss_of(model):
        loss = lambda params: (model.apply({"params": params}, IMAGES, train=True) ** 2).sum()
        return quick(jax.value_and_grad(loss))

    loss, gradients = loss_of(looped)(params)
    scanned = looped.clone(scan=True)
    assert jax.eval_shape(scanned.init, jax.random.key(0), IMAGES)["params"] == jax.eval_shape(lambda: stacked)
    for model in (scanned, scanned.clone(remat=True)):
        other, theirs = loss_of(model)(stacked)
        np.testing.assert_allclose(other, loss, rtol=1e-5)
        for path, leaf in named_leaves(unstack_blocks(theirs)):
            np.testing.assert_allclose(leaf, dict(named_leaves(gradients))[path], rtol=1e-3, atol=1e-4, err_msg=path)


def test_remat_recomputes_the_blocks():
    def loss(model, params):
        return (model.apply({"params": params}, IMAGES) ** 2).sum()

    params = jax.eval_shape(SMALL.init, jax.random.key(0), IMAGES)["params"]
    for model, tree in ((SMALL, params), (SMALL.clone(scan=True), jax.eval_shape(stack_blocks, params))):
        counts = []
        for remat in (False, True):
            gradient = jax.grad(functools.partial(loss, model.clone(remat=remat)))
            counts.append(str(jax.make_jaxpr(gradient)(tree)).count("dot_general"))
        assert counts[1] > counts[0]


def test_scanned_layers_start_apart_and_as_in_the_loop():
    model = SMALL.clone(width=64, scan=True)
    kernels = quick(lambda key: model.init(key, IMAGES)["params"]["blocks"]["mlp_in"]["kernel"])(jax.random.key(0))
    assert float(jnp.abs(kernels[0] - kernels[1]).max()) > 0.01
    assert float(kernels.std()) == pytest.approx(0.02, rel=0.05)


def test_stacked_layers_are_ranked_each_by_itself():
    params = stack_blocks(random_params(SMALL))
    # A thousand times as large: ranked together, the first layer would keep all and the others nothing.
    params["blocks"] = jax.tree.map(lambda leaf: leaf * jnp.array([1e3, 1, 1e-3]).reshape(3, *[1] * (leaf.ndim - 1)),
                                    params["blocks"])  # fmt: skip
    layout = sparsejax.stacked("blocks/*")
    tx = sparsejax.one_shot(optax.sgd(0.1), sparsity=0.5, layout=layout)
    state = quick(lambda params: tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)[1])(params)
    masks = dict(named_leaves(sparsejax.get_masks(state)))
    kernels = [f"attention/{part}" for part in ("query", "key", "value", "out")] + ["mlp_in", "mlp_out"]
    assert set(masks) == {f"blocks/{name}/kernel" for name in kernels} | {"head/kernel"}
    for path, mask in masks.items():
        for layer in mask if path.startswith("blocks") else (mask,):
            assert int(layer.sum()) == layer.size / 2, path


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("remat", [False, True])
def test_flops_of_loop_scan_and_remat(scan, remat):
    model = SMALL.clone(scan=scan, remat=remat)
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    counted = flops.layer_flops(lambda params, x: model.apply({"params": params}, x), params, x)
    layers = {f"attention/{part}/kernel": 2 * 5 * 8 * 8 for part in ("query", "key", "value", "out")}
    layers |= {"mlp_in/kernel": 2 * 5 * 8 * 12, "mlp_out/kernel": 2 * 5 * 8 * 12}
    blocks = {f"block_{i}/{path}": count for i in range(3) for path, count in layers.items()}
    if scan:
        blocks = {f"blocks/{path}": 3 * count for path, count in layers.items()}
    rest = {"patch_embed/kernel": 2 * 4 * 48 * 8, "head/kernel": 2 * 8 * 3, "": 3 * 2 * (2 * 5 * 5 * 8)}
    assert counted == blocks | rest


@pytest.mark.parametrize("scan", [False, True])
def test_stochastic_depth_drops_whole_branches_of_samples(scan):
    model = SMALL.clone(depth=2, stochastic_depth=0.5, scan=scan)
    params = random_params(model.clone(scan=False))
    x = jnp.repeat(IMAGES[:1], 64, axis=0)
    train = lambda tree, key: model.apply({"params": tree}, x, train=True, rngs={"dropout": key})
    rows = np.asarray(quick(train)(stack_blocks(params) if scan else params, jax.random.key(0)))

    # The first block is never dropped; each of the last one's branches is 0 or doubled.
    def scaled(attention, mlp):
        block = dict(params["block_1"])
        block["attention"] = block["attention"] | {
            "out": jax.tree.map(lambda a: a * attention, block["attention"]["out"])
        }
        block["mlp_out"] = jax.tree.map(lambda a: a * mlp, block["mlp_out"])
        return params | {"block_1": block}

    plain = quick(model.clone(scan=False).apply)
    cases = [plain({"params": scaled(a, m)}, IMAGES[:1])[0] for a in (0.0, 2.0) for m in (0.0, 2.0)]
    distance = np.abs(rows[:, None] - np.stack(cases)[None]).max(-1)
    assert distance.min(1).max() < 1e-4
    counts = np.bincount(distance.argmin(1), minlength=4)
    assert counts.sum() == 64 and counts.min() >= 5  # 16 are expected of each; below 5 happens once in 10^4

    evaluated = plain({"params": params}, IMAGES[:1])[0]
    assert min(np.abs(evaluated - case).max() for case in cases) > 1e-3


def test_dropout_acts_in_training_alone():
    model = SMALL.clone(dropout=0.3, scan=True)
    params = stack_blocks(random_params(SMALL))

    @quick
    def run(key):
        train = lambda key: model.apply({"params": params}, IMAGES, train=True, rngs={"dropout": key})
        return train(key), train(jax.random.fold_in(key, 1)), model.apply({"params": params}, IMAGES)

    first, second, evaluated = run(jax.random.key(0))
    assert bool((first != second).any())
    exact = network_oracles.vit(as_tensors(unstack_blocks(params)), np.asarray(IMAGES, np.float64), 2, 1e-6)
    np.testing.assert_allclose(evaluated, exact, rtol=1e-4, atol=1e-5)


WRONG = [
    ({"heads": 3}, "heads: 3 do not divide the width 8"),
    ({"patch": 3}, "patch: 3 does not divide the sides of images of 8 x 8"),
    ({"pool": "cls"}, "pool: 'cls' is not one of token, gap"),
    ({"positions": "rope"}, "positions: 'rope' is not one of learned, sincos"),
    ({"activation": "silu"}, "activation: 'silu' is not one of gelu, gelu_tanh, relu"),
    ({"stochastic_depth": 1.0}, r"stochastic_depth: 1.0 is not in \[0, 1\)"),
    ({"dtype": "fp16"}, "dtype: 'fp16' is not float32, bfloat16 or another floating dtype"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_arguments_are_one_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(SMALL.clone(**arguments).init, jax.random.key(0), IMAGES)

"""Pruning at initialisation against NumPy: finite differences, a stable sort, SynFlow in closed form."""

import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax
from sparsejax import saliency
from sparsejax.data import digits
from sparsejax.distributions import erk
from sparsejax.leaves import named_leaves
from sparsejax.models import MLP
from sparsejax.training import ConfigError, resolve
from sparsejax.training.order import epoch_order
from sparsejax.training.trial import prepare

CASES = ("dict", "tuple", "linen")
MATRICES = lambda path, leaf: leaf.ndim == 2


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x_BxHxWxC):
        x_BxHxWxC = nn.Conv(3, (2, 2), padding="VALID")(x_BxHxWxC)
        x_BxHxWxC = jnp.tanh(nn.BatchNorm(use_running_average=True)(x_BxHxWxC))
        return nn.Dense(2)(x_BxHxWxC.mean((1, 2)))


STATS = {"BatchNorm_0": {"mean": np.array([0.1, -0.2, 0.3]), "var": np.array([0.5, 2.0, 1.5])}}


def drawn(rng, *shape):
    return rng.normal(size=shape) / math.sqrt(max(shape[:-1], default=1))


def case(name):
    """(float64 arrays by path, jax params, jax loss, NumPy loss of arrays by path, where)."""
    rng = np.random.default_rng(3)
    if name == "linen":
        arrays = {
            "BatchNorm_0/bias": drawn(rng, 3), "BatchNorm_0/scale": 1 + drawn(rng, 3), "Conv_0/bias": drawn(rng, 3),
            "Conv_0/kernel": drawn(rng, 2, 2, 2, 3), "Dense_0/bias": drawn(rng, 2), "Dense_0/kernel": drawn(rng, 3, 2),
        }  # fmt: skip
        params = nest(arrays)
        stats = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), STATS)

        def apply(params, x):
            return ConvNet().apply({"params": params, "batch_stats": stats}, x)

        def numpy_apply(p, x):
            windows = np.lib.stride_tricks.sliding_window_view(x, (2, 2), axis=(1, 2))
            y = np.einsum("bijchw,hwco->bijo", windows, p["Conv_0/kernel"]) + p["Conv_0/bias"]
            mean, var = STATS["BatchNorm_0"].values()
            y = np.tanh((y - mean) / np.sqrt(var + 1e-5) * p["BatchNorm_0/scale"] + p["BatchNorm_0/bias"])
            return y.mean((1, 2)) @ p["Dense_0/kernel"] + p["Dense_0/bias"]

        return arrays, params, apply, numpy_apply, None, (4, 4, 2)
    sizes = (5, 4, 3, 2)
    weights = [drawn(rng, *pair) for pair in itertools.pairwise(sizes)]
    biases = [drawn(rng, width) for width in sizes[1:]]
    paths = [f"{2 * i}" for i in range(3)] if name == "tuple" else [f"{layer}/kernel" for layer in "abc"]
    others = [f"{2 * i + 1}" for i in range(3)] if name == "tuple" else [f"{layer}/bias" for layer in "abc"]
    arrays = dict(sorted({**dict(zip(paths, weights, strict=True)), **dict(zip(others, biases, strict=True))}.items()))
    params = tuple(jnp.asarray(x, jnp.float32) for x in arrays.values()) if name == "tuple" else nest(arrays)

    def forward(p, x, xp):
        for i, (path, other) in enumerate(zip(paths, others, strict=True)):
            x = x @ p[path] + (p[other] if xp is np else p[other][None])
            x = xp.tanh(x) if i < 2 else x
        return x

    apply = lambda params, x: forward(dict(named_leaves(params)), x, jnp)
    return arrays, params, apply, lambda p, x: forward(p, x, np), MATRICES if name == "tuple" else None, (5,)


def nest(arrays):
    tree = {}
    for path, x in arrays.items():
        layer, leaf = path.split("/")
        tree.setdefault(layer, {})[leaf] = jnp.asarray(x, jnp.float32)
    return tree


def data(shape, number=2):
    rng = np.random.default_rng(8)
    return [(rng.normal(size=(6, *shape)), rng.normal(size=(6, 2))) for _ in range(number)]


def problem(name):
    """What the tests of scores need: the losses of both kinds and the prunable weights as one float64 vector."""
    arrays, params, apply, numpy_apply, where, shape = case(name)
    batches = data(shape)

    def loss(params, x, y, temperature=1.0):
        return jnp.mean((apply(params, x) / temperature - y) ** 2)

    chosen = [path for path, x in arrays.items() if x.ndim > 1]

    def numpy_loss(vector, temperature=1.0):
        filled, at = dict(arrays), 0
        for path in chosen:
            filled[path] = vector[at : at + arrays[path].size].reshape(arrays[path].shape)
            at += arrays[path].size
        return np.mean([np.mean((numpy_apply(filled, x) / temperature - y) ** 2) for x, y in batches])

    vector = np.concatenate([arrays[path].ravel() for path in chosen])
    given = [tuple(jnp.asarray(each, jnp.float32) for each in batch) for batch in batches]
    return params, loss, given, where, vector, numpy_loss


def differences(function, vector, step=1e-5):
    unit = np.eye(len(vector)) * step
    return np.array([(function(vector + e) - function(vector - e)) / (2 * step) for e in unit])


def flat(tree):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize("name", CASES)
def test_snip_is_what_finite_differences_give(name):
    params, loss, batches, where, vector, numpy_loss = problem(name)
    by_connection = differences(lambda c: numpy_loss(c * vector), np.ones_like(vector))
    expected = np.abs(by_connection) / np.abs(by_connection).sum()
    scores = jax.jit(lambda params: saliency.snip(loss, params, batches=batches, where=where))(params)
    np.testing.assert_allclose(flat(scores), expected, rtol=2e-4, atol=1e-7)
    assert [path for path, _ in named_leaves(scores)] == [p for p, x in named_leaves(params) if x.ndim > 1]
    together = [jnp.stack(each) for each in zip(*batches, strict=True)]
    stacked = saliency.snip(loss, params, *together, stacked=True, where=where, normalized=False)
    np.testing.assert_allclose(flat(stacked), np.abs(by_connection), rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_grasp_is_what_an_explicit_hessian_gives(name):
    params, loss, batches, where, vector, numpy_loss = problem(name)
    for temperature in (None, 2.0):
        function = lambda v, t=temperature or 1.0: numpy_loss(v, t)
        gradient = differences(function, vector)
        hessian = differences(lambda v, f=function: differences(f, v, 1e-4), vector, 1e-4)
        np.testing.assert_allclose(hessian, hessian.T, atol=1e-5)
        expected = vector * (hessian @ gradient)
        arguments = {"batches": batches, "where": where, "temperature": temperature}
        scores = jax.jit(lambda params, a=arguments: saliency.grasp(loss, params, **a))(params)
        np.testing.assert_allclose(flat(scores), expected, rtol=1e-3, atol=1e-5)
        assert (expected < 0).any()
    shares = saliency.grasp(loss, params, *batches[0], where=where, normalized=True)
    plain = flat(saliency.grasp(loss, params, *batches[0], where=where))
    np.testing.assert_allclose(flat(shares), plain / np.abs(plain.sum()), rtol=1e-5)


def kept(size, sparsity):
    return size - math.floor(sparsity * size + 1e-6)


def best(scores, count):
    """The `count` largest of several arrays, the earliest first among equal ones."""
    order = np.argsort(-np.concatenate([s.ravel() for s in scores]), kind="stable")[:count]
    chosen = np.zeros(sum(s.size for s in scores), bool)
    chosen[order] = True
    cuts = np.cumsum([s.size for s in scores])[:-1]
    return [mask.reshape(s.shape) for mask, s in zip(np.split(chosen, cuts), scores, strict=True)]


@pytest.mark.parametrize("sparsity", [0.0, 0.37, 0.9, 0.99])
def test_masks_keep_the_best_of_all_layers_or_of_each(sparsity):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-3, 4, shape).astype(np.float32) for shape in ((7, 5), (3, 4, 6), (11, 2))]  # many ties
    tree = {"b": {"kernel": arrays[0], "bias": None}, "c": (arrays[1], None), "d": arrays[2]}
    tree = jax.tree.map(jnp.asarray, tree)
    masks = saliency.masks_from_scores(tree, sparsity)
    for found, expected in zip(jax.tree.leaves(masks), best(arrays, kept(129, sparsity)), strict=True):
        assert found.dtype == bool and (np.asarray(found) == expected).all()
    assert masks["b"]["bias"] is None and masks["c"][1] is None
    masks = jax.jit(lambda t: saliency.masks_from_scores(t, sparsity, distribution=erk))(tree)
    for found, scores, density in zip(
        jax.tree.leaves(masks), arrays, jax.tree.leaves(erk(tree, 1 - sparsity)), strict=True
    ):
        assert (np.asarray(found) == best([scores], kept(scores.size, 1 - density))[0]).all()


def test_ties_at_random_and_what_is_not_active():
    tree = {"kernel": jnp.ones((8, 8)), "other": jnp.ones((8, 8))}
    one, two = (saliency.masks_from_scores(tree, 0.75, ties="random", key=jax.random.key(i)) for i in range(2))
    assert flat(one).sum() == flat(two).sum() == 32 and (flat(one) != flat(two)).any()
    assert saliency.collapsed(saliency.masks_from_scores(tree, 0.5)) == ["other"]
    active = {"kernel": jnp.zeros((8, 8), bool), "other": None}
    assert saliency.collapsed(saliency.masks_from_scores(tree, 0.5, active=active)) == ["kernel"]


def test_masks_follow_patterns():
    scores = {"a": {"kernel": jnp.asarray(np.random.default_rng(1).normal(size=(8, 6)), jnp.float32)}}
    plain = np.asarray(scores["a"]["kernel"])
    masks = saliency.masks_from_scores(scores, pattern=sparsejax.nm(1, 4))["a"]["kernel"]
    expected = plain.reshape(2, 4, 6) == plain.reshape(2, 4, 6).max(1, keepdims=True)
    assert (np.asarray(masks) == expected.reshape(8, 6)).all()
    masks = saliency.masks_from_scores(scores, 0.5, pattern=sparsejax.block((2, 3)))["a"]["kernel"]
    means = plain.reshape(4, 2, 2, 3).mean((1, 3))
    assert (np.asarray(masks)[::2, ::3] == best([means], 4)[0]).all() and int(masks.sum()) == 24
    masks = saliency.masks_from_scores(scores, 0.5, pattern=sparsejax.fan_in())
    assert (np.asarray(masks["a"]["kernel"]).sum(0) == 4).all()
    moved = saliency.shuffled(jax.random.key(0), masks, pattern=sparsejax.fan_in())
    assert (np.asarray(moved["a"]["kernel"]).sum(0) == 4).all() and (flat(moved) != flat(masks)).any()
    skipped = saliency.masks_from_scores(scores, pattern=sparsejax.nm(1, 3, indivisible="skip"))
    assert skipped["a"]["kernel"] is None


def multilayer(seed, sizes):
    rng = np.random.default_rng(seed)
    pairs = zip("abcdef", itertools.pairwise(sizes), strict=False)
    return {n: {"kernel": rng.normal(size=p).astype(np.float32), "bias": drawn(rng, p[1])} for n, p in pairs}


def forward(params, x):
    for i, layer in enumerate(params.values()):
        x = x @ layer["kernel"] + layer["bias"][None]
        x = jax.nn.relu(x) if i + 1 < len(params) else x
    return x


def flow(layers, masks, biases):
    """SynFlow's scores of each layer in float64, in closed form: of absolute weights every ReLU is the identity."""
    weights = [np.abs(layer["kernel"] * mask).astype(np.float64) for layer, mask in zip(layers, masks, strict=True)]
    into, back = [np.ones(weights[0].shape[0])], [np.ones(weights[-1].shape[1])]
    for weight, layer in zip(weights, layers, strict=True):
        into.append(into[-1] @ weight + biases * np.abs(layer["bias"]))
    for weight in reversed(weights):
        back.insert(0, weight @ back[0])
    return [w * np.outer(h, v) for w, h, v in zip(weights, into[:-1], back[1:], strict=True)], into[-1].sum()


@pytest.mark.parametrize("biases", [True, False])
def test_synflow_in_every_round(biases):
    layers, rounds, density = multilayer(5, (12, 10, 8, 3)), 5, 0.05
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), layers)
    x = jax.ShapeDtypeStruct((1, 12), jnp.float32)
    masks = [np.ones(layer["kernel"].shape, bool) for layer in layers.values()]
    total = sum(mask.size for mask in masks)
    scores, summed = flow(layers.values(), masks, biases)
    found = saliency.synflow_scores(forward, params, x, biases=biases)
    np.testing.assert_allclose(flat(found), np.concatenate([s.ravel() for s in scores]), rtol=1e-5)
    if not biases:  # the flow through each layer is the same
        assert [round(float(s.sum() / summed), 6) for s in scores] == [1] * 3
        scaled = saliency.synflow_scores(forward, params, x, biases=False, scale=2.0**-10)
        assert (flat(scaled) * 2.0**20 == flat(found)).all()
    for k in range(1, rounds + 1):  # the first k rounds are those of a target that lies k rounds ahead
        scores, _ = flow(layers.values(), masks, biases)
        masks = best(
            [np.where(m, s, -1) for m, s in zip(masks, scores, strict=True)], kept(total, 1 - density ** (k / rounds))
        )
        sparsity = 1 - density ** (k / rounds)
        got = saliency.synflow(forward, params, x, sparsity=sparsity, iterations=k, biases=biases)
        for mask, expected in zip(jax.tree.leaves(got), masks, strict=True):
            assert (np.asarray(mask) == expected).all(), k


def test_one_round_empties_a_layer_and_a_hundred_do_not():
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), multilayer(1, (10, 200, 200, 3)))
    x = jnp.ones((1, 10))
    once, often = (saliency.synflow(forward, params, x, sparsity=0.995, iterations=n) for n in (1, 100))
    assert saliency.collapsed(once) == ["b/kernel"] and saliency.collapsed(often) == []
    size = sum(mask.size for mask in jax.tree.leaves(once))
    assert flat(once).sum() == flat(often).sum() == kept(size, 0.995)


def test_rounds_by_layer_and_by_a_line():
    params = {"a": {"kernel": jnp.arange(40.0).reshape(5, 8)}, "b": {"kernel": jnp.arange(16.0).reshape(4, 4)}}
    masks = saliency.in_rounds(
        saliency.magnitude,
        params,
        sparsity=0.5,
        iterations=4,
        schedule="linear",
        distribution=sparsejax.distributions.uniform,
    )
    assert flat(masks["a"]).tolist() == [False] * 20 + [True] * 20 and flat(masks["b"]).sum() == 8
    masks = saliency.in_rounds(saliency.magnitude, params, pattern=sparsejax.nm(1, 2, axis=1), iterations=3)
    assert (np.asarray(masks["a"]["kernel"]) == [[False, True] * 4] * 5).all()


def test_what_is_refused_is_said_in_one_line():
    params = {"a": {"kernel": jnp.ones((4, 4))}, "b": {"kernel": jnp.full((4, 4), jnp.nan)}}
    scores = saliency.magnitude(params)
    loss = lambda params, x: params["a"]["kernel"].sum()
    ones = lambda params, x: x @ params["a"]["kernel"] * 1e38 * 1e38
    refused = [
        (lambda: saliency.masks_from_scores(scores, 0.5), "^scores: b/kernel holds NaN or infinity"),
        (lambda: saliency.masks_from_scores(scores), "sparsity is missing"),
        (lambda: saliency.masks_from_scores(scores, 1.0), "sparsity=1.0 must lie in"),
        (lambda: saliency.masks_from_scores(scores, 0.5, ties="random"), "needs key="),
        (lambda: saliency.masks_from_scores(scores, 0.5, ties="first"), "ties='first'"),
        (lambda: saliency.masks_from_scores(scores, 0.5, distribution="local"), "distribution='local'"),
        (lambda: saliency.snip(loss, params, 1, batches=[(1,)]), "either one batch"),
        (lambda: saliency.snip(loss, params, batches=[]), "empty"),
        (lambda: saliency.snip(loss, params, 1, where=sparsejax.only("c/*")), "'c/\\*' matches no leaf"),
        (
            lambda: saliency.synflow(ones, {"a": params["a"]}, jnp.ones((1, 4)), sparsity=0.5),
            "a/kernel holds NaN or inf",
        ),
        (lambda: saliency.in_rounds(saliency.magnitude, params, sparsity=0.5, iterations=0), "iterations=0"),
        (lambda: saliency.in_rounds(saliency.magnitude, params, sparsity=0.5, schedule="cubic"), "schedule='cubic'"),
        (lambda: saliency.best_of(0, jax.random.key(0), params, lambda m: 0.0, sparsity=0.5), "k=0"),
        (lambda: saliency.best_of(1, jax.random.key(0), params, lambda m: jnp.nan, sparsity=0.5), "score: NaN"),
        (lambda: saliency.distribution_of({"a": jnp.zeros((2, 2), bool)}), "masks: a keeps nothing"),
        (lambda: saliency.layer_lottery(params, scores, ["a/*"], drop=2), "drop=2"),
        (lambda: saliency.layer_lottery(params, scores, ["c/*"], drop=1), "blocks: 'c/\\*' matches no leaf"),
        (lambda: saliency.smart_ratio(["a/*"])(params, 0.5), "order: b/kernel is matched by 0 globs"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_static_trains_under_scored_masks_and_under_their_ratios():
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), multilayer(2, (8, 16, 4)))
    loss = lambda params, x, y: jnp.mean((forward(params, x) - y) ** 2)
    x, y = jnp.asarray(np.random.default_rng(0).normal(size=(16, 8)), jnp.float32), jnp.ones((16, 4))
    masks = saliency.masks_from_scores(saliency.snip(loss, params, x, y), 0.8)
    tx = sparsejax.static(optax.adam(0.1), masks=masks)
    state, trained = tx.init(params), params
    for _ in range(2):
        updates, state = tx.update(jax.grad(loss)(trained, x, y), state, trained)
        trained = optax.apply_updates(trained, updates)
    for layer, mask in masks.items():
        kernel = np.asarray(trained[layer]["kernel"])
        assert ((kernel != 0) == np.asarray(mask["kernel"])).all()
    density = sparsejax.density(masks)
    ratio = sparsejax.static(optax.sgd(0.1), sparsity=1 - density, distribution=saliency.distribution_of(masks))
    drawn_masks = sparsejax.get_masks(ratio.init(params))
    moved = saliency.shuffled(jax.random.key(1), masks)
    for other in (drawn_masks, moved):
        assert saliency.ratios(other) == saliency.ratios(masks) and sparsejax.hamming(other, masks) > 0
    assert saliency.ratios(masks)["b"]["kernel"] != saliency.ratios(masks)["a"]["kernel"]
    with pytest.raises(ValueError, match="the masks' density is"):
        saliency.distribution_of(masks)(saliency.magnitude(params), 0.5)


def test_each_stacked_slice_is_shuffled_by_itself():
    masks = {"layers": jnp.arange(60).reshape(3, 4, 5) < 25}
    layout = sparsejax.stacked("layers")
    moved = jax.jit(lambda key: saliency.shuffled(key, masks, layout=layout))(jax.random.key(0))
    assert np.asarray(moved["layers"]).sum((1, 2)).tolist() == [20, 5, 0]


def test_smart_ratio_by_hand():
    shapes = {"c1": (3, 3, 2, 4), "c2": (3, 3, 4, 4), "c3": (3, 3, 4, 8), "head": (8, 10)}
    tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}  # 72, 144, 288, 80
    found = saliency.smart_ratio(["c1", "c2", "c3", "head"])(tree, 0.3)
    budget = 0.3 * 584 - 0.3 * 80
    scale = budget / (12 * 72 + 6 * 144 + 2 * 288)
    np.testing.assert_allclose([found[n] for n in shapes], [12 * scale, 6 * scale, 2 * scale, 0.3])
    found = saliency.smart_ratio(["c*", "head"])(tree, 0.6)  # c1 would be denser than 1
    scale = (0.6 * 584 - 24) / (12 * 72 + 6 * 144 + 2 * 288)
    assert 12 * scale > 1 and found["c1"] == 1 and found["c2"] == 1
    np.testing.assert_allclose(sum(found[n] * sizes[n] for n in sizes), 0.6 * 584)


def test_the_layer_lottery_makes_a_block_the_identity():
    params = {f"block{i}": {"kernel": jnp.full((2, 2), float(s)), "bias": jnp.ones(2)} for i, s in enumerate((3, 1, 2))}
    params["head"] = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    blocks = ["block0/*", "block1/*", "block2/*"]
    masks = saliency.layer_lottery(params, saliency.magnitude(params), blocks, drop=2)
    assert [bool(masks[f"block{i}"]["kernel"].any()) for i in range(3)] == [True, False, False]
    assert bool(masks["head"]["kernel"].all()) and masks["block0"]["bias"] is None
    sparse = sparsejax.apply_masks(params, masks)
    assert flat(sparse["block1"]).sum() == flat(sparse["block2"]).sum() == 0


SMALL = {"model_args": {"features": [24]}, "batch_size": 200, "epochs": 1, "seeds": [0, 3], "sparsity": 0.9}


@pytest.mark.parametrize("method", ["snip", "synflow"])
def test_a_run_starts_with_the_masks_of_its_own_weights_and_first_batch(method):
    args = {"synflow": {"iterations": 4}, "snip": {}}[method]
    trial = prepare(resolve(SMALL | {"method": method, "method_args": args}))
    state, _ = trial.init()
    masks, sets, model = sparsejax.get_masks(state.opt_state), digits(), MLP(10, (24,))
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    apply = lambda params, x: model.apply({"params": params}, x)
    order = np.asarray(epoch_order([0, 3], 0, len(sets.train_y)))
    for i, seed in enumerate([0, 3]):
        params = model.init(jax.random.key(seed), jnp.zeros((1, 64)))["params"]
        index = order[i, :200]
        x, y = trial.task.inputs(jnp.asarray(sets.train_x[index])), jnp.asarray(sets.train_y[index])
        loss = lambda params, x, y: cross_entropy(apply(params, x), y).mean()
        if method == "snip":
            expected = saliency.masks_from_scores(saliency.snip(loss, params, x, y), 0.9)
        else:
            expected = saliency.synflow(apply, params, jnp.ones((1, 64)), sparsity=0.9, iterations=4)
        for layer in params:
            mask = np.asarray(masks[layer]["kernel"][i])
            assert (mask != np.asarray(expected[layer]["kernel"])).mean() < 0.002  # rounding may swap two at the cut
            assert (np.asarray(state.params[layer]["kernel"][i])[~mask] == 0).all()
        assert sum(int(masks[layer]["kernel"][i].sum()) for layer in params) == kept(64 * 24 + 240, 0.9)


@pytest.mark.parametrize(
    ("method", "args", "message"),
    [
        ("snip", {"batches": 0}, "batches=0 must be an integer >= 1"),
        ("snip", {"batches": 99}, "method_args.batches: 99 is more than the 7 batches of an epoch"),
        ("grasp", {"temperature": 0}, "temperature=0 must be a number > 0"),
        ("synflow", {"schedule": "cubic"}, "schedule='cubic'"),
        ("magnitude_at_init", {"distribution": "global", "pattern": "block(2, 2)"}, "ranks single weights"),
        ("magnitude_at_init", {"shuffle": 1}, "shuffle=1: True or False"),
    ],
)
def test_a_config_with_a_wrong_argument(method, args, message):
    with pytest.raises(ConfigError, match=message):
        prepare(resolve(SMALL | {"method": method, "method_args": args}))


def test_shuffled_masks_by_config_keep_the_densities():
    plain, moved = (
        sparsejax.get_masks(
            prepare(resolve(SMALL | {"method": "magnitude_at_init", "method_args": {"shuffle": s}})).init()[0].opt_state
        )
        for s in (False, True)
    )
    assert saliency.ratios(plain) == saliency.ratios(moved) and sparsejax.hamming(plain, moved) > 0

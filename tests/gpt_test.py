"""GPT: published sizes, the mask of attention, options that must not change what is computed, bad attributes."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import KEY, drawn, logits_of, quick, shapes, texts

from sparsejax import flops
from sparsejax.leaves import checked_axes, named_leaves, select_leaves
from sparsejax.models import MODELS
from sparsejax.models.attention import dense, named_attention, over_cache, rotary
from sparsejax.models.gpt import GPT
from sparsejax.models.scanned import stack_blocks, unstack_blocks

TINY = dict(vocab=11, layers=2, width=16, heads=4, context=8)


def size(params):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


PUBLISHED = {"gpt2": 124_439_808, "gpt2_medium": 354_823_168, "gpt_char": 10_745_088, "gpt_toy": 804_096}
# In millions, as nanoGPT prints the sizes of its character models: without positions.
PRINTED = {"gpt_char": 10.65, "gpt_toy": 0.80}


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts(name, scan):
    given = {} if name.startswith("gpt2") else {"vocab": 65}
    params, logits = shapes(MODELS[name](scan=scan, **given))
    assert size(params) == PUBLISHED[name] and logits.dtype == jnp.float32
    if name in PRINTED:
        assert round((size(params) - size(params["position_embed"])) / 1e6, 2) == PRINTED[name]


@pytest.mark.parametrize("options", [{}, {"scan": True}, {"remat": True}, {"scan": True, "remat": True}])
def test_dense_flops_of_gpt2_are_the_published_ones(options):
    # nanoGPT's table for 1024 tokens: 12 blocks of (kqv 3.62, scores and reduction 1.61 each, proj 1.21, mlp 9.66 G),
    # then 79.0 G for the logits; 291,648,307,200 in all.
    model = MODELS["gpt2"](**options)
    params, _ = shapes(model)
    sequence = jax.ShapeDtypeStruct((1, 1024), jnp.int32)
    layers = flops.layer_flops(lambda params, x: model.apply({"params": params}, x), params, sequence)
    assert sum(layers.values()) == 291_648_307_200
    assert layers[""] == 12 * 2 * 1_610_612_736 and layers["token_embed/embedding"] == 79_047_426_048
    taken = {path: leaf for path, leaf in named_leaves(select_leaves(params)) if leaf is not None}
    assert {path: layers[path] for path in taken} == {p: 2 * 1024 * math.prod(x.shape) for p, x in taken.items()}


def test_flops_with_grouped_heads_rotary_positions_and_an_untied_head():
    model = GPT(**TINY, kv_heads=2, positions="rotary", tied=False, vocab_multiple=4)
    params, _ = shapes(model)
    layers = flops.layer_flops(
        lambda p, x: model.apply({"params": p}, x), params, jax.ShapeDtypeStruct((1, 8), "int32")
    )
    assert layers["block_0/attention/query/kernel"] == 2 * 8 * 16 * 16
    assert layers["block_0/attention/key/kernel"] == layers["block_1/attention/value/kernel"] == 2 * 8 * 16 * 8
    assert layers[""] == 2 * 2 * (2 * 8 * 8 * 16)  # each of two layers: scores and sums over 8 keys, 4 heads of 4
    assert layers["unembed/kernel"] == 2 * 8 * 16 * 12
    assert sum(layers.values()) == 2 * 8 * (2 * (2 * 256 + 2 * 128 + 2 * 1024) + 192) + layers[""]


@pytest.mark.parametrize("scan", [False, True])
def test_what_is_sparsified_and_along_which_axes(scan):
    model = GPT(**TINY, scan=scan, tied=False)
    params, _ = shapes(model)
    taken = {path: leaf for path, leaf in named_leaves(select_leaves(params)) if leaf is not None}
    kernels = [f"attention/{name}" for name in ("query", "key", "value", "out")] + ["mlp/up", "mlp/down"]
    blocks = ["blocks"] if scan else ["block_0", "block_1"]
    assert set(taken) == {f"{block}/{kernel}/kernel" for block in blocks for kernel in kernels}
    for path, leaf in taken.items():
        axes = checked_axes(model.layout, path, leaf)
        assert axes == (((0,), (1,), (2,)) if scan else ((), (0,), (1,)))


def test_padded_vocabulary():
    params, logits = shapes(MODELS["gpt2"](vocab_multiple=64))
    assert params["token_embed"]["embedding"].shape == (50_304, 768) and logits.shape == (1, 1, 50_257)


def test_initialisation_is_gpt2s():
    model = GPT(vocab=100, layers=8, width=64, heads=4, context=64, scan=True)
    params = quick(model.init)(KEY, jnp.zeros((1, 1), jnp.int32))["params"]
    stds = {
        path: np.std(leaf, axis=(-2, -1))
        for path, leaf in named_leaves(params)
        if leaf.ndim >= 2 and "norm" not in path
    }
    for path, std in stds.items():
        expected = 0.0 if "bias" in path else 0.02 / 4 if "/out/" in path or "/down/" in path else 0.02
        np.testing.assert_allclose(std, expected, rtol=0.06, err_msg=path)
    query = params["blocks"]["attention"]["query"]["kernel"]
    assert len(np.unique(np.asarray(query)[:, 0, 0])) == 8  # each layer is drawn by itself


def test_causality():
    model = GPT(**TINY)
    params, before = drawn(model), texts()
    for place in (0, 3, 7):
        after = before.at[0, place].set((before[0, place] + 1) % 11)
        first, second = logits_of(model, params, before), logits_of(model, params, after)
        np.testing.assert_array_equal(first[1], second[1])
        np.testing.assert_array_equal(first[0, :place], second[0, :place])
        assert (np.abs(first[0, place:] - second[0, place:]).max(-1) > 1e-4).all()


def test_scan_and_remat_compute_what_the_loop_does():
    options = dict(TINY, kv_heads=2, positions="rotary")
    loop, scanned = GPT(**options), GPT(**options, scan=True, remat=True)
    params, x = drawn(loop), texts()
    assert jax.tree.map(jnp.shape, stack_blocks(params)) == jax.tree.map(jnp.shape, shapes(scanned)[0])
    loss = lambda model, params: (jax.nn.log_softmax(model.apply({"params": params}, x)) ** 2).mean()
    value, grads = quick(jax.value_and_grad(partial(loss, loop)))(params)
    other, other_grads = quick(jax.value_and_grad(partial(loss, scanned)))(stack_blocks(params))
    np.testing.assert_allclose(value, other, rtol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), grads, unstack_blocks(other_grads))


def test_stacked_blocks_come_back():
    params = drawn(GPT(**TINY))
    assert sorted(stack_blocks(params)) == ["blocks", "final_norm", "position_embed", "token_embed"]
    jax.tree.map(np.testing.assert_array_equal, unstack_blocks(stack_blocks(params)), params)
    masks = {"block_0": {"a": jnp.ones(2, bool), "b": None}, "block_1": {"a": jnp.zeros(2, bool), "b": None}}
    assert stack_blocks(masks)["blocks"]["a"].tolist() == [[True, True], [False, False]]
    with pytest.raises(ValueError, match=r"blocks \[0, 2\] are not"):
        stack_blocks({"block_0": {}, "block_2": {}})
    with pytest.raises(ValueError, match="no 'blocks' among token_embed"):
        unstack_blocks({"token_embed": {}})


def test_grouped_query_heads_equal_repeated_heads():
    grouped, full = GPT(**TINY, kv_heads=2), GPT(**TINY)
    params, x = drawn(grouped), texts()
    wide = jax.tree.map(lambda leaf: leaf, params)
    for layer in range(2):
        for name in ("key", "value"):
            heads = lambda leaf: jnp.repeat(leaf.reshape(*leaf.shape[:-1], 2, 4), 2, axis=-2).reshape(
                *leaf.shape[:-1], 16
            )
            half = wide[f"block_{layer}"]["attention"]
            half[name] = jax.tree.map(heads, half[name])
    np.testing.assert_allclose(logits_of(grouped, params, x), logits_of(full, wide, x), atol=1e-5)


def attention_by_hand(q, k, v, offset=0):
    """Causal attention, query by query, in float64."""
    out = np.zeros(q.shape)
    group = q.shape[2] // k.shape[2]
    for b, i, h in np.ndindex(q.shape[:3]):
        seen = min(i + offset + 1, k.shape[1])
        scores = k[b, :seen, h // group].astype(np.float64) @ q[b, i, h] / np.sqrt(q.shape[3])
        weights = np.exp(scores - scores.max())
        out[b, i, h] = weights @ v[b, :seen, h // group] / weights.sum()
    return out


def test_dense_attention():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, n, h, 4)).astype(np.float32) for n, h in ((3, 4), (7, 2), (7, 2)))
    attend = quick(dense, static_argnames="drop")
    np.testing.assert_allclose(attend(q, k, v, offset=2), attention_by_hand(q, k, v, 2), atol=1e-5)
    np.testing.assert_allclose(attend(q, k[:, :3], v[:, :3]), attention_by_hand(q, k[:, :3], v[:, :3]), atol=1e-5)
    dropped = attend(q, k, v, offset=2, drop=lambda weights: weights * 0)
    assert not np.asarray(dropped).any()
    # A function that knows nothing of offsets, over a cache: the same rows.
    whole = lambda q, k, v: dense(q, k, v)
    cached = quick(partial(over_cache, whole))(q, k, v, 4)
    np.testing.assert_allclose(cached, attention_by_hand(q, k, v, 4), atol=1e-5)
    assert named_attention("dense") is dense and named_attention(whole) is whole


def test_any_attention_function_takes_the_place_of_dense():
    peer = lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True)
    options = dict(TINY, kv_heads=2)
    params, x = drawn(GPT(**options)), texts()
    expected = logits_of(GPT(**options), params, x)
    np.testing.assert_allclose(logits_of(GPT(**options, attention=peer), params, x), expected, atol=1e-5)
    blind = logits_of(GPT(**options, attention=lambda q, k, v: jnp.repeat(v, 2, axis=2)), params, x)
    assert np.abs(blind - expected).max() > 1e-2


def test_rotary_turns_complex_numbers_and_sees_relative_positions_alone():
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 8)).astype(np.float32)
    angles = np.arange(2, 7)[:, None] / 10_000 ** (np.arange(4) / 4)
    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angles)[None, :, None]
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(rotary(x, offset=2), expected, atol=1e-5)
    scores = lambda offset: jnp.einsum("blhd,bmhd->bhlm", rotary(x, offset=offset), rotary(x[::-1], offset=offset))
    np.testing.assert_allclose(scores(0), scores(29), atol=1e-4)
    assert np.abs(scores(0) - jnp.einsum("blhd,bmhd->bhlm", x, x[::-1])).max() > 0.1


def dots(jaxpr):
    """Operand and result dtypes of every dot_general, in inner jaxprs too."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield tuple(var.aval.dtype.name for var in (*eqn.invars, *eqn.outvars))
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from dots(inner)


@pytest.mark.parametrize("scan", [False, True])
def test_bfloat16_multiplies_in_bfloat16_alone(scan):
    options = dict(TINY, scan=scan, positions="rotary", dtype="bfloat16")
    params, logits = shapes(GPT(**options), length=8)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"} and logits.dtype == jnp.float32
    apply = lambda params, x: GPT(**options).apply({"params": params}, x)
    found = list(dots(jax.make_jaxpr(apply)(params, jax.ShapeDtypeStruct((1, 8), jnp.int32)).jaxpr))
    assert len(found) == (8 if scan else 16) + 1
    assert {operand for *operands, _ in found for operand in operands} == {"bfloat16"}
    assert sum(result == "float32" for *_, result in found) == (1 if scan else 2) + 1  # scores, logits


def test_bfloat16_is_near_float32():
    params, x = drawn(GPT(**TINY)), texts()
    exact, rounded = logits_of(GPT(**TINY), params, x), logits_of(GPT(**TINY, dtype=jnp.bfloat16), params, x)
    assert 0 < np.abs(exact - rounded).max() < 0.05 * np.abs(exact).max()


def test_dropout():
    model = GPT(**TINY, dropout=0.5, scan=True)
    params, x = stack_blocks(drawn(GPT(**TINY))), texts()
    run = quick(lambda seed: model.apply({"params": params}, x, train=True, rngs={"dropout": jax.random.key(seed)}))
    assert np.abs(run(0) - run(1)).max() > 1e-2
    np.testing.assert_array_equal(run(0), run(0))
    np.testing.assert_allclose(logits_of(model, params, x), logits_of(GPT(**TINY), drawn(GPT(**TINY)), x), atol=1e-5)


WRONG = {
    "vocab: 0 is not an integer >= 1": dict(vocab=0),
    "layers: 2.0 is not an integer >= 1": dict(layers=2.0),
    "context: True is not": dict(context=True),
    "heads: 5 does not divide width=16": dict(heads=5),
    "kv_heads: 3 does not divide heads=4": dict(kv_heads=3),
    "kv_heads: 0 is not": dict(kv_heads=0),
    "positions: unknown 'sincos'; one of learned, rotary": dict(positions="sincos"),
    "positions: 'rotary' needs an even width of a head, not 1": dict(positions="rotary", heads=16),
    "activation: unknown 'swish'; one of gelu, gelu_new, relu, silu": dict(activation="swish"),
    "attention: unknown 'flash'; one of dense, or a function": dict(attention="flash"),
    "attention: unknown 3; one of": dict(attention=3),
    r"dropout: 1.0 is not a number in \[0, 1\)": dict(dropout=1.0),
    "dropout: 'a' is not a number": dict(dropout="a"),
    "norm_epsilon: -1.0 is not a number": dict(norm_epsilon=-1.0),
    "scan: 'no' is not true or false": dict(scan="no"),
    "dtype: unknown 'bf16'; one of float32, bfloat16, float16": dict(dtype="bf16"),
    "dtype: unknown .*int32": dict(dtype=jnp.int32),
    "dtype: unknown 3;": dict(dtype=3),
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_attributes_are_one_line(words):
    with pytest.raises(ValueError, match=f"^{words}") as caught:
        GPT(**(TINY | WRONG[words]))
    assert "\n" not in str(caught.value)


def test_sequences_longer_than_the_context():
    with pytest.raises(ValueError, match="tokens: a sequence of 9 is longer than context=8"):
        shapes(GPT(**TINY), length=9)


def test_every_model_says_what_it_is():
    assert list(MODELS) == sorted(MODELS)
    for name, model in MODELS.items():
        first = model.__doc__.splitlines()[0]
        assert len(first) > 20 and first.endswith("."), name

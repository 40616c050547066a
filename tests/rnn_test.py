"""Recurrent language models: sizes, FLOPs, and the cells against the gates written out in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import drawn, logits_of, quick, shapes, texts

from sparsejax import flops
from sparsejax.leaves import named_leaves, select_leaves
from sparsejax.models import MODELS
from sparsejax.models.rnn import RNN

TINY = dict(vocab=7, embed=4, hidden=6, readout=(5,))
GATES = {"gru": ("r", "z", "n"), "lstm": ("i", "f", "g", "o")}


@pytest.mark.parametrize(("name", "biases"), [("gru", 3 + 1), ("lstm", 4)])
def test_sizes_flops_and_what_is_sparsified(name, biases):
    model = MODELS[name](vocab=256)
    params, logits = shapes(model, 16)
    gates = GATES[name]
    recurrent = {f"{name}_0/h{gate}/kernel": 512 * 512 for gate in gates}
    kernels = recurrent | {f"{name}_0/i{gate}/kernel": 128 * 512 for gate in gates}
    kernels |= {"readout_0/kernel": 512 * 256, "readout_1/kernel": 256 * 128}
    total = sum(kernels.values()) + biases * 512 + 256 + 128 + 256 * 128
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == total
    assert {path for path, leaf in named_leaves(select_leaves(params)) if leaf is not None} == set(kernels)
    assert logits.shape == (1, 16, 256) and logits.dtype == jnp.float32
    sequence = jax.ShapeDtypeStruct((1, 16), jnp.int32)
    layers = flops.layer_flops(lambda params, x: model.apply({"params": params}, x), params, sequence)
    assert layers == {path: 2 * 16 * size for path, size in (kernels | {"embed/embedding": 256 * 128}).items()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_hand(cell, params, tokens, layers):
    """Logits of the tokens of one text, in float64, from the gates' equations."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    linear = lambda layer, x: x @ layer["kernel"] + layer.get("bias", 0)
    xs = p["embed"]["embedding"][tokens]
    for layer in range(layers):
        gates, h, c, out = p[f"{cell}_{layer}"], np.zeros(6), np.zeros(6), []
        for x in xs:
            both = {gate: (linear(gates[f"i{gate}"], x), linear(gates[f"h{gate}"], h)) for gate in GATES[cell]}
            if cell == "gru":
                r, z = sigmoid(sum(both["r"])), sigmoid(sum(both["z"]))
                h = (1 - z) * np.tanh(both["n"][0] + r * both["n"][1]) + z * h
            else:
                c = sigmoid(sum(both["f"])) * c + sigmoid(sum(both["i"])) * np.tanh(sum(both["g"]))
                h = sigmoid(sum(both["o"])) * np.tanh(c)
            out.append(h)
        xs = np.array(out)
    return linear(p["readout_1"], np.maximum(linear(p["readout_0"], xs), 0)) @ p["embed"]["embedding"].T


@pytest.mark.parametrize(("cell", "layers"), [("gru", 2), ("lstm", 1)])
def test_logits_follow_from_the_gates(cell, layers):
    model = RNN(**TINY, cell=cell, layers=layers)
    params, tokens = drawn(model), texts(length=9, vocab=7)
    logits = logits_of(model, params, tokens)
    for row, text in zip(np.asarray(logits), np.asarray(tokens), strict=True):
        np.testing.assert_allclose(row, by_hand(cell, params, text, layers), atol=1e-4)


def test_bfloat16_is_near_float32():
    model, tokens = RNN(**TINY), texts(length=9, vocab=7)
    params = drawn(model)
    exact, rounded = logits_of(model, params, tokens), logits_of(model.clone(dtype="bfloat16"), params, tokens)
    assert rounded.dtype == jnp.float32 and 0 < np.abs(exact - rounded).max() < 0.05 * np.abs(exact).max()


def test_lists_from_configs_make_the_same_module():
    listed, model = RNN(**(TINY | {"readout": [5]})), RNN(**TINY)
    assert listed == model and hash(listed) == hash(model)


def test_dropout_is_for_training():
    model, tokens = RNN(**TINY, dropout=0.5), texts(length=9, vocab=7)
    params = drawn(model)
    train = quick(lambda key: model.apply({"params": params}, tokens, train=True, rngs={"dropout": key}))
    assert np.abs(train(jax.random.key(0)) - train(jax.random.key(1))).max() > 1e-3
    np.testing.assert_array_equal(logits_of(model, params, tokens), logits_of(RNN(**TINY), params, tokens))


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("cell: unknown 'rnn'; one of gru, lstm", dict(cell="rnn")),
        ("hidden: 0 is not an integer >= 1", dict(hidden=0)),
        (r"dropout: -0.1 is not a number in \[0, 1\)", dict(dropout=-0.1)),
        (r"readout: \[5, 0\] is not a list of integers >= 1", dict(readout=[5, 0])),
        ("readout: 5 is not a list", dict(readout=5)),
        ("dtype: unknown 'half'", dict(dtype="half")),
    ],
)
def test_wrong_attributes_are_one_line(words, options):
    with pytest.raises(ValueError, match=f"^{words}"):
        RNN(**(TINY | options))

"""Sparse methods on language models: three AdamW steps under jit leave exact zeros and exactly the promised counts."""

from functools import partial

import jax
import numpy as np
import optax
import pytest
from tiny_models import KEY, drawn, quick, texts

import sparsejax
from sparsejax.leaves import checked_axes, named_leaves
from sparsejax.models.gpt import GPT
from sparsejax.models.rnn import RNN

TINY = dict(vocab=11, width=16, heads=4, context=8)
MODELS = {
    "loop": GPT(**TINY, layers=1, dropout=0.1),
    "scan": GPT(**TINY, layers=2, scan=True, kv_heads=2, dropout=0.1),
    "gru": RNN(vocab=11, embed=4, hidden=6, readout=(5,)),
}
SPARSITY = 0.7  # divides no leaf evenly
METHODS = {
    "static": partial(sparsejax.static, distribution=sparsejax.distributions.uniform),
    "gmp": partial(sparsejax.gmp, update_every=1, update_end=2),
    "rigl": partial(sparsejax.rigl, update_every=1, distribution=sparsejax.distributions.uniform),
}
KERNELS = {"loop": 6, "scan": 6, "gru": 8}


@partial(quick, static_argnums=0)
def loss_and_grads(model, params, tokens, key):
    """Compiled once for each model, whatever the method."""

    def loss_of(params):
        logits = model.apply({"params": params}, tokens[:, :-1], train=True, rngs={"dropout": key})
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    return jax.value_and_grad(loss_of)(params)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_three_steps(name, method):
    model, tokens = MODELS[name], texts(length=9)
    layout = getattr(model, "layout", None)
    tx = METHODS[method](optax.adamw(1e-2), sparsity=SPARSITY, layout=layout)

    @quick
    def update(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = start = drawn(model)
    state, losses = quick(tx.init)(params), []
    first = sparsejax.get_masks(state)
    for key in jax.random.split(KEY, 3):
        loss, grads = loss_and_grads(model, params, tokens, key)
        params, state = update(grads, state, params)
        losses.append(loss)
    masks = sparsejax.get_masks(state)
    assert np.isfinite(losses).all()
    leaves, given = dict(named_leaves(params)), dict(named_leaves(start))
    found = {path: mask for path, mask in named_leaves(masks) if mask is not None}
    assert len(found) == KERNELS[name] and all(path.endswith("kernel") for path in found)
    for path, mask in found.items():
        mask, leaf = np.asarray(mask), np.asarray(leaves[path])
        assert (leaf[~mask] == 0).all() and (leaf[mask] != 0).any()
        stacked = checked_axes(layout, path, leaf).stacked
        assert stacked == ((0,) if name == "scan" else ())
        for layer in mask if stacked else [mask]:
            assert layer.sum() == layer.size - (layer.size * 7) // 10, path
    for path, leaf in leaves.items():
        assert (leaf != given[path]).any(), path  # everything learns, dense leaves too
    moved = [bool((mask != dict(named_leaves(first))[path]).any()) for path, mask in found.items()]
    assert any(moved) == (method != "static")

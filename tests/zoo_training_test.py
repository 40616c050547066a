"""Every model x {static, GMP, RigL}: three AdamW steps under jit leave exact zeros and exactly the promised counts."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_models import KEY, filled, quick, texts

import sparsejax
from sparsejax.leaves import checked_axes, named_leaves
from sparsejax.models import MODELS, lenet, mobilenet
from sparsejax.models.gpt import GPT
from sparsejax.models.mlp import MLP, set_mlp
from sparsejax.models.resnet import ResNet
from sparsejax.models.rnn import RNN
from sparsejax.models.vgg import VGG
from sparsejax.models.vit import ViT
from sparsejax.models.wide_resnet import wrn
from sparsejax.training.config import resolve
from sparsejax.training.model import layout_of, trained
from sparsejax.training.trial import prepare

GPT_TINY = dict(vocab=11, width=16, heads=4, context=8)
VIT_TINY = dict(classes=3, patch=4, width=8, heads=2)
ZOO = {  # family -> a tiny model of it, and the side of its images; 0: it reads text
    "mlp": (MLP(classes=3, features=(7, 5)), 4),
    "set_mlp": (set_mlp(classes=3, features=(6, 5)), 4),
    "lenet5": (lenet.LeNet5(classes=3, channels=(2, 3), features=(5, 4)), 16),
    "resnet_cifar": (ResNet(3, (1, 1), 4), 8),
    "resnet_imagenet": (ResNet(3, (1,), 2, bottleneck=True, stem="imagenet"), 20),
    "wrn": (wrn(3, depth=10, width=1), 8),
    "vgg": (VGG(3, (1, 1, 1), 3), 8),
    "mobilenet": (MODELS["mobilenet_v1"](classes=3, width=0.07), 16),
    "vit": (ViT(**VIT_TINY, depth=1, dropout=0.1, stochastic_depth=0.1), 8),
    "vit_scanned": (ViT(**VIT_TINY, depth=2, scan=True), 8),
    "gpt": (GPT(**GPT_TINY, layers=1, dropout=0.1), 0),
    "gpt_scanned": (GPT(**GPT_TINY, layers=2, scan=True, kv_heads=2, dropout=0.1), 0),
    "gru": (RNN(vocab=11, embed=4, hidden=6, readout=(5,)), 0),
    "lstm": (RNN(vocab=11, embed=4, hidden=6, readout=(5,), cell="lstm"), 0),
}
SPARSITY = 0.7  # divides no leaf evenly
METHODS = {
    "static": partial(sparsejax.static, distribution=sparsejax.distributions.uniform),
    "gmp": partial(sparsejax.gmp, update_every=1, update_end=2),
    "rigl": partial(sparsejax.rigl, update_every=1, distribution=sparsejax.distributions.uniform),
}


def batch_of(side):
    """(x, y): images with their classes, or texts with what comes next."""
    if not side:
        tokens = texts(length=9)
        return tokens[:, :-1], tokens[:, 1:]
    x = np.random.default_rng(0).normal(size=(4, side, side, 3))
    return jnp.asarray(x, jnp.float32), jnp.asarray([0, 1, 2, 0])


def drawn(model, x):
    """(params, model state), `filled`."""
    state = dict(filled(jax.eval_shape(model.init, KEY, x), spread=0.2))
    return state.pop("params"), state


@partial(quick, static_argnums=0)
def loss_and_grads(model, params, state, x, y, key):
    """((loss, new state), gradients); compiled once for each model, whatever the method."""

    def loss_of(params):
        logits, new = trained(model, params, state, x, key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new

    return jax.value_and_grad(loss_of, has_aux=True)(params)


def three_steps(model, tx, x, y):
    """(params, optimizer state, params at the start, masks at the start, losses)"""

    @quick
    def update(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    (params, model_state), losses = drawn(model, x), []
    start, state = params, quick(tx.init)(params)
    first = sparsejax.get_masks(state)
    for key in jax.random.split(KEY, 3):
        (loss, model_state), grads = loss_and_grads(model, params, model_state, x, y, key)
        params, state = update(grads, state, params)
        losses.append(loss)
    return params, state, start, first, losses


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ZOO)
def test_three_steps(name, method, monkeypatch):
    monkeypatch.setattr(mobilenet, "_BLOCKS", mobilenet._BLOCKS[:2])  # 13 take long to compile
    model, side = ZOO[name]
    layout = layout_of(model)
    tx = METHODS[method](optax.adamw(1e-2), sparsity=SPARSITY, layout=layout)
    params, state, start, first, losses = three_steps(model, tx, *batch_of(side))
    assert np.isfinite(losses).all()
    leaves, given = dict(named_leaves(params)), dict(named_leaves(start))
    found = {path: np.asarray(mask) for path, mask in named_leaves(sparsejax.get_masks(state)) if mask is not None}
    named = [path for path in leaves if path.endswith("/kernel") and "embed" not in path]
    assert sorted(found) == sorted(named)
    for path, mask in found.items():
        leaf = np.asarray(leaves[path])
        assert (leaf[~mask] == 0).all() and (leaf[mask] != 0).any(), path
        stacked = checked_axes(layout, path, leaf).stacked
        assert stacked == ((0,) if "scan" in name and path.startswith("blocks") else ()), path
        for layer in mask if stacked else [mask]:
            assert layer.sum() == layer.size - layer.size * 7 // 10, path
    for path, leaf in leaves.items():
        assert (leaf != given[path]).any(), path  # everything learns, dense leaves too
    before = {path: np.asarray(mask) for path, mask in named_leaves(first) if mask is not None}
    assert any((mask != before[path]).any() for path, mask in found.items()) == (method != "static")


def test_layers_that_a_config_stacks_are_ranked_one_by_one():
    """The config knows no layout: it comes with the model."""
    config = {"dataset": "digits", "model": "vit", "model_args": {"width": 8, "depth": 3, "heads": 2, "patch": 4}}
    config["model_args"]["scan"] = True
    state, _ = prepare(resolve(config | {"method": "static", "sparsity": SPARSITY, "init": "density"})).init()
    mask = np.asarray(sparsejax.get_masks(state.opt_state)["blocks"]["attention"]["query"]["kernel"])
    assert mask.shape == (1, 3, 8, 8)
    kept = mask.sum((-2, -1))
    assert (kept == kept[0, 0]).all() and (mask[0, 0] != mask[0, 1]).any()


def test_the_zoo_is_all_there():
    """Every name of a config makes a module of a class that is trained above."""
    kinds = {
        name: "vocab" if "vocab" in inspect.signature(make).parameters else "classes" for name, make in MODELS.items()
    }
    trained_here = {type(model) for model, _ in ZOO.values()}
    for name, kind in kinds.items():
        assert trained_here & set(type(MODELS[name](**{kind: 7})).__mro__), name

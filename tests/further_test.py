"""Gradients of further examples in the trainer: of which examples they are, for every seed its own, by config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from small_models import colours

from sparsejax.training import resolve, train
from sparsejax.training.further import make_further
from sparsejax.training.methods import MANY_GRADIENTS, METHODS
from sparsejax.training.model import evaluated, make_model
from sparsejax.training.tasks import make_task

MLP = {"model": "mlp", "model_args": {"features": [5]}, "dataset": "colours", "batch_size": 8}


@pytest.fixture(scope="module", autouse=True)
def installed():
    with small_models.installed():
        yield


def test_which_examples():
    """In memory: one of the order's examples, another for other i, seeds and steps; streamed: the batch's, in turn."""
    config, data = resolve(MLP), colours()
    model = make_model(config, data)
    task = make_task(config, data, model)
    params = model.init(jax.random.key(0), jnp.zeros((1, 6, 6, 3)))["params"]
    x, y = jnp.asarray(data.train_x), jnp.asarray(data.train_y)

    def alone(x, y):
        loss = lambda params: task.loss(evaluated(model, params, {}, task.inputs(x[None])), y[None])
        return jax.tree.leaves(jax.grad(loss)(params))[1].ravel()

    every = np.asarray(jax.jit(jax.vmap(alone))(x, y))
    further = make_further(model, task, lambda params: params)

    @jax.jit
    def many(key, batch_x, batch_y, arrays, order):
        grads_fn = further({}, key, batch_x, batch_y, arrays, order)
        return jax.lax.map(lambda i: jax.tree.leaves(grads_fn(params, i))[1].ravel(), jnp.arange(24))

    def examples_of(grads):
        """The examples whose gradients these are; colours that are alike share one."""
        near = np.abs(np.asarray(grads)[:, None] - every[None]).max(-1)
        assert (near.min(1) < 1e-5).all()
        return near.argmin(1)

    order = jnp.arange(10, 30)
    first = examples_of(many(jax.random.key(1), x[:8], y[:8], (x, y), order))
    second = examples_of(many(jax.random.key(2), x[:8], y[:8], (x, y), order))
    alike = {int(examples_of(every[[i]])[0]) for i in range(10, 30)}
    assert set(first.tolist()) <= alike and len(set(first.tolist())) > 5 and (first != second).any()
    in_turn = np.asarray(many(jax.random.key(1), x[:8], y[:8], (), ()))
    np.testing.assert_allclose(in_turn, every[np.arange(24) % 8], atol=1e-6)


def test_obert_by_config(tmp_path):
    """Two seeds side by side, another mask each, exactly sparse; a second run of it gives the same bits."""
    args = {"update_every": 4, "update_end": 12, "gradients": 6, "block_size": 8, "damp": 1e-4}
    config = MLP | {"method": "obert", "sparsity": 0.75, "seeds": 2, "epochs": 3, "method_args": args}
    result = train(config, tmp_path / "run")
    assert all(abs(kept - result["weights"] / 4) < 1 for kept in result["weights_kept"])
    again = train(config, tmp_path / "again")
    assert again["loss"] == result["loss"] and again["loss"][0] != again["loss"][1]
    assert set(METHODS) >= MANY_GRADIENTS

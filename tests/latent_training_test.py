"""Reparametrized methods by config: what they take, and runs that start from another run's params."""

import jax
import numpy as np
import pytest
import small_models
from small_models import IMAGES

from sparsejax.training import ConfigError, resolve, train
from sparsejax.training.methods import LATENT, make_transform
from sparsejax.training.trained import load_trained
from sparsejax.training.trial import prepare

SOURCE = IMAGES | {"method": "dense", "seeds": [3, 5], "epochs": 1}


@pytest.fixture(scope="module", autouse=True)
def installed():
    with small_models.installed():
        yield


@pytest.fixture(scope="module")
def source(installed, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("source") / "run"
    train(SOURCE, workdir)
    return workdir


def test_a_sparsity_that_nobody_reads():
    """Methods that find their own take none, and say so; a config that leaves it out is fine."""
    for method in ("str", "scl"):
        assert resolve({"method": method})["sparsity"] == resolve({"method": method, "sparsity": 0})["sparsity"] == 0
        with pytest.raises(ConfigError) as error:
            resolve({"method": method, "sparsity": 0.9})
        assert str(error.value) == f"sparsity: 0.9 with method {method!r}, which finds its own; set sparsity to 0"
    assert resolve({"method": "edge_popup"})["sparsity"] == 0.9
    with pytest.raises(ConfigError, match="init: 'density' with method 'edge_popup'"):
        resolve({"method": "edge_popup", "init": "density"})


@pytest.mark.parametrize("method", LATENT)
def test_the_length_of_the_run_is_known(method):
    """`total_steps` is the run's own where the config does not give another; wrong values name the method."""
    config = resolve({"method": method, "sparsity": 0})
    shapes = {"kernel": jax.ShapeDtypeStruct((4, 4), np.float32)}
    make = lambda config, steps: make_transform(config, steps, sparsity=0.5, seed=1)
    jax.eval_shape(make(config, 7).init, shapes)
    if method in ("spartan", "jackpots"):
        with pytest.raises(ConfigError, match=f"method '{method}': total_steps=0 must be an integer of at least 1"):
            make(config, 0)
        make(resolve(config | {"method_args": {"total_steps": 9}}), 0)


def test_a_run_that_starts_from_another(source):
    """Each seed has its source's params and statistics, bit by bit, where they are not masked."""
    config = IMAGES | {"method": "static", "sparsity": 0.5, "seeds": 3, "epochs": 1, "init_from": str(source)}
    state = prepare(resolve(config)).init()[0]
    found = load_trained(source)
    pairs = zip(
        jax.tree.leaves((state.params, state.model_state)),
        jax.tree.leaves((found.params, found.model_state)),
        strict=True,
    )
    zeros = 0
    for mine, theirs in pairs:
        for seed, other in enumerate((0, 1, 0)):
            kept = (np.asarray(mine[seed]) != 0) | (mine[seed].ndim == 1)
            np.testing.assert_array_equal(np.asarray(mine[seed])[kept], np.asarray(theirs[other])[kept])
            zeros += int((~kept).sum())
    assert zeros


def test_starts_that_do_not_fit(source, tmp_path):
    with pytest.raises(ConfigError, match=r"init_from: .*nowhere is not a run directory"):
        prepare(resolve(IMAGES | {"init_from": str(tmp_path / "nowhere")}))
    other = IMAGES | {"init_from": str(source), "model": "mlp", "model_args": {"features": [7]}}
    with pytest.raises(ConfigError, match=r"init_from: .*is .* there and .* here"):
        prepare(resolve(other))


def test_untrained_weights_by_config():
    """Signed constants in the masked leaves, other ones for each seed."""
    config = IMAGES | {"method": "edge_popup", "sparsity": 0.5, "seeds": 2, "init": "signed_constant"}
    state = prepare(resolve(config)).init()[0]
    masks = jax.tree.leaves(state.opt_state.masks)
    kernels = [leaf for leaf in jax.tree.leaves(state.params) if leaf.ndim > 2][: len(masks)]
    assert masks and all((np.asarray(k[0]) != np.asarray(k[1])).any() for k in kernels)
    for kernel in kernels:
        assert len(np.unique(np.abs(np.asarray(kernel)))) == 2  # 0, and one constant

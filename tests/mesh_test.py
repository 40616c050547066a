"""Eight devices of one host: masks and, to rounding, losses as on one; checkpoints go from many to one and back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_models
from devices import many_devices
from jax.sharding import PartitionSpec
from small_models import IMAGES, WORDS

from sparsejax.masks import get_masks
from sparsejax.training import ConfigError, resolve, train
from sparsejax.training.methods import make_transform
from sparsejax.training.metrics import read_metrics
from sparsejax.training.placement import Placement, make_mesh
from sparsejax.training.trial import prepare

MESH = {"data": 2, "fsdp": 4}
RIGL = {"method": "rigl", "sparsity": 0.7, "method_args": {"update_every": 5, "update_end": 20}, "seeds": 2}
CASES = {
    "images": IMAGES | RIGL | {"ema_decay": 0.9, "epochs": 3, "seeds": 1},  # each seed is compiled anew
    "words": WORDS | RIGL | {"batch_size": 16, "accumulate": 2, "checkpoint_every_epochs": 1},
}


@pytest.fixture(autouse=True)
def installed():
    with small_models.installed(), many_devices():
        yield


def same(folder):
    """The two runs in it have the same records, floats to rounding; what is said of masks exactly."""
    one, both = (read_metrics(folder / run / "metrics.jsonl") for run in ("one", "both"))
    assert len(one) > 6
    for a, b in zip(one, both, strict=True):
        assert a.keys() == b.keys()
        for field, value in a.items():
            if field in ("loss", "lr", "perplexity", "bits_per_character"):
                np.testing.assert_allclose(value, b[field], rtol=1e-5)
            elif field.startswith("gradient_"):  # sums, of which each device has a part
                jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), value, b[field])
            else:
                assert value == b[field]


@pytest.mark.parametrize("name", ["words", pytest.param("images", marks=pytest.mark.long)])
def test_a_run_on_eight_devices_and_back_on_one(name, tmp_path):
    """A run on one device and one that goes from eight to one to eight tell the same."""
    config = CASES[name]
    train(config, tmp_path / "one")
    if name == "images":  # many compilations, so one of the two ways is enough
        train(config | {"mesh": MESH}, tmp_path / "both")
        return same(tmp_path)

    def stop(done, total, last):
        if done >= stops[0]:
            raise KeyboardInterrupt(stops.pop(0))

    stops = [5, 9, 100]
    for mesh in (MESH, {}):
        with pytest.raises(KeyboardInterrupt):
            train(config | {"mesh": mesh}, tmp_path / "both", on_progress=stop)
    train(config | {"mesh": {"data": -1}}, tmp_path / "both", on_progress=stop)
    same(tmp_path)


def test_where_everything_lies():
    """Params, masks and moments along the largest axis that four divides, all in the same way; a batch along eight."""
    trial = prepare(resolve(CASES["words"] | {"mesh": MESH}))
    state, _ = trial.init()
    spec = lambda leaf: leaf.sharding.spec
    assert spec(state.params["Dense_1"]["kernel"]) == PartitionSpec(None, "fsdp")  # 32 x 28
    assert spec(state.params["Embed_0"]["embedding"]) == PartitionSpec(None, "fsdp")  # 28 x 16
    masks, moments = get_masks(state.opt_state), state.opt_state.inner_state[0].mu
    for layer in ("Dense_0", "Dense_1"):
        same = {spec(tree[layer]["kernel"]) for tree in (state.params, masks, moments)}
        assert len(same) == 1 and state.params[layer]["kernel"].addressable_shards[0].data.shape[1] == 8
    assert state.step.sharding.is_fully_replicated and state.opt_state.count.sharding.is_fully_replicated
    after, _ = trial.programs.chunk(trial.rates, state, trial.fixed, trial.feed(0, 2), 2)
    assert jax.tree.map(spec, after.params) == jax.tree.map(
        lambda sharding: sharding.spec, trial.place.of(trial.like.params)
    )
    assert trial.test.x.sharding.spec == PartitionSpec(None, ("data", "fsdp"))


def test_the_same_masks_given_the_same_params_and_gradients():
    """One update at a mask step on one device and sharded: masks, and what is updated, have the same bits."""
    config = resolve(CASES["words"] | {"optimizer": "sgd"})
    draw = np.random.default_rng(0).normal(size=(2, 1, 64, 32)).astype(np.float32)
    params, grads = ({"kernel": jnp.asarray(each)} for each in draw)
    transform = make_transform(config, 100, sparsity=0.7)
    state = jax.jit(jax.vmap(transform.init))(params)._replace(count=jnp.full(1, 5))
    place = Placement(make_mesh(MESH))

    @jax.jit
    def step(params, grads, state):
        updates, state = jax.vmap(transform.update)(grads, state, params)
        return optax.apply_updates(params, updates), get_masks(state)

    alone = step(params, grads, state)
    sharded = step(*(jax.device_put(tree, place.of(tree)) for tree in (params, grads, state)))
    assert len(sharded[1]["kernel"].sharding.device_set) == 8
    assert (alone[1]["kernel"] != get_masks(state)["kernel"]).any()
    jax.tree.map(np.testing.assert_array_equal, alone, sharded)


BAD = {
    "mesh: unknown 'dta'; did you mean 'data'?": {"dta": 2},
    "mesh.data: 0 is not an integer >= 1, or -1": {"data": 0},
    "mesh: data=3 x fsdp=4 are more than the 8 devices": {"data": 3, "fsdp": 4},
    "mesh: data=-1 x fsdp=16 are more than the 8 devices": {"data": -1, "fsdp": 16},
    "mesh: only one of data and fsdp can be -1": {"data": -1, "fsdp": -1},
    "batch_size: 16 cannot be split evenly over the 3 devices of mesh": {"data": 3},
}


@pytest.mark.parametrize("words", BAD)
def test_bad_meshes(words, tmp_path):
    with pytest.raises(ConfigError) as caught:
        train(IMAGES | {"mesh": BAD[words]}, tmp_path / "run")
    assert words in str(caught.value)
    assert not (tmp_path / "run").exists()

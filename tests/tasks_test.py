"""Classification and language modelling with BatchNorm, dropout, averages, parts: against NumPy, and resumed."""

import functools
import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_models
from small_models import IMAGES, WORDS, Convolutions, colours, pangram

from sparsejax.masks import get_masks
from sparsejax.training import ConfigError, classification, language, resolve, train
from sparsejax.training.checkpoint import Checkpoints
from sparsejax.training.evaluation import make_test_set
from sparsejax.training.metrics import read_metrics
from sparsejax.training.model import evaluated, make_model
from sparsejax.training.state import averaged
from sparsejax.training.step import make_step, step_key
from sparsejax.training.tasks import make_task
from sparsejax.training.trial import prepare

RIGL = {"method": "rigl", "sparsity": 0.7, "method_args": {"update_every": 5, "update_end": 20}, "seeds": 2}
CASES = {
    "images": IMAGES | RIGL | {"ema_decay": 0.9, "label_smoothing": 0.1, "checkpoint_every_epochs": 1},
    "words": WORDS | RIGL | {"clip_norm": 0.5, "checkpoint_every_epochs": 1},
}
pytestmark = pytest.mark.usefixtures("installed")


@pytest.fixture(scope="module")
def installed():
    with small_models.installed():
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory, installed):
    """Each case, trained once: name -> (workdir, result)."""

    @functools.cache
    def get(name):
        workdir = tmp_path_factory.mktemp("runs") / name
        return workdir, train(CASES[name], workdir)

    return get


def state_of(config, workdir):
    checkpoints = Checkpoints(workdir / "checkpoints", keep=9)
    _, state = checkpoints.restore(prepare(resolve(config)).like)
    checkpoints.close()
    return state


def one_seed(tree, seed=0):
    return jax.tree.map(lambda leaf: leaf[seed], tree)


@pytest.mark.parametrize("name", ["words", pytest.param("images", marks=pytest.mark.long)])
def test_interrupted_runs_end_with_the_same_bits(runs, name, tmp_path):
    """Batch statistics, averages and what dropout draws are all resumed."""
    workdir, result = runs(name)
    stops, known = [8, 17], set()

    def on_progress(done, total, last):
        known.update(last)
        if stops and done >= stops[0]:
            raise KeyboardInterrupt(stops.pop(0))

    while stops:
        with pytest.raises(KeyboardInterrupt):
            train(CASES[name], tmp_path / "run", on_progress=on_progress)
    again = train(CASES[name], tmp_path / "run", on_progress=on_progress)
    assert known == {"step", "epoch", "loss", "lr", "accuracy" if name == "images" else "validation loss"}
    assert {**again, "seconds": 0} == {**result, "seconds": 0}
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (workdir / "metrics.jsonl").read_bytes()
    states = [jax.tree.leaves(state_of(CASES[name], path)) for path in (workdir, tmp_path / "run")]
    assert all(np.array_equal(a, b) for a, b in zip(*states, strict=True))


def test_results_of_a_classifier(runs):
    """The averages are evaluated, under the masks of now, with averaged statistics."""
    workdir, result = runs("images")
    assert (result["task"], result["metric"]) == ("classification", "accuracy")
    state, data = state_of(CASES["images"], workdir), colours()
    assert set(state.model_state) == {"batch_stats"}
    masks = get_masks(state.opt_state)
    model = make_model(resolve(CASES["images"]), data)
    x = (data.test_x - data.offset) * data.scale
    for seed in range(2):
        ema, mask = one_seed(state.ema, seed), one_seed(masks, seed)
        params = jax.tree.map(lambda w, m: w if m is None else w * m, ema["params"], mask, is_leaf=lambda m: m is None)
        logits = np.asarray(evaluated(model, params, ema["model_state"], jnp.asarray(x)), np.float64)
        losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(x)), data.test_y]
        np.testing.assert_allclose(result["loss"][seed], losses.mean(), rtol=1e-4)
        assert result["accuracy"][seed] == (logits.argmax(1) == data.test_y).mean()
    kernels = [state.ema["params"]["Conv_0"]["kernel"], masks["Conv_0"]["kernel"]]
    assert (np.asarray(kernels[0])[~np.asarray(kernels[1])] != 0).any()  # weights that were there once


def test_results_of_a_language_model(runs):
    """Every test token but the first is predicted once, from its own window alone; the last one ends with the text."""
    workdir, result = runs("words")
    assert (result["task"], result["metric"], "accuracy" in result) == ("language", "loss", False)
    state, data = state_of(CASES["words"], workdir), pangram()
    model = make_model(resolve(CASES["words"]), data)
    params, total = one_seed(state.params), 0.0
    targets = len(data.test) - 1
    for first in range(0, targets, model.context):
        start = min(first, targets - model.context)
        window = data.test[start : start + model.context + 1].astype(np.int32)
        logits = np.asarray(evaluated(model, params, {}, jnp.asarray(window[None, :-1]))[0], np.float64)
        losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(model.context), window[1:]]
        total += losses[first - start :].sum()
    loss = total / targets
    np.testing.assert_allclose(result["loss"][0], loss, rtol=1e-5)
    np.testing.assert_allclose(result["perplexity"][0], math.exp(loss), rtol=1e-4)
    np.testing.assert_allclose(result["bits_per_character"][0], loss / math.log(2), rtol=1e-5)  # a letter a token
    evals = [r["loss"] for r in read_metrics(workdir / "metrics.jsonl") if r["kind"] == "eval"]
    assert np.mean(evals[-1]) < np.mean(evals[0])


def test_characters_of_longer_tokens():
    data = pangram()._replace(decode=lambda ids: "ab" * len(ids))
    task = language.task(resolve(WORDS), data, make_model(resolve(WORDS), data))
    scores = task.scores({"loss": np.float32([99.0])}, 99)
    assert scores["loss"] == [1.0] and scores["bits_per_character"] == [pytest.approx(0.5 / math.log(2))]
    assert "bits_per_character" not in language.task(
        resolve(WORDS), data._replace(decode=None), types.SimpleNamespace(context=3)
    ).scores({"loss": np.float32([1.0])}, 1)


@pytest.mark.parametrize("size, context", [(6, 5), (7, 5), (100, 12)])
def test_windows_of_the_test_set(size, context):
    """Every token but the first is predicted once, by those right before it."""
    data = pangram()._replace(test=np.arange(size))
    task = types.SimpleNamespace(units=context)
    examples = language.examples(resolve(WORDS), data, task)
    x, y, real = examples.test_x, examples.test_y, examples.test_real
    assert x.shape == y.shape == real.shape and x.shape[1] == context
    assert sorted(y[real].tolist()) == list(range(1, size))
    np.testing.assert_array_equal(y, x + 1)
    test = make_test_set(x, y, real, largest=2, multiple=4)
    assert test.size == size - 1 and test.x.shape[1] % 4 == 0 and int(test.real.sum()) == size - 1


def test_windows_of_the_training_set():
    config, context = resolve(WORDS | {"epoch_steps": 100}), 12
    examples = language.examples(config, pangram(), types.SimpleNamespace(units=context))
    starts = [np.asarray(examples.draw([3, 5], epoch)) for epoch in (0, 1)]
    last = len(pangram().train) - context - 1
    assert {0, last} <= set(starts[0].ravel().tolist()) <= set(range(last + 1))
    assert starts[0].shape == (2, 100 * config["batch_size"])
    assert len({row.tobytes() for pair in starts for row in pair}) == 4
    np.testing.assert_array_equal(examples.draw([5], 1)[0], starts[1][1])
    data = pangram()
    task = make_task(resolve(WORDS), data, make_model(resolve(WORDS), data))
    x, y = task.gather(jnp.asarray(data.train), jnp.asarray([[0, 7], [700, len(data.train) - 13]]))
    assert x.shape == y.shape == (2, 2, 12)
    np.testing.assert_array_equal(x[1, 1], data.train[-13:-1])
    np.testing.assert_array_equal(y[1, 1], data.train[-12:])


def step_of(config, teacher=None, tx=None):
    config = resolve(config)
    data = colours()
    model = make_model(config, data)
    return make_step(model, make_task(config, data, model), tx or optax.sgd(1.0), config, teacher)


def test_parts_of_a_batch_give_its_gradient():
    """Without BatchNorm and dropout the step is the same to rounding; with them each part draws for itself."""
    x, y = jnp.asarray(colours().train_x[:8]), jnp.asarray(colours().train_y[:8])
    config = resolve({"model": "mlp", "model_args": {"features": [5]}, "dataset": "colours", "batch_size": 8})
    params = make_model(config, colours()).init(jax.random.key(0), jnp.zeros((1, 6, 6, 3)))["params"]
    found = []
    for parts in (1, 4):
        step = step_of(config | {"accumulate": parts})
        new, _, _, loss, _ = jax.jit(step)(params, optax.sgd(1.0).init(params), {}, 0, 0, x, y, {})
        found.append((new, loss))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *found)


def test_averages():
    """d = min(decay, (1 + step) / (10 + step)); what is no float is taken over."""
    ema = {"params": {"w": jnp.ones(2)}, "model_state": {"count": jnp.int32(1)}}
    for step, share in ((0, 0.1), (5, 0.4), (1000, 0.9)):
        new = averaged(ema, {"w": jnp.full(2, 3.0)}, {"count": jnp.int32(7)}, jnp.int32(step), 0.9)
        np.testing.assert_allclose(new["params"]["w"], share + (1 - share) * 3.0, rtol=1e-6)
        assert int(new["model_state"]["count"]) == 7


def test_keys_of_steps():
    """A function of seed and step; none is the key that the seed's parameters were drawn with."""
    keys = [jax.random.key_data(step_key(seed, step)).tobytes() for seed in (0, 1) for step in range(4)]
    keys += [jax.random.key_data(jax.random.key(seed)).tobytes() for seed in (0, 1)]
    assert len(set(keys)) == len(keys)


def smoothed(labels, smoothing):
    return labels * (1 - smoothing) + smoothing / labels.shape[-1]


def test_smoothed_and_mixed_labels(monkeypatch):
    """Augmented as bytes, scaled by channel, then mixed; the loss against the labels as NumPy has it."""
    seen = []

    def augment(spec):
        assert spec == "flip"
        return lambda key, x: (seen.append(x.dtype), x[:, :, ::-1])[1]

    def mixup(alpha):
        half = lambda key, x, labels: ((x + x[::-1]) / 2, (labels + labels[::-1]) / 2)
        return half

    fake = types.SimpleNamespace(augment=augment, mixup=mixup, cutmix=mixup)
    monkeypatch.setattr(classification, "augment", fake)
    data = colours()
    x, y = data.train_x[:6], data.train_y[:6]
    logits = np.random.default_rng(0).normal(size=(6, 3))
    log = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    for fields in ({"mixup": 0.2}, {"mixup": 0.2, "cutmix": 1.0}, {}):
        config = resolve(IMAGES | {"augment": "flip", "label_smoothing": 0.1} | fields)
        task = classification.task(config, data)
        inputs, targets = task.prepare(jax.random.key(0), jnp.asarray(x), jnp.asarray(y))
        wanted = (x[:, :, ::-1].astype(np.float64) - data.offset) * data.scale
        labels = np.eye(3)[y]
        if fields:
            wanted, labels = (wanted + wanted[::-1]) / 2, (labels + labels[::-1]) / 2
        np.testing.assert_allclose(inputs, wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            task.loss(jnp.asarray(logits, jnp.float32), targets),
            -(smoothed(labels, 0.1) * log).sum(1).mean(),
            rtol=1e-5,
        )
    assert seen[0] == jnp.uint8


def test_dtype_is_handed_to_the_model():
    config = resolve(IMAGES | {"dtype": "bfloat16"})
    assert make_model(config, colours()) == Convolutions(3, dtype=jnp.bfloat16)
    like = prepare(config).like
    assert {leaf.dtype for leaf in jax.tree.leaves(like.params)} == {jnp.dtype("float32")}
    logits = jax.eval_shape(
        lambda p, s, x: evaluated(make_model(config, colours()), p, s, x),
        one_seed_shapes(like.params),
        one_seed_shapes(like.model_state),
        jax.ShapeDtypeStruct((1, 6, 6, 3), jnp.float32),
    )
    assert logits.dtype == jnp.float32


def one_seed_shapes(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tree)


BAD = {
    "model 'previous' is for text, data set 'colours' has images": IMAGES | {"model": "previous"},
    "model 'mlp' is for images, data set 'pangram' has text": WORDS | {"model": "mlp"},
    "dtype: 'bfloat16' with model 'previous'": WORDS | {"dtype": "bfloat16"},
    "dtype: 'half' is not 'float32'": IMAGES | {"dtype": "half"},
    "label_smoothing: 0.1 has no meaning for text": WORDS | {"label_smoothing": 0.1},
    "mixup: 0.2 has no meaning for text": WORDS | {"mixup": 0.2},
    "epoch_steps: 5 has no meaning for images": IMAGES | {"epoch_steps": 5},
    "model_args: unknown 'classes'": IMAGES | {"model_args": {"classes": 3}},
    "accumulate: 3 does not divide batch_size 16": IMAGES | {"accumulate": 3},
    "ema_decay: 1.0 is not a number in [0, 1)": IMAGES | {"ema_decay": 1.0},
    "init: 'densty' is not 'default', 'density'": IMAGES | {"init": "densty"},
    "epoch_steps sets the steps of an epoch": WORDS | {"batch_size": 500},
    "at least 801 are needed": WORDS | {"model_args": {"context": 800}},
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_is_one_line_and_leaves_nothing_behind(words, tmp_path):
    with pytest.raises(ConfigError) as caught:
        train(BAD[words], tmp_path / "run")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_steps_of_an_epoch_of_text():
    config = resolve(WORDS | {"epoch_steps": 3, "batch_size": 500})
    assert prepare(config).grid.total == 9
    assert prepare(resolve(WORDS)).grid.epoch == (len(pangram().train) - 1) // (12 * 8)


def test_density_at_the_start():
    """What is left of a kernel has the deviation that a layer of so many inputs would have had."""
    state = [prepare(resolve(IMAGES | RIGL | {"init": init})).init()[0] for init in ("default", "density")]
    masks = get_masks(state[0].opt_state)
    for layer in ("Conv_0", "Conv_1", "Dense_0"):
        before, after = (np.asarray(each.params[layer]["kernel"]) for each in state)
        density = np.asarray(masks[layer]["kernel"]).mean(tuple(range(1, before.ndim)), keepdims=True)
        np.testing.assert_allclose(after, before / np.sqrt(density), rtol=1e-5)


def test_a_config_of_before_the_new_fields_is_the_same_run(runs, tmp_path):
    """Its config.json lacks them; what they stand at means what was then."""
    workdir, result = runs("words")
    written = json.loads((workdir / "config.json").read_text())
    (tmp_path / "run").mkdir()
    for field in ("momentum", "betas", "ema_decay", "mesh", "log", "label_smoothing"):
        del written[field]
    (tmp_path / "run" / "config.json").write_text(json.dumps(written | {"mesh": {"data": 2, "fsdp": 1}}))
    (tmp_path / "run" / "result.json").write_text((workdir / "result.json").read_text())
    assert train(CASES["words"], tmp_path / "run") == result

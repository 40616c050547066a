"""What is made of a trained model: a student, a class for a file, more of a text."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from PIL import Image
from small_models import IMAGES, LETTERS, WORDS, colours

from sparsejax import cli
from sparsejax.training import ConfigError, resolve, train
from sparsejax.training.checkpoint import Checkpoints
from sparsejax.training.distillation import distilled
from sparsejax.training.model import evaluated, make_model
from sparsejax.training.trained import load_trained, of_seed
from sparsejax.training.trial import prepare

TEACHER = IMAGES | {"method": "static", "sparsity": 0.3, "seeds": [3, 5], "ema_decay": 0.5, "keep_best": True}
GPT = {"layers": 1, "width": 16, "heads": 2, "context": 12}
TEXT = WORDS | {"model": "gpt", "model_args": GPT, "seeds": [4], "epochs": 4}


@pytest.fixture(scope="module", autouse=True)
def installed():
    with small_models.installed():
        yield


@pytest.fixture(scope="module")
def teacher(installed, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("teacher") / "run"
    train(TEACHER, workdir)
    return workdir


@pytest.fixture(scope="module")
def writer(installed, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("writer") / "run"
    train(TEXT, workdir)
    return workdir


def test_a_trained_model_comes_from_its_best_checkpoint(teacher):
    """It scores on the test set what the records say of the best evaluation."""
    trained, data = load_trained(teacher), colours()
    best = json.loads((teacher / "result.json").read_text())["best"]
    x = trained.task.inputs(jnp.asarray(data.test_x))
    for seed, accuracy in zip((3, 5), best["accuracy"], strict=True):
        logits = evaluated(trained.model, *of_seed(trained, seed), x)
        assert (np.asarray(logits).argmax(1) == data.test_y).mean() == accuracy
    with pytest.raises(ConfigError, match="seed: 4 was not trained; the run has 3, 5"):
        of_seed(trained, 4)


def test_the_loss_of_a_student():
    """Against the definition in NumPy."""
    student, taught = np.random.default_rng(0).normal(size=(2, 4, 5))
    soft = lambda logits: np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    p, q = soft(taught / 3), soft(student / 3)
    wanted = 0.25 * 7.0 + 0.75 * 9 * (p * np.log(p / q)).sum(-1).mean()
    found = distilled(jnp.float32(7), jnp.asarray(student), jnp.asarray(taught), {"alpha": 0.75, "temperature": 3.0})
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_student_follows_its_teacher(teacher, tmp_path):
    """With alpha 1 labels count for nothing: the first loss is T^2 KL of the two models; each seed has its teacher."""
    config = IMAGES | {"seeds": 3, "epochs": 1, "chunk_steps": 1, "optimizer": "sgd", "learning_rate": 1e-9}
    how = {"workdir": str(teacher), "alpha": 1.0, "temperature": 2.0}
    trial = prepare(resolve(config | {"distill": how}))
    trained = load_trained(teacher)
    variables = trial.fixed["teacher"]
    for student, seed in enumerate((3, 5, 3)):
        one = jax.tree.map(lambda leaf: leaf[student], variables)  # noqa: B023
        jax.tree.map(np.testing.assert_array_equal, one, of_seed(trained, seed))
    state, _ = trial.init()
    params = jax.tree.map(lambda leaf: leaf[1], (state.params, state.model_state))
    _, report = trial.programs.chunk(trial.rates, state, trial.fixed, trial.feed(0, 1), 1)
    x = trial.task.inputs(jnp.asarray(colours().train_x)[trial.feed(0, 1).order[1, :16]])
    model = make_model(resolve(config), colours())
    own, _ = model.apply({"params": params[0], **params[1]}, x, train=False, mutable=["batch_stats"])
    taught = evaluated(trained.model, *of_seed(trained, 5), x)
    near = distilled(jnp.float32(0), own, taught, how)
    assert 0.2 * near < report["loss"][1] < 5 * near  # the student normalises by its batch, and drops
    result = train(config | {"distill": how, "learning_rate": 1e-2}, tmp_path / "run")
    assert len(result["accuracy"]) == 3


def other_run(folder, config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(resolve(config)))
    trial = prepare(resolve(config))
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    checkpoints.save(0, trial.init()[0])
    checkpoints.close()
    return folder


def test_teachers_that_do_not_fit(teacher, writer, tmp_path, monkeypatch):
    def refused(config, workdir, words):
        with pytest.raises(ConfigError) as caught:
            train(config | {"distill": {"workdir": str(workdir)}}, tmp_path / "run")
        assert words in str(caught.value) and "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()

    refused(IMAGES, tmp_path / "none", "distill.workdir: " + str(tmp_path / "none") + " is not a run directory")
    refused(IMAGES, writer, "was trained for language, not classification")
    refused(IMAGES | {"dataset": "digits", "model": "mlp"}, teacher, "has 3 classes, the data set has 10")
    refused(WORDS | {"model_args": {"context": 13}}, writer, "reads 12 tokens at once, the student 13")
    bright = lambda data_dir="", size=64: colours()._replace(scale=1.0)
    small = lambda data_dir="", size=64: colours()._replace(
        train_x=colours().train_x[:, :4], test_x=colours().test_x[:, :4]
    )
    for name, source, words in (
        ("bright", bright, "on another scale"),
        ("small", small, "sees inputs [6, 6, 3], not [4, 6, 3]"),
    ):
        monkeypatch.setitem(small_models.data.DATASETS, name, source)
        refused(IMAGES | {"dataset": name}, teacher, words)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text((teacher / "config.json").read_text())
    refused(IMAGES, tmp_path / "empty", "has no checkpoint that is whole")
    for fields, words in (
        ({"workdir": ""}, "distill.workdir: '' is not the run directory"),
        ({"workdir": "x", "alpha": 2}, "distill.alpha: 2 is not a number in [0, 1]"),
        ({"workdir": "x", "temperatur": 2}, "distill: unknown 'temperatur'; did you mean 'temperature'?"),
    ):
        with pytest.raises(ConfigError) as caught:
            resolve({"distill": fields})
        assert words in str(caught.value)


def test_predictions(teacher, tmp_path, capsys):
    """The class and the mean probability of the two seeds, for arrays and pictures alike."""
    data, trained = colours(), load_trained(teacher)
    files = []
    for index in range(4):
        np.save(tmp_path / f"{index}.npy", data.test_x[index])
        Image.fromarray(data.test_x[index]).save(tmp_path / f"{index}.png")
        files += [str(tmp_path / f"{index}.npy"), str(tmp_path / f"{index}.png")]
    Image.fromarray(np.kron(data.test_x[0], np.ones((2, 2, 1), np.uint8))).save(tmp_path / "large.png")
    assert cli.main(["predict", "--workdir", str(teacher), *files, str(tmp_path / "large.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9 and lines[-1].startswith(f"{tmp_path / 'large.png'}: class ")
    x = trained.task.inputs(jnp.asarray(data.test_x[:4]))
    logits = np.stack([np.asarray(evaluated(trained.model, *of_seed(trained, s), x), np.float64) for s in (3, 5)])
    mean = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).mean(0)
    for index in range(4):
        wanted = f"class {mean[index].argmax()}, {100 * mean[index].max():.1f} %"
        assert lines[2 * index : 2 * index + 2] == [f"{files[2 * index + k]}: {wanted}" for k in (0, 1)]


def test_mistakes(teacher, writer, tmp_path, capsys):
    np.save(tmp_path / "flat.npy", np.zeros(3))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    predict, sample = ["predict", "--workdir", str(teacher)], ["sample", "--workdir", str(writer)]
    for arguments, words in (
        ([*predict, str(tmp_path / "no.png")], ["no.png", "cannot be read"]),
        ([*predict, str(tmp_path / "broken.png")], ["broken.png", "cannot be read"]),
        ([*predict, str(tmp_path / "flat.npy")], ["flat.npy", "float64[3]", "[6, 6, 3]"]),
        ([*predict, str(tmp_path / "objects.npy")], ["objects.npy", "cannot be read"]),
        (predict, ["FILE"]),
        (["predict", "--workdir", str(writer), "x.png"], ["language model", "sparsejax sample"]),
        (["predict", "--workdir", str(tmp_path), "x.png"], [str(tmp_path), "not a run directory"]),
        (["sample", "--workdir", str(teacher)], ["classifier", "sparsejax predict"]),
        ([*sample, "--prompt", "Ü"], ["--prompt"]),
        ([*sample, "--prompt", ""], ["--prompt", "empty"]),
        ([*sample, "--prompt", "the", "--trained-seed", "0"], ["seed: 0", "4"]),
        ([*sample, "--temperature=-1"], ["--temperature", "-1"]),
        ([*sample, "--prompt", "the", "--tokens=0"], ["--tokens", "0"]),
        ([*sample, "--promt", "a"], ["--promt", "'--prompt'"]),
    ):
        assert cli.main(arguments) == 2
        shown = capsys.readouterr()
        (line,) = shown.err.splitlines()
        assert [word for word in words if word not in line] == [] and shown.out == ""


@pytest.mark.long
def test_text(writer, capsys):
    """The likeliest tokens are the pangram's; a seed gives the same text again."""
    sample = ["sample", "--workdir", str(writer), "--prompt", "the quick"]
    texts = []
    for options in (["--seed=1"], ["--seed=1"], ["--seed=2"], ["--temperature=0", "--seed=3"], ["--top-k=1"]):
        assert cli.main([*sample, "--tokens=30", *options]) == 0
        texts.append(capsys.readouterr().out.rstrip("\n"))
    assert texts[0] == texts[1] != texts[2] and texts[3] == texts[4]
    assert all(
        len(text) == len("the quick") + 30 and set(text) <= set(LETTERS) for text in texts if text == text.strip()
    )

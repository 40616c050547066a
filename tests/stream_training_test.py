"""Training from streams: the same windows as in memory, a position that a killed run takes up, what is damaged."""

import json
import re
import sys

import numpy as np
import pytest
import small_models
from devices import many_devices
from PIL import Image
from rich.console import Console
from stream_test import write_tokens

from sparsejax import cli
from sparsejax.data import image_folder
from sparsejax.data.draws import epoch_permutation
from sparsejax.launch.predict import run_predict
from sparsejax.training import ConfigError, resolve, train, trial
from sparsejax.training.checkpoint import Checkpoints
from sparsejax.training.feeding import AHEAD, Chunk
from sparsejax.training.metrics import read_metrics
from sparsejax.training.trial import prepare

RIGL = {"method": "rigl", "sparsity": 0.5, "method_args": {"update_every": 3, "update_end": 8}}
FOLDER = RIGL | {
    "dataset": "image_folder", "data": {"image_size": 8, "workers": 0}, "model": "mlp",
    "model_args": {"features": [16]}, "batch_size": 4, "epochs": 2, "seeds": 2, "learning_rate": 1e-2,
    "checkpoint_every_epochs": 1,
}  # fmt: skip
STEPS = 10  # 22 images, 5 steps an epoch
TEXT = RIGL | {"dataset": "tokens", "model": "previous", "model_args": {"context": 12}, "batch_size": 8, "epochs": 2}


@pytest.fixture(autouse=True)
def installed():
    with small_models.installed():
        yield
    trial._load.cache_clear()  # a later test has other files


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def runs(together, request):
    """Name -> a run directory of this test; all have one parent, and so share their compiled programs."""
    return lambda name: together / f"{request.node.originalname}-{name}"


@pytest.fixture
def config(tmp_path):
    """Two classes, one dark and one bright, of noise; 22 images to train on and 9 to test on, not all of one size."""
    rng = np.random.default_rng(0)
    for part, counts in (("train", (12, 10)), ("val", (5, 4))):
        for label, count in enumerate(counts):
            folder = tmp_path / "images" / part / "ab"[label]
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(90 * label, 90 * label + 120, (10 + number % 3, 11, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return FOLDER | {"data_dir": str(tmp_path / "images")}


def stop_after(step):
    def progress(done, total, last):
        if done >= step:
            raise KeyboardInterrupt

    return progress


def outcome(workdir, config):
    """The bits of the state at the end, and metrics.jsonl."""
    checkpoints = Checkpoints(workdir / "checkpoints", keep=9)
    step, state = checkpoints.restore(prepare(resolve(config)).like)
    bits = [np.asarray(leaf).tobytes() for leaf in trial.jax.tree.leaves((state.params, state.ever_active))]
    position = checkpoints.data(step)
    checkpoints.close()
    return step, bits, position, (workdir / "metrics.jsonl").read_bytes()


def with_data(config, **changed):
    return config | {"data": config["data"] | changed}


def test_a_run_that_was_stopped_ends_with_the_same_bits(config, tmp_path, runs):
    """Once with the same threads, once with a worker process in place of them."""
    result = train(config, runs("straight"))
    assert result["steps"] == STEPS and len(result["accuracy"]) == 2 and "skipped_examples" not in result
    straight = outcome(runs("straight"), config)
    assert straight[0] == STEPS and straight[2]["position"] == STEPS and straight[2]["named"]["examples"] == 22
    with pytest.raises(KeyboardInterrupt):
        train(config, runs("run"), on_progress=stop_after(7))
    assert [path.name for path in (runs("run") / "checkpoints").iterdir()] == ["5"]
    train(with_data(config, workers=1), runs("run"))
    assert outcome(runs("run"), config) == straight


def test_each_seed_sees_its_own_order(config):
    """The batches on the device are those of the seeds' own streams, one for each step."""
    config["seeds"] = [7, 3]
    made = prepare(resolve(config))
    stream = image_folder(config["data_dir"], image_size=8, workers=0)
    alone = [stream.train(4, seed) for seed in (7, 3)]
    for first in (0, 5):
        for drawn in made.feed(first, first + 5).each(5):
            for at, batches in enumerate(alone):
                x, y = next(batches)
                np.testing.assert_array_equal(drawn.x[at], x)
                np.testing.assert_array_equal(drawn.y[at], y)
            assert drawn.x.dtype == np.uint8
    for batches in (*alone, made.feed):
        batches.close()


def test_the_report_before_is_read_when_the_device_has_work():
    events = []
    draw = lambda: events.append("draw")
    for _ in Chunk(draw, lambda: events.append("read")).each(AHEAD + 2):
        events.append("step")
    assert events == ["draw", "step"] * AHEAD + ["read"] + ["draw", "step"] * 2


def test_evaluation_covers_the_test_set(config, tmp_path, runs):
    """What result.json says of the test images is what `predict` says of each file, as evaluation sees it."""
    result = train(config | {"seeds": 1, "batch_size": 5, "ema_decay": 0.5, "keep_best": True}, runs("run"))
    files = sorted((tmp_path / "images" / "val").glob("*/*.png"))
    assert len(files) == 9 and round(9 * result["accuracy"][0], 6).is_integer()
    console = Console(record=True, width=500)
    assert run_predict(runs("run"), files, console) == 0
    said = [int(found) for found in re.findall(r": class (\d)", console.export_text())]
    right = sum(label == "ab".index(file.parent.name) for label, file in zip(said, files, strict=True))
    records = read_metrics(runs("run") / "metrics.jsonl")
    best = max(record["accuracy"][0] for record in records if record["kind"] == "eval")
    assert len(said) == 9 and right / 9 == best


def test_a_folder_that_has_changed_is_refused(config, tmp_path, runs):
    with pytest.raises(KeyboardInterrupt):
        train(config, runs("run"), on_progress=stop_after(7))
    (tmp_path / "images" / "train" / "a" / "03.png").unlink()
    trial._load.cache_clear()
    with pytest.raises(ConfigError) as caught:
        train(config, runs("run"))
    words = "it has changed since step 5, where this run goes on: state: examples was 22 there and is 21 here"
    assert str(caught.value) == f"dataset 'image_folder': {words}"


def test_a_damaged_image_ends_the_run_or_is_left_out(config, tmp_path, capsys, runs):
    """One line and exit code 2; the last checkpoint stays, and the run goes on from it without the file."""
    with pytest.raises(KeyboardInterrupt):
        train(config, runs("run"), on_progress=stop_after(7))
    bad = tmp_path / "images" / "train" / "a" / "03.png"
    bad.write_bytes(bad.read_bytes()[:60])
    (tmp_path / "config.json").write_text(json.dumps(resolve(config)))
    command = ["train", "--config", str(tmp_path / "config.json"), "--workdir", str(runs("run"))]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"dataset 'image_folder': {bad}: cannot be decoded" in error
    assert (runs("run") / "checkpoints" / "5" / "seal.json").is_file()
    assert cli.main([*command, "--config.data.on_error=skip"]) == 0
    result = json.loads((runs("run") / "result.json").read_text())
    met = sum(3 in epoch_permutation(seed, 1, 22)[:20] for seed in (0, 1))  # two images of an epoch are left over
    assert met and result["skipped_examples"] == {"at_start": 0, "training": met, "test": 0}
    records = read_metrics(runs("run") / "metrics.jsonl")
    assert [r for r in records if r["kind"] == "train"][-1]["skipped_examples"] == met


def test_test_images_that_are_left_out_do_not_count(config, tmp_path, runs):
    (tmp_path / "images" / "val" / "a" / "01.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"val/a/01\.png: cannot be decoded"):
        train(config, runs("run"))
    result = train(with_data(config, on_error="skip") | {"epochs": 1}, runs("other"))
    assert result["skipped_examples"] == {"at_start": 0, "training": 0, "test": 1}
    assert all(round(8 * accuracy, 6).is_integer() for accuracy in result["accuracy"])


@pytest.mark.long
def test_a_mesh_with_everything_on_top_and_a_teacher(config, runs):
    """Augmentation on the device, mixing and averages: the same on one device and on four, to rounding."""
    config |= {"augment": "cutout(2)", "mixup": 0.2, "ema_decay": 0.9, "method": "static", "epochs": 1}
    train(config, runs("one"))
    with many_devices():
        train(config | {"mesh": {"data": 2, "fsdp": 2}}, runs("four"))
    one, four = (read_metrics(runs(run) / "metrics.jsonl") for run in ("one", "four"))
    losses = [record["loss"] for record in one if "loss" in record]
    np.testing.assert_allclose(losses, [record["loss"] for record in four if "loss" in record], rtol=1e-4)
    student = config | {"distill": {"workdir": str(runs("one"))}}
    assert train(student, runs("student"))["steps"] == 5


@pytest.mark.long
def test_tokens_are_the_same_windows_as_in_memory(tmp_path, runs):
    """Losses and perplexity to rounding, masks exactly; the file is never copied whole."""
    write_tokens(tmp_path, train=400, test=60)
    config = TEXT | {"data_dir": str(tmp_path), "epoch_steps": 5, "seeds": 2}
    for name, stream in (("memory", False), ("stream", True)):
        train(config | {"data": {"stream": stream}}, runs(name))
    memory, stream = (read_metrics(runs(name) / "metrics.jsonl") for name in ("memory", "stream"))
    assert len(memory) > 5
    for a, b in zip(memory, stream, strict=True):
        assert a.keys() == b.keys()
        for field, value in a.items():
            if field in ("loss", "perplexity", "bits_per_character"):
                np.testing.assert_allclose(value, b[field], rtol=2e-6)
            else:
                assert value == b[field]


def test_a_token_above_the_vocabulary_ends_the_run(tmp_path, runs, monkeypatch):
    write_tokens(tmp_path, above=20)
    monkeypatch.setattr(
        sys.modules["sparsejax.data.tokens"], "_SCANNED", 0
    )  # as if the file were too large to look through
    words = r"dataset 'tokens': .*\.bin: token 20 \(byte 40\): 300 is not in 0\.\.299"
    with pytest.raises(ConfigError, match=words):
        train(TEXT | {"data_dir": str(tmp_path), "data": {"stream": True}}, runs("run"))


def test_what_does_not_fit(config, tmp_path, runs):
    for changed, words in (
        ({"batch_size": 23}, "batch_size: 23 is more than the 22 training examples"),
        ({"data": {"image_size": 0}}, "image_size: 0 is not in 1..8192"),
        ({"dataset": "tokens", "data": {"stream": 1}}, "stream: 1 is not true or false"),
    ):
        with pytest.raises(ConfigError) as caught:
            train(config | changed, runs("run"))
        assert words in str(caught.value) and not runs("run").exists()

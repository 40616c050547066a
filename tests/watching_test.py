"""What watches a run: the best checkpoint, early stopping, throughput, TensorBoard and Weights & Biases."""

import json
import sys
import types

import numpy as np
import pytest
import small_models
from small_models import IMAGES, WORDS

from sparsejax.training import ConfigError, loop, resolve, train
from sparsejax.training.best import best_evaluation, exhausted
from sparsejax.training.checkpoint import Checkpoints
from sparsejax.training.metrics import read_metrics
from sparsejax.training.peaks import PEAKS, peak_of
from sparsejax.training.throughput import Throughput, rates_of_a_step
from sparsejax.training.trial import prepare
from sparsejax.training.writers import scalars

CONFIG = WORDS | {"method": "set", "sparsity": 0.5, "seeds": 2, "method_args": {"update_every": 5}, "epochs": 6}


@pytest.fixture(autouse=True)
def installed():
    with small_models.installed():
        yield


def records_of(metric, *scores):
    return [{"kind": "eval", "step": 10 * (k + 1), metric: list(each)} for k, each in enumerate(scores)]


def test_best_evaluation():
    nan = float("nan")
    assert best_evaluation([{"kind": "train", "step": 1, "loss": [0.0]}], "loss") is None
    assert best_evaluation(records_of("accuracy", (0.5, 0.7), (0.6, 0.7), (0.7, 0.6)), "accuracy")["step"] == 20
    assert best_evaluation(records_of("loss", (nan, 1.0), (3.0, 3.0), (2.0, 4.1)), "loss")["step"] == 20


def test_exhausted():
    """One seed that still improves keeps the trial going; an equal score is no improvement."""
    scores = [(0.5, 0.5), (0.6, 0.5), (0.6, 0.6), (0.5, 0.6), (0.6, 0.1)]
    for count, patience, wanted in (
        (1, 1, False), (2, 1, False), (3, 1, False), (4, 1, True), (4, 2, False), (5, 2, True), (5, 3, False),
        (5, 0, False),
    ):  # fmt: skip
        assert exhausted(records_of("accuracy", *scores[:count]), "accuracy", patience) is wanted
    assert exhausted([], "loss", 1) is False


@pytest.fixture
def scripted(monkeypatch):
    """Evaluations find these mean losses, at each epoch; the run itself is real."""
    losses = [2.0, 1.0, 1.5, 1.2, 1.3, 0.5]

    def scores(trial, state):
        size = trial.test.size
        epoch = int(state.step) // trial.grid.epoch
        return {"loss": np.full(2, losses[epoch - 1] * size, np.float32)}

    monkeypatch.setattr(loop, "_evaluate", scores)
    return losses


def test_the_best_checkpoint_is_kept_and_the_run_stops_early(scripted, tmp_path):
    """Killed anywhere, also after the end was decided, it ends at the same step with the same files."""
    config = CONFIG | {"keep_best": True, "patience": 3, "eval_every_epochs": 1, "checkpoint_every_epochs": 2}
    epoch = prepare(resolve(config)).grid.epoch
    result = train(config, tmp_path / "run")
    assert result["steps"] == 5 * epoch and result["stopped_early"] is True
    assert result["best"] == {"step": 2 * epoch, "loss": [1.0, 1.0]} and result["loss"] == [pytest.approx(1.3)] * 2
    assert [path.name for path in (tmp_path / "run" / "best").iterdir()] == [str(2 * epoch)]
    checkpoints = Checkpoints(tmp_path / "run" / "best", keep=1)
    step, state = checkpoints.restore(prepare(resolve(config)).like)
    checkpoints.close()
    assert step == int(state.step) == 2 * epoch

    stops = [2 * epoch, 4 * epoch, 5 * epoch]

    def stop(done, total, last):
        assert total == 6 * epoch
        if stops and done == stops[0]:
            raise KeyboardInterrupt(stops.pop(0))

    while stops:
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "again", on_progress=stop)
    (tmp_path / "again" / "best" / str(2 * epoch) / "seal.json").unlink(missing_ok=True)  # cut short
    again = train(config, tmp_path / "again")
    (tmp_path / "again" / "result.json").unlink()  # killed just before it was written
    for other in (again, train(config, tmp_path / "again")):
        assert {**other, "seconds": 0} == {**result, "seconds": 0}
    same = [(tmp_path / run / "metrics.jsonl").read_bytes() for run in ("run", "again")]
    assert same[0] == same[1]


def test_throughput(tmp_path):
    """Pairs of chunks without a pause between them count; where there are none, all pairs do."""
    now, told = [0.0], []
    rates = rates_of_a_step("samples", 256, 2e12, 4e12) | {"none": 0}
    speed = Throughput(tmp_path / "timing.jsonl", rates, told.append, clock=lambda: now[0])
    assert speed.record(0) is None
    for step, at in ((10, 100.0), (20, 101.0), (30, 102.0)):  # the first has compiled
        now[0] = at
        speed.seen(step)
    record = speed.record(30)
    wanted = {"kind": "timing", "step": 30, "steps_per_second": 10.0, "samples_per_second": 2560.0, "mfu": 5.0}
    assert record == wanted | {"none": 0.0}
    speed.pause()
    now[0] = 152.0
    speed.seen(40)
    assert speed.record(40)["steps_per_second"] == 0.2
    speed.pause()
    for step, at in ((50, 200.0), (60, 202.0)):
        now[0] = at
        speed.seen(step)
    assert speed.record(60)["steps_per_second"] == 5.0
    lines = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert lines == told and [line["step"] for line in lines] == [30, 40, 60]


def test_peaks():
    assert peak_of("cpu") is None and peak_of("NVIDIA A1000") is None
    assert peak_of("NVIDIA H100 80GB HBM3") == PEAKS["NVIDIA H100"] and peak_of("NVIDIA H100 PCIe") == 756e12
    assert (
        peak_of("NVIDIA A100-SXM4-80GB") == 312e12 and peak_of("TPU v5 lite") == 197e12 and peak_of("TPU v5") == 459e12
    )


class Fake(types.ModuleType):
    """tensorboardX and wandb at once, as far as they are used."""

    def __init__(self):
        super().__init__("fake")
        self.opened, self.values, self.closed = [], [], 0

    def SummaryWriter(self, folder, purge_step):
        self.opened.append((folder, purge_step))
        return self

    def init(self, **options):
        self.opened.append(options)
        return self

    def add_scalar(self, tag, value, step):
        self.values.append((tag, value, step))

    def log(self, values):
        self.values.extend((tag, value, values["step"]) for tag, value in values.items() if tag != "step")

    def close(self):
        self.closed += 1

    finish = close


def test_other_writers_get_every_record(tmp_path, monkeypatch):
    boards = {"tensorboardX": Fake(), "wandb": Fake()}
    for name, fake in boards.items():
        fake.__spec__ = types.SimpleNamespace()
        monkeypatch.setitem(sys.modules, name, fake)
    config = CONFIG | {"epochs": 2, "log": ["tensorboard", "wandb"], "checkpoint_every_epochs": 1}
    epoch = prepare(resolve(config)).grid.epoch

    def stop(done, total, last):
        if epoch < done < 2 * epoch:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", on_progress=stop)
    for fake in boards.values():
        fake.values.clear()
    train(config, tmp_path / "run")
    later = [record for record in read_metrics(tmp_path / "run" / "metrics.jsonl") if record["step"] > epoch]
    wanted = {(tag, value, record["step"]) for record in later for tag, value in scalars(record)}
    for fake in boards.values():
        assert {value for value in fake.values if not value[0].startswith("timing")} == wanted
        assert fake.closed == 2
    assert ("eval/loss/1" in {tag for tag, _, _ in wanted}) and any("Dense_0" in tag for tag, _, _ in wanted)
    assert boards["tensorboardX"].opened == [
        (str(tmp_path / "run" / "tensorboard"), None), (str(tmp_path / "run" / "tensorboard"), epoch + 1),
    ]  # fmt: skip
    first, second = boards["wandb"].opened
    assert first == second and first["name"] == "run" and first["resume"] == "allow"


@pytest.mark.parametrize("name, package", [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_writer_without_its_package_is_one_line(name, package, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda found: None)
    with pytest.raises(
        ConfigError, match=rf"log: '{name}' needs the package {package}: pip install 'sparsejax\[log\]'"
    ):
        train(IMAGES | {"log": [name]}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_real_run_writes_its_timing_apart(tmp_path):
    config = CONFIG | {"epochs": 2, "chunk_steps": 3, "eval_every_epochs": 1}
    trial = prepare(resolve(config))
    assert trial.rates_of_a_step == {"steps_per_second": 1.0, "tokens_per_second": 2 * 8 * 12.0}
    train(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "timing.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [trial.grid.epoch, 2 * trial.grid.epoch]
    for line in lines:
        assert (
            line["tokens_per_second"] == pytest.approx(192 * line["steps_per_second"], rel=1e-3) and "mfu" not in line
        )
    assert "per_second" not in (tmp_path / "run" / "metrics.jsonl").read_text()

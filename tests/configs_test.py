"""The config files beside the package: each resolves, as it is and as every trial of its sweep."""

import importlib.util
from pathlib import Path

import pytest

from sparsejax.launch.hyper import h
from sparsejax.training.config import resolve

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "configs").glob("*.py"), *(ROOT / "experiments").glob("*/sweep.py")])


def loaded(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_config_and_every_trial_of_its_sweep_resolves(path):
    module = loaded(path)
    assert resolve(module.get_config())["epochs"] == module.get_config().epochs
    trials = [
        resolve(module.get_config(",".join(f"{k}={v!r}" for k, v in trial.items()))) for trial in module.get_hyper(h)
    ]
    assert len({str(trial) for trial in trials}) == len(trials) > 3
    assert {"dense", "rigl"} <= {trial["method"] for trial in trials}


def test_the_last_mask_update_follows_the_length_of_the_run():
    module = loaded(ROOT / "configs/cifar_resnet.py")
    assert module.get_config("epochs=8").method_args.update_end == 390 * 8 * 3 // 4
    assert module.get_config("epochs=8,data.limit=12800").method_args.update_end == 100 * 8 * 3 // 4

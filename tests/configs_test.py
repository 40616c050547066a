"""The config files beside the package: each resolves with its sweep, can be built, and says what it is."""

import functools
import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import distributions
from sparsejax.data import Corpus, Dataset
from sparsejax.launch.config import load
from sparsejax.launch.trials import expand
from sparsejax.leaves import except_, flax_layout, select_leaves
from sparsejax.training.config import resolve
from sparsejax.training.methods import make_transform
from sparsejax.training.model import make_model
from sparsejax.transforms import start

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "configs").glob("*.py"), *(ROOT / "experiments").glob("*/sweep.py")])
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")

# Recipes in whose tables RigL has no part.
WITHOUT_RIGL = {
    "jackpots_cifar.py", "lottery_lenet.py", "random_pruning.py", "snip_lenet.py", "synflow_cifar.py",
}  # fmt: skip
# Their docstrings, or a README beside them, have measured tables and times.
MEASURED = {"digits.py", "mnist_lenet.py", "sweep.py"}
# The data sets of configs as models see them: image and number of classes, or number of tokens.
DATA = {
    "digits": ((8, 8), 10), "mnist": ((28, 28), 10), "cifar10": ((32, 32, 3), 10), "cifar100": ((32, 32, 3), 100),
    "image_folder": ((224, 224, 3), 1000),  # ImageNet
    "text": 65,  # characters of Shakespeare
}  # fmt: skip


@functools.cache
def trials(path):
    """The config as it is, and each trial of its sweep, resolved."""
    file = load(str(path), hyper_too=True)
    found = expand(file, {})
    assert len(found) == len(file.trials), "no two trials are the same"
    return resolve(file.fresh()), [trial.config for trial in found]


def docstring(path):
    return " ".join(path.read_text().split('"""')[1].split())


def is_recipe(path):
    return "arXiv:" in docstring(path)


def data(config):
    """A data set without data."""
    like = DATA.get(config["dataset"])
    if config["dataset"] == "image_folder":
        assert config["data"]["image_size"] == like[0][0]
    if isinstance(like, tuple):
        x, y = np.zeros((1, *like[0]), np.uint8), np.zeros(1, np.int32)
        return Dataset(x, y, x, y, like[1], 0.0, 1.0)
    vocab = 256 if config["data"].get("unit") == "byte" else config["data"].get("vocab", like)
    return Corpus(np.zeros(1, np.uint16), np.zeros(1, np.uint16), vocab, len, str)


@functools.cache
def shapes(fields):
    """The params of the model that these fields name, nothing is computed."""
    config = json.loads(fields) | {"method": "static"}  # another method has the same params
    source = data(config)
    model = make_model(config, source)
    images = isinstance(source, Dataset)
    x = jax.ShapeDtypeStruct(source.train_x.shape, jnp.float32) if images else jax.ShapeDtypeStruct((1, 2), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), x)["params"]


def params_of(config):
    return shapes(json.dumps({name: config[name] for name in ("model", "model_args", "dtype", "dataset", "data")}))


@each_file
def test_every_config_and_every_trial_of_its_sweep_resolves(path):
    own, swept = trials(path)
    assert own["epochs"] == load(str(path)).fresh().epochs
    assert len(swept) > 3
    methods = {trial["method"] for trial in swept}
    assert "dense" in methods and methods - {"dense"}
    if path.parent.name == "configs":
        assert ("rigl" in methods) != (path.name in WITHOUT_RIGL)


def test_lists_of_files_are_right():
    assert {path.name for path in FILES} >= WITHOUT_RIGL | MEASURED
    table = (ROOT / "configs" / "README.md").read_text()
    recipes = {path.name for path in FILES if is_recipe(path) and path.parent.name == "configs"}
    assert recipes == set(re.findall(r"^\| \[(\w+\.py)\]", table, re.M))


@each_file
def test_options_are_overrides(path):
    """FILE:field=value does what --config.field=value does."""
    assert resolve(load(f"{path}:epochs=7").fresh())["epochs"] == 7
    assert resolve(load(f"{path}:method=dense").fresh())["method_args"] == {}


@each_file
def test_the_docstring_says_how_to_run_it_what_to_expect_and_how_long_it_takes(path):
    words = docstring(path)
    assert re.search(rf"sparsejax (train|sweep) --config {path.relative_to(ROOT)}[ :]", words)
    assert "Expected" in words or "Measured" in words
    if is_recipe(path) and path.name not in MEASURED:
        assert re.search(r"Time\b.*\bestimate", words), "a recipe's time is an estimate, and marked as one"


@each_file
def test_its_models_can_be_built_and_have_the_stated_number_of_parameters(path):
    own, swept = trials(path)
    size = lambda config: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params_of(config)))
    sizes = [size(config) for config in (own, *swept)]
    stated = [int(number.replace(",", "")) for number in re.findall(r"(\d+(?:,\d{3})+) parameters", docstring(path))]
    assert set(stated) <= set(sizes)
    assert not stated or sizes[0] in stated


@each_file
def test_its_methods_take_its_models(path, monkeypatch):
    """Globs of `where` match, N:M divides, and the densities of the distribution exist, for every trial."""
    # where the first weights are kept is drawn in programs that take long to trace; their shapes are all it needs
    monkeypatch.setattr(start, "drawn_masks", lambda key, draws: [jnp.ones(draw.shape, bool) for draw in draws])
    different = {}
    for config in trials(path)[1]:
        if config["method"] == "dense":
            continue
        transform = make_transform(config, 10**6, sparsity=config["sparsity"])
        words = [config["method_args"].get(name) for name in ("where", "pattern", "distribution")]
        different[json.dumps([config["model"], config["model_args"], words])] = transform, params_of(config)
    for transform, params in different.values():
        jax.eval_shape(transform.init, params)


def test_the_last_mask_update_follows_the_length_of_the_run():
    def update_end(option, file="cifar_resnet"):
        return load(f"{ROOT / 'configs' / file}.py:{option}").fresh().method_args.update_end

    assert update_end("epochs=8") == 390 * 8 * 3 // 4
    assert update_end("epochs=8,data.limit=12800") == 100 * 8 * 3 // 4
    assert update_end("epochs=32", "imagenet_resnet50") == 312 * 25


def test_the_sparsity_of_the_set_mlp_is_epsilon_20():
    """Each sparse layer keeps 20 (n_in + n_out) weights, as the paper has it."""
    config, _ = trials(ROOT / "configs" / "set_mlp.py")
    sparse = select_leaves(params_of(config), except_("Dense_3/*"))
    densities = distributions.er(sparse, 1 - config["sparsity"], flax_layout)
    kept = jax.tree.map(lambda leaf, density: round(leaf.size * density), sparse, densities)
    assert jax.tree.leaves(kept) == [20 * (3072 + 4000), 20 * (4000 + 1000), 20 * (1000 + 4000)]

"""Programs on disk: which trials share them, that they give the same bits, and what a damaged one costs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from sparsejax.training import compiling, train
from sparsejax.training.compiling import CACHE, kept_in

CONFIG = {
    "method": "rigl",
    "sparsity": 0.8,
    "method_args": {"update_every": 5, "update_end": 12, "drop_fraction": 0.3},
    "model_args": {"features": [12]},
    "batch_size": 200,
    "epochs": 2,
    "learning_rate": 1e-2,
    "weight_decay": 1e-4,
    "seeds": 2,
}
SCRIPT = """
import json, sys, warnings
warnings.simplefilter("error")
from sparsejax.training import train
from sparsejax.training.profile import collected
with collected() as profile:
    train(json.loads(sys.argv[1]), sys.argv[2])
print(json.dumps(profile.cache))
"""


def run(workdir, environment=None, **changes):
    """Trains in a process of its own, as a worker of a sweep does; {"hits", "misses"} of its cache."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    env |= {"XLA_FLAGS": "", "PYTHONPATH": str(Path(__file__).resolve().parents[1]), **(environment or {})}
    command = [sys.executable, "-c", SCRIPT, json.dumps(CONFIG | changes), str(workdir)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def entries(parent):
    return sorted((parent / CACHE).glob("*/*-cache"))


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A directory with one run that found nothing in the cache."""
    parent = tmp_path_factory.mktemp("runs")
    found = run(parent / "first")
    assert found["hits"] == 0 and found["misses"] == len(entries(parent)) > 3
    return parent


def metrics(workdir):
    return (workdir / "metrics.jsonl").read_bytes()


def test_the_same_trial_compiles_nothing_and_has_the_same_bits(filled):
    assert run(filled / "again") == {"hits": len(entries(filled)), "misses": 0}
    assert metrics(filled / "again") == metrics(filled / "first")


def test_trials_over_rates_and_seeds_compile_nothing(filled):
    other = {"learning_rate": 3e-3, "weight_decay": 1e-3, "seeds": [5, 7]}
    found = run(filled / "rates", **other, method_args=CONFIG["method_args"] | {"drop_fraction": 0.1})
    assert found == {"hits": len(entries(filled)), "misses": 0}
    assert metrics(filled / "rates") != metrics(filled / "first")


@pytest.mark.long
def test_another_sparsity_compiles_its_first_masks_alone(filled):
    before = set(entries(filled))
    assert run(filled / "sparser", sparsity=0.9) == {"hits": len(before) - 1, "misses": 1}
    (made,) = set(entries(filled)) - before
    assert made.name.startswith("jit_first_state")
    made.unlink()


@pytest.mark.long
def test_entries_cut_short_are_compiled_anew(filled, tmp_path):
    """As a killed process leaves them; the script turns a warning of JAX's into an error."""
    for index, entry in enumerate(entries(filled)):
        copy = tmp_path / entry.relative_to(filled)
        copy.parent.mkdir(parents=True, exist_ok=True)
        data = entry.read_bytes()
        copy.write_bytes(data[: (0, len(data) // 2, len(data) - 1)[index % 3]])
    assert run(tmp_path / "run") == {"hits": 0, "misses": len(entries(filled))}
    assert metrics(tmp_path / "run") == metrics(filled / "first")
    assert [entry.name for entry in entries(tmp_path)] == [entry.name for entry in entries(filled)]
    assert all(compiling._whole(entry.read_bytes()) for entry in entries(tmp_path))


def test_the_users_own_cache_is_used_as_it_is(filled, tmp_path):
    own = {
        "JAX_COMPILATION_CACHE_DIR": str(entries(filled)[0].parent),
        "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none",
    }
    assert run(tmp_path / "run", own)["hits"] >= len(entries(filled)) - 1
    assert not (tmp_path / CACHE).exists()


def settings():
    return {name: value for name, value in jax.config.values.items() if "cache" in name}


def test_settings_are_as_before_afterwards(tmp_path):
    before = settings()
    with kept_in(tmp_path):
        assert jax.config.jax_compilation_cache_dir.startswith(str(tmp_path.resolve()))
    assert settings() == before
    jax.config.update("jax_enable_compilation_cache", False)  # what JAX_ENABLE_COMPILATION_CACHE=false does
    try:
        with kept_in(tmp_path):
            assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_enable_compilation_cache", True)


def test_options_that_xla_does_not_know_are_left_out():
    assert compiling.accepted({"xla_no_such_option": "1"}) == {}
    assert compiling.accepted({"xla_backend_optimization_level": 1}) == {"xla_backend_optimization_level": 1}


def test_bad_input_makes_no_cache(tmp_path):
    with pytest.raises(ValueError, match="batch_size"):
        train(CONFIG | {"batch_size": 5000}, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []

"""Profiles: parts that add up, what JAX reports, and the table of a sweep."""

import json
import re

import jax
import jax.numpy as jnp
import pytest

from sparsejax import cli
from sparsejax.training import profile as profiles
from sparsejax.training.profile import PARTS, collected, span

CONFIG = """
from sparsejax.training import default_config

def get_config(arg=""):
    config = default_config()
    config.method = "rigl"
    config.method_args = {"update_every": 4}
    config.model_args = {"features": (16,)}
    config.epochs = 1
    config.seeds = 2
    return config

def get_hyper(h):
    return h.product({"sparsity": [0.5, 0.75]})
"""


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves."""
    now = [100.0]
    monkeypatch.setattr(profiles.time, "perf_counter", lambda: now[0])

    def after(seconds):
        now[0] += seconds

    return after


def test_a_span_inside_another_takes_its_time_from_it(clock):
    with collected() as profile:
        clock(1)
        with span("train"):
            clock(2)
            with span("checkpoint"):
                clock(4)
            clock(8)
        with pytest.raises(ValueError), span("train"):
            clock(16)
            raise ValueError
        clock(32)
    assert profile.seconds == {"other": 33, "train": 26, "checkpoint": 4}


def test_what_jax_reports_is_taken_out_of_the_span_it_happens_in(clock):
    """The inner function's tracing lies inside the outer's: it counts once."""
    with collected() as profile, span("dispatch"):
        clock(3)
        jax.monitoring.record_event_duration_secs(profiles._TRACING[0], 2.0)
        clock(1)
        jax.monitoring.record_event_duration_secs(profiles._TRACING[0], 3.5)
        clock(5)
        jax.monitoring.record_event_duration_secs(profiles._COMPILING, 4.0)
        jax.monitoring.record_event("/jax/compilation_cache/cache_hits")
    assert profile.seconds == {"dispatch": 1.5, "trace": 3.5, "compile": 4.0, "other": 0}
    assert profile.cache == {"hits": 1, "misses": 0}


def test_a_profile_inside_another_has_its_time_for_itself(clock):
    with collected() as outer, span("report"), collected() as inner:
        clock(1)
        jax.monitoring.record_event_duration_secs(profiles._COMPILING, 0.25)
    assert inner.seconds == {"other": 0.75, "compile": 0.25}
    assert outer.seconds == {"other": 0, "report": 1}


def test_nothing_is_collected_unless_wanted():
    with collected(False) as profile, span("train"):
        jax.jit(lambda x: x + 1)(jnp.float32(1))
    assert profile is None


def test_real_programs_are_counted():
    with collected() as profile:
        jax.jit(lambda x: x * 3)(jnp.arange(7)).block_until_ready()
    assert profile.seconds["trace"] > 0 and profile.seconds["compile"] > 0


@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.long)])
def test_a_sweep_shows_where_its_time_went(tmp_path, monkeypatch, capsys, workers):
    monkeypatch.setenv("XLA_FLAGS", "")
    (tmp_path / "c.py").write_text(CONFIG)
    out = tmp_path / "out"
    assert (
        cli.main(["sweep", f"--config={tmp_path / 'c.py'}", f"--out={out}", f"--workers={workers}", "--profile"]) == 0
    )
    shown = capsys.readouterr().out
    table = shown[shown.index("seconds  ") :].splitlines()
    columns = re.split(r"\s{2,}", table[0])
    assert {"trace", "compile", "train", "checkpoint", "report", "cache hits"} <= set(columns)
    assert [line.split()[0] for line in table[1:6]] == ["0.5", "0.75", "(sweep)", "total", "share"]
    assert "idle: " in table[6]
    written = json.loads((out / "profile.json").read_text())
    assert set(written["trials"]) == {"0.5", "0.75"} and written["workers"] == int(workers)
    for name, entry in written["trials"].items():
        assert entry == json.loads((out / "trials" / name / "profile.json").read_text())
        assert set(entry["seconds"]) <= set(PARTS) and entry["seconds"]["train"] > 0


def test_train_shows_its_profile_and_writes_none_without_the_flag(tmp_path, capsys):
    (tmp_path / "c.py").write_text(CONFIG)
    train = ["train", f"--config={tmp_path / 'c.py'}", "--workdir"]
    assert cli.main([*train, str(tmp_path / "a"), "--profile"]) == 0
    assert re.search(r"^share .* %", capsys.readouterr().out, re.MULTILINE)
    written = (tmp_path / "a/profile.json").read_text()
    seconds = json.loads(written)["seconds"]
    assert {"start", "data", "init", "dispatch", "train", "evaluate", "checkpoint", "metrics"} <= set(seconds)
    assert cli.main([*train, str(tmp_path / "a"), "--profile"]) == 0  # done already: what it took is still there
    assert (tmp_path / "a/profile.json").read_text() == written
    assert cli.main([*train, str(tmp_path / "b")]) == 0
    assert not (tmp_path / "b/profile.json").exists()

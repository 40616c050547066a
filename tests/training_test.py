"""Training: what a run writes, that it can be interrupted anywhere, and what it says to bad input."""

import fcntl
import itertools
import json
import os
import signal
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparsejax.data import Dataset, digits
from sparsejax.masks import get_masks
from sparsejax.models import MLP
from sparsejax.topology import chain_paths
from sparsejax.training import (
    ConfigError,
    NonFiniteLoss,
    Preempted,
    classification,
    default_config,
    loop,
    programs,
    resolve,
    train,
    with_options,
)  # fmt: skip
from sparsejax.training.checkpoint import Checkpoints
from sparsejax.training.evaluation import make_evaluate, make_test_set
from sparsejax.training.methods import make_optimizer, make_transform
from sparsejax.training.metrics import MetricsWriter, read_metrics
from sparsejax.training.order import epoch_order
from sparsejax.training.programs import get_programs
from sparsejax.training.schedules import make_schedule
from sparsejax.training.trial import Grid, prepare

SMALL = {
    "model_args": {"features": [24]},
    "batch_size": 200,  # 7 steps an epoch; 37 of the 1,437 images are left out of each
    "epochs": 6,
    "learning_rate": 1e-2,
    "seeds": 2,
    "sparsity": 0.8,
    "eval_every_epochs": 2,
    "checkpoint_every_epochs": 1,
    "chunk_steps": 4,
}
STEPS = 42
ARGS = {
    "dense": {},
    "static": {},
    "one_shot": {"at_step": 10},
    "gmp": {"update_every": 5, "update_end": 30},
    "set": {"update_every": 5, "update_end": 30},
    "rigl": {"update_every": 5, "update_end": 30},
    "snip": {"batches": 2},
}


def small(method, **changes):
    return SMALL | {"method": method, "method_args": ARGS[method]} | changes


def final_state(config, workdir):
    like = prepare(resolve(config)).like
    checkpoints = Checkpoints(workdir / "checkpoints", keep=9)
    step, state = checkpoints.restore(like)
    checkpoints.close()
    assert step == STEPS == int(state.step)
    return state


def bits(tree):
    def one(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes()

    return [one(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Each method's small run, made once: method -> (workdir, result)."""
    made = {}

    def get(method):
        if method not in made:
            workdir = tmp_path_factory.mktemp("runs") / method
            made[method] = workdir, train(small(method), workdir)
        return made[method]

    return get


@pytest.mark.parametrize("method", ARGS)  # every_method_test has them all
def test_what_a_run_writes(runs, method):
    workdir, result = runs(method)
    assert json.loads((workdir / "result.json").read_text()) == result
    assert json.loads((workdir / "config.json").read_text()) == resolve(small(method))
    assert result["steps"] == STEPS and result["seeds"] == [0, 1] and len(result["accuracy"]) == 2
    assert min(result["accuracy"]) > 0.3
    records = read_metrics(workdir / "metrics.jsonl")
    assert [r["step"] for r in records] == sorted(r["step"] for r in records)
    evals = [r for r in records if r["kind"] == "eval"]
    assert [r["step"] for r in evals] == [14, 28, 42] and evals[-1]["accuracy"] == result["accuracy"]
    weights = 64 * 24 + 24 * 10
    assert result["weights"] == weights
    if method == "dense":
        assert result["weights_kept"] == [weights] * 2 and result["training_flops"] == result["inference_flops"] == 1.0
    else:
        state = final_state(small(method), workdir)
        masks = get_masks(state.opt_state)
        for layer, params in state.params.items():
            kernel, mask = np.asarray(params["kernel"]), np.asarray(masks[layer]["kernel"])
            assert (kernel[~mask] == 0).all() and masks[layer]["bias"] is None
            np.testing.assert_allclose(result["density"][f"{layer}/kernel"], mask.mean((1, 2)))
        kept = sum(np.asarray(m).sum((1, 2)) for m in jax.tree.leaves(masks))
        assert result["weights_kept"] == kept.tolist()
        assert abs(kept[0] / weights - 0.2) < 0.002
        assert 0 < result["inference_flops"] < 0.25 and result["inference_flops"] <= result["training_flops"] < 0.9


@pytest.mark.parametrize("method", ["static", "gmp", "set", "rigl"])
def test_mask_records_add_up(runs, method):
    """Density, grown and dropped of each record follow from the record before; exploration never shrinks."""
    records = [r for r in read_metrics(runs(method)[0] / "metrics.jsonl") if r["kind"] == "masks"]
    sizes = {"Dense_0/kernel": 64 * 24, "Dense_1/kernel": 24 * 10}
    updates = {"static": [], "gmp": range(6, 32, 5), "set": range(6, 30, 5), "rigl": range(6, 30, 5)}[method]
    assert [r["step"] for r in records] == [0, *updates]
    for before, after in itertools.pairwise(records):
        for path, size in sizes.items():
            moved = np.array(after["grown"][path]) - after["dropped"][path]
            np.testing.assert_allclose(
                np.array(after["density"][path]) * size, np.array(before["density"][path]) * size + moved
            )
        assert (np.array(after["exploration"]) >= before["exploration"]).all()
    for record in records:
        total = sum(np.array(record["density"][path]) * size for path, size in sizes.items()) / sum(sizes.values())
        np.testing.assert_allclose(record["total_density"], total)
    start, end = records[0], records[-1]
    if method in ("set", "rigl"):
        grown = sum(sum(np.array(r["grown"][path]) for path in sizes) for r in records) / sum(sizes.values())
        assert (np.array(end["exploration"]) > start["exploration"]).all()
        assert (np.array(end["exploration"]) <= start["exploration"] + grown + 1e-12).all()
        assert start["exploration"] == start["total_density"] == end["total_density"]


@pytest.mark.parametrize("method", ["gmp", "rigl"])
def test_mask_records_say_what_the_masks_look_like(runs, method):
    """Against the masks of the final state, and against each other."""
    workdir, result = runs(method)
    records = read_metrics(workdir / "metrics.jsonl")
    moved = [r for r in records if r["kind"] == "masks"]
    last, state = moved[-1], final_state(small(method), workdir)
    masks = {f"{layer}/kernel": np.asarray(m["kernel"]) for layer, m in get_masks(state.opt_state).items()}
    first = {path: np.asarray(mask) for path, mask in state.first_masks.items()}
    ever = {path: np.asarray(mask) for path, mask in state.ever_active.items()}
    for path, mask in masks.items():
        fans = mask.sum(1)
        for name, wanted in (
            ("flips_from_start", (mask ^ first[path]).sum((1, 2))),
            ("explored", ever[path].mean((1, 2))),
            ("fan_in_min", fans.min(1)),
            ("fan_in_mean", fans.mean(1)),
            ("fan_in_max", fans.max(1)),
            ("no_input", (fans == 0).mean(1)),
            ("no_output", (mask.sum(2) == 0).mean(1)),
        ):
            np.testing.assert_allclose(last[name][path], wanted, err_msg=name)
    weights = sum(mask[0].size for mask in masks.values())
    flips = sum((masks[path] ^ first[path]).sum((1, 2)) for path in masks)
    np.testing.assert_allclose(last["flip_rate_from_start"], flips / weights)
    assert last["collapsed"] == [0, 0]
    for record in moved:
        sad = sum(np.array(record["grown"][path]) + record["dropped"][path] for path in masks)
        kept = np.array(record["total_density"]) * weights
        assert record["sad"] == sad.tolist()
        np.testing.assert_allclose(record["sad_of_active"], sad / kept)
        np.testing.assert_allclose(record["flip_rate"], sad / weights)
    topology = [r for r in records if r["kind"] == "topology"]
    assert [r["step"] for r in topology] == [14, 28, 42] and "fan_in_histogram" not in topology[0]
    assert np.array(topology[-1]["input_connections"]).tolist() == masks["Dense_0/kernel"].sum(2).tolist()
    found = topology[-1]["fan_in_histogram"]["Dense_1/kernel"]
    assert np.dot(found["neurons"], found["edges"][:-1]).shape == (2,) and np.sum(found["neurons"], 1).tolist() == [
        10,
        10,
    ]
    assert 0 <= min(topology[-1]["dead_units"]["relu_0"]) <= 1
    assert result["parameters"] == weights + 34 and result["mask_bits"] == weights
    assert result["bytes"]["csr"][0] == 8 * last["total_density"][0] * weights + 4 * (64 + 24 + 2) + 4 * 34


def test_gradient_norms_are_those_of_the_last_step(runs):
    """Of a run whose one step is its last, against the gradient of its loss at the initial weights."""
    config = small("rigl", epochs=1, batch_size=1437, seeds=[0], eval_every_epochs=1)
    trial = prepare(resolve(config))
    state, _ = trial.init()
    params, masks = jax.tree.map(np.asarray, (state.params, get_masks(state.opt_state)))
    _, report = trial.programs.chunk(trial.rates, state, trial.fixed, trial.feed(0, 1), 1)
    data = digits()
    x, y = data.train_x.reshape(1437, -1) * np.float64(data.scale) + data.offset, data.train_y
    first, second = (jax.tree.map(lambda p: p[0].astype(np.float64), params[f"Dense_{i}"]) for i in (0, 1))
    before = x @ first["kernel"] + first["bias"]
    logits = np.maximum(before, 0) @ second["kernel"] + second["bias"]
    shares = np.exp(logits - logits.max(1, keepdims=True))
    error = (shares / shares.sum(1, keepdims=True) - np.eye(10)[y]) / len(y)
    grads = {
        "Dense_0/kernel": x.T @ (error @ second["kernel"].T * (before > 0)),
        "Dense_1/kernel": np.maximum(before, 0).T @ error,
    }
    for path, grad in grads.items():
        mask = masks[path.split("/")[0]]["kernel"][0]
        for kind, where in (("active", mask), ("inactive", ~mask)):
            found = report["gradients"][kind][path]
            np.testing.assert_allclose(found, [np.linalg.norm(grad[where])], rtol=1e-3)


def test_weights_on_a_path_are_logged_where_asked(tmp_path):
    config = small("static", log_topology=True, epochs=2, sparsity=0.97, init="density")
    train(config, tmp_path / "run")
    state = prepare(resolve(config)).init()[0]
    (record,) = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "topology"]
    for seed in range(2):
        masks = jax.tree.map(lambda mask, seed=seed: np.asarray(mask)[seed], get_masks(state.opt_state))
        on = chain_paths(masks, ["Dense_0/kernel", "Dense_1/kernel"])
        assert [record["effective_density"][path][seed] for path in on] == [mask.mean() for mask in on.values()]
        kept = sum(mask.sum() for mask in on.values())
        assert record["effective_sparsity"][seed] == pytest.approx(1 - kept / (64 * 24 + 24 * 10))
        active = sum(mask.sum() for mask in jax.tree.leaves(masks))
        assert record["kept_off_path"][seed] == pytest.approx(1 - kept / active) and kept < active


def test_masks_that_change_at_every_step_cut_no_chunks(tmp_path):
    """Chunks are whole, and what was active for one step inside of a chunk counts as explored."""
    often = small("set", method_args={"update_every": 1, "update_end": 40, "drop_fraction": 0.5}, epochs=2)
    train(often, tmp_path / "often")
    records = read_metrics(tmp_path / "often" / "metrics.jsonl")
    assert [r["step"] for r in records if r["kind"] == "masks"] == [0, 5, 7, 9, 13, 14]
    ends = [r for r in records if r["kind"] == "masks"]
    grown = sum(sum(np.array(r["grown"][path]) for path in r["grown"]) for r in ends)
    assert all(np.array(ends[-1]["exploration"]) > ends[0]["exploration"] + grown / (64 * 24 + 24 * 10))


@pytest.mark.parametrize("method", ["dense", "gmp", "set", "rigl"])
def test_interrupted_at_any_chunk_ends_with_the_same_bits(runs, method, tmp_path):
    """In-process: an exception leaves what a kill between two chunks would leave; real kills are in kill_test.py."""
    workdir, result = runs(method)
    stops = [3, 9, 14, 30, 42]

    def on_progress(done, total, last):
        assert total == STEPS and len(last["loss"]) == 2
        if stops and done >= stops[0]:
            raise KeyboardInterrupt(stops.pop(0))

    while stops:
        with pytest.raises(KeyboardInterrupt):
            train(small(method), tmp_path / "run", on_progress=on_progress)
        assert not (tmp_path / "run" / "result.json").exists()
    again = train(small(method), tmp_path / "run", on_progress=on_progress)
    times = ("seconds", "date")
    assert {k: v for k, v in again.items() if k not in times} == {k: v for k, v in result.items() if k not in times}
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (workdir / "metrics.jsonl").read_bytes()
    assert bits(final_state(small(method), tmp_path / "run")) == bits(final_state(small(method), workdir))


@pytest.mark.parametrize("method", ["gmp", "rigl"])
def test_trials_that_differ_in_sparsity_share_one_program(runs, method, tmp_path, monkeypatch):
    """The program of another sparsity gives the same bits as one of its own, and nothing is compiled twice."""
    runs(method)
    config = small(method, sparsity=0.95)
    train(config, tmp_path / "shared")
    assert get_programs(resolve(config), digits(), 7).chunk._cache_size() == 1
    monkeypatch.setattr(programs, "_cache", {})
    train(config, tmp_path / "own")
    assert bits(final_state(config, tmp_path / "shared")) == bits(final_state(config, tmp_path / "own"))
    assert (tmp_path / "shared" / "metrics.jsonl").read_bytes() == (tmp_path / "own" / "metrics.jsonl").read_bytes()


def test_seeds_together_are_the_seeds_alone(runs, tmp_path):
    """vmap changes the order of sums, not the run: the same start masks, nearly the same losses."""
    together = read_metrics(runs("static")[0] / "metrics.jsonl")
    train(small("static", seeds=[1]), tmp_path / "run")
    alone = read_metrics(tmp_path / "run" / "metrics.jsonl")
    first, also = (next(r for r in records if r["kind"] == "masks") for records in (together, alone))
    assert first["density"]["Dense_0/kernel"][1] == also["density"]["Dense_0/kernel"][0]
    losses = [[r["loss"][-1] for r in records if r["kind"] == "train"] for records in (together, alone)]
    np.testing.assert_allclose(losses[0][:4], losses[1][:4], rtol=1e-4)
    assert together[-1]["accuracy"][0] != together[-1]["accuracy"][1] or losses[0] != losses[1]


def test_a_finished_run_returns_at_once(runs, monkeypatch):
    workdir, result = runs("dense")
    monkeypatch.setattr(loop, "prepare", lambda config: pytest.fail("a finished run was prepared again"))
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    assert train(small("dense"), workdir) == result
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}


def test_another_config_in_the_same_workdir(runs):
    workdir, _ = runs("rigl")
    with pytest.raises(ConfigError, match=r"another config: learning_rate is 0\.01 there and 0.02 here"):
        train(small("rigl", learning_rate=0.02), workdir)
    with pytest.raises(ConfigError, match=r"method_args\.update_every is 5 there and 6 here"):
        train(small("rigl", method_args=ARGS["rigl"] | {"update_every": 6}), workdir)


def test_a_second_process_on_one_workdir(tmp_path):
    (tmp_path / "run").mkdir()
    with open(tmp_path / "run" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="in use by another process"):
            train(small("dense"), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_sigterm_saves_and_exits_with_143(runs, tmp_path):
    handler = signal.getsignal(signal.SIGTERM)

    def on_progress(done, total, last):
        if done == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted) as caught:
        train(small("rigl", checkpoint_every_epochs=0), tmp_path / "run", on_progress=on_progress)
    assert caught.value.code == 143 and isinstance(caught.value, SystemExit)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [str(caught.value.step)]
    assert 9 < caught.value.step < 16
    train(small("rigl", checkpoint_every_epochs=0), tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (runs("rigl")[0] / "metrics.jsonl").read_bytes()
    assert bits(final_state(small("rigl"), tmp_path / "run")) == bits(final_state(small("rigl"), runs("rigl")[0]))


def test_in_another_thread_no_signal_handler_is_needed(runs, tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(train(small("dense"), tmp_path / "run")))
    thread.start()
    thread.join()
    assert results[0]["accuracy"] == runs("dense")[1]["accuracy"]


def test_a_damaged_newest_checkpoint_costs_one_checkpoint_only(runs, tmp_path):
    def on_progress(done, total, last):
        if done >= 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small("rigl"), tmp_path / "run", on_progress=on_progress)
    newest = tmp_path / "run" / "checkpoints" / "28"
    (newest / "default" / "manifest.ocdbt").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="checkpoints/28 is damaged and skipped"):
        train(small("rigl"), tmp_path / "run")
    assert bits(final_state(small("rigl"), tmp_path / "run")) == bits(final_state(small("rigl"), runs("rigl")[0]))
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (runs("rigl")[0] / "metrics.jsonl").read_bytes()


def test_a_loss_that_is_not_finite(tmp_path):
    config = small("static", optimizer="sgd", momentum=0.0, learning_rate=1e25, warmup_steps=40, schedule="constant")
    with pytest.raises(NonFiniteLoss, match=r"loss is (nan|inf) at step (\d+) \(seed 0\); the last good"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()
    losses = [r["loss"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "train"]
    assert np.isfinite(losses).all()
    with pytest.raises(NonFiniteLoss):  # and again, from the checkpoint if there is one
        train(config, tmp_path / "run")
    result = train(config | {"stop_on_nonfinite": False}, tmp_path / "go on")
    assert result["steps"] == STEPS and not np.isfinite(result["loss"]).any()


BAD = {
    "method: unknown 'rigel'; did you mean 'rigl'? one of ": {"method": "rigel"},
    "dataset: unknown 'digit'; did you mean 'digits'?": {"dataset": "digit"},
    "model: unknown 'mpl'; did you mean 'mlp'?": {"model": "mpl"},
    "optimizer: unknown 'adamww'; did you mean 'adamw'?": {"optimizer": "adamww"},
    "schedule: unknown 'cosin'; did you mean 'cosine'?": {"schedule": "cosin"},
    "config: unknown 'epoch'; did you mean 'epochs'?": {"epoch": 1},
    "method_args: unknown 'drop_fractoin'; did you mean 'drop_fraction'?": {"method_args": {"drop_fractoin": 0.1}},
    "method_args.update_every: 0 is not an integer >= 1": {"method_args": {"update_every": 0}},
    "method_args.distribution: unknown 'erl'": {"method_args": {"distribution": "erl"}},
    "method_args.pattern: unknown 'mn(2, 4)'": {"method_args": {"pattern": "mn(2, 4)"}},
    "nm(4, 2): N of every M needs": {"method_args": {"pattern": "nm(4, 2)"}},
    "is not a name or a call with plain numbers": {"method_args": {"pattern": "__import__('os').getcwd()"}},
    "drop_fraction=1.5 must lie in [0, 1]": {"method_args": {"drop_fraction": 1.5}},
    "drop_fraction: None; rigl takes a value there": {"method": "rigl", "method_args": {"drop_fraction": None}},
    "where: 'Conv_*' matches no leaf": {"method_args": {"where": "only('Conv_*')"}},
    "model_args: unknown 'feature'; did you mean 'features'?": {"model_args": {"feature": [3]}},
    "data: unknown 'test_sise'; did you mean 'test_size'?": {"data": {"test_sise": 3}},
    "test_size: 0 is not in 1..1796": {"data": {"test_size": 0}},
    "sparsity: 1.0 is not a number in [0, 1)": {"sparsity": 1.0},
    "sparsity: '0.9' is not a number": {"sparsity": "0.9"},
    "epochs: 0 is not an integer >= 1": {"epochs": 0},
    "epochs: True is not an integer": {"epochs": True},
    "epochs: 2.5 is not an integer": {"epochs": 2.5},
    "learning_rate: nan is not a number > 0": {"learning_rate": float("nan")},
    "seeds: [1, 1] is not": {"seeds": (1, 1)},
    "seeds: [] is not": {"seeds": []},
    "batch_size: 1438 is more than the 1437 training examples": {"batch_size": 1438},
    "data_dir: is empty": {"dataset": "mnist"},
    "data_dir: '/no/such/place' is not a directory": {"dataset": "mnist", "data_dir": "/no/such/place"},
    "weight_decay: 0.1 with optimizer 'adam'": {"optimizer": "adam", "weight_decay": 0.1},
    "warmup_steps: 42 is not below the 42 steps of the run": {"warmup_steps": 42, "schedule": "cosine"},
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_is_one_line_and_leaves_nothing_behind(words, tmp_path):
    with pytest.raises(ConfigError) as caught:
        train(small("rigl") | BAD[words], tmp_path / "run")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_workdirs_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is not a directory"):
        train(small("dense"), tmp_path / "file")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config.json: cannot be read"):
        train(small("dense"), tmp_path / "run")


def test_options_of_a_config():
    config = default_config()
    config.method_args = {"update_every": 10, "update_end": config.get_ref("epochs") * 7}
    got = resolve(with_options(config, "epochs=3, seeds=(4, 7),method=rigl,stop_on_nonfinite=false,data_dir=a b"))
    assert (got["epochs"], got["seeds"], got["method"], got["stop_on_nonfinite"]) == (3, [4, 7], "rigl", False)
    assert got["method_args"]["update_end"] == 21 and got["data_dir"] == "a b"
    assert resolve(with_options(config, "")) == got
    for arg, words in (
        ("epochs", "'epochs' is not of the form key=value"),
        ("epoch=3", "unknown 'epoch'; did you mean 'epochs'"),
        ("method_args.update_ever=3", "did you mean 'update_every'"),
        ("epochs=three", "epochs: 'three' is not of type int"),
    ):
        with pytest.raises(ConfigError, match=words):
            with_options(config, arg)


def test_grid_does_not_depend_on_where_it_is_entered():
    grid = Grid(chunk=7, start=2, update=5, epoch=11, evaluate=22, save=33, total=66)
    ends, step = [], 0
    while step < grid.total:
        step = grid.after(step)
        ends.append(step)
    assert set(ends) == {s for s in range(1, 67) if s % 11 == 0 or s % 5 == 3 or s % 7 == 1}
    for step in range(66):
        assert grid.after(step) == min(end for end in ends if end > step)
    assert [s for s in ends if grid.evaluates(s)] == [22, 44, 66] and [s for s in ends if grid.saves(s)] == [33, 66]


def test_nothing_is_read_back_before_the_next_chunk_is_under_way(tmp_path, monkeypatch):
    """A chunk is one dispatch; its report is fetched once the next one was handed over, but before a checkpoint."""
    trial = prepare(resolve(small("rigl", checkpoint_every_epochs=3, eval_every_epochs=6)))
    events, reports = [], {}

    def chunk(*arguments):
        state, report = trial.programs.chunk(*arguments)
        reports[id(report)] = report  # kept, so that no other report gets this id
        events.append(("chunk", id(report)))
        return state, report

    def fetch(value):
        if id(value) in reports:
            events.append(("fetch", id(value)))
        return jax.device_get(value)

    fake = types.SimpleNamespace(**{**vars(jax), "device_get": fetch})
    monkeypatch.setattr(loop, "jax", fake)
    monkeypatch.setattr(loop, "prepare", lambda *_: trial._replace(programs=trial.programs._replace(chunk=chunk)))
    monkeypatch.setattr(Checkpoints, "save", lambda self, step, state, data: events.append(("save", step)))
    train(small("rigl", checkpoint_every_epochs=3, eval_every_epochs=6), tmp_path / "run")
    waiting, most = [], 0
    for kind, which in events:
        if kind == "chunk":
            waiting.append(which)
        elif kind == "fetch":
            assert which == waiting.pop(0)
            most = max(most, len(waiting))
        else:
            assert not waiting  # what is saved was seen to be finite
    chunks = [which for kind, which in events if kind == "chunk"]
    saves = [which for kind, which in events if kind == "save"]
    assert saves == [21, 42] and len(chunks) == sum(1 for _ in steps_of(trial.grid))
    pairs = list(itertools.pairwise(kind for kind, _ in events))
    assert most == 1 and pairs.count(("chunk", "chunk")) == len(saves)  # at the begin and after each checkpoint


def steps_of(grid):
    """The ends of the chunks of a run."""
    step = 0
    while step < grid.total:
        step = grid.after(step)
        yield step


def test_every_epoch_has_its_own_order_of_every_seed():
    seeds = [3, 2**31 - 1]
    orders = [np.asarray(epoch_order(seeds, epoch, 1437)) for epoch in (0, 1)]
    for order in (*orders[0], *orders[1]):
        np.testing.assert_array_equal(np.sort(order), np.arange(1437))
    assert len({order.tobytes() for order in (*orders[0], *orders[1])}) == 4
    np.testing.assert_array_equal(epoch_order(seeds[1:], 1, 1437)[0], orders[1][1])


@pytest.mark.parametrize("size", [1, 1024, 1025, 2500])
def test_evaluation_counts_every_example_once(size):
    rng = np.random.default_rng(size)
    x, y = rng.integers(0, 256, (size, 3, 2), dtype=np.uint8), rng.integers(0, 4, size).astype(np.int32)
    model = MLP(classes=4, features=(5,))
    init = lambda seed: model.init(jax.random.key(seed), jnp.zeros((1, 3, 2)))["params"]
    params = jax.vmap(init)(jnp.arange(3))
    test = make_test_set(x, y)
    task = classification.task(resolve({}), Dataset(x, y, x, y, classes=4, offset=0.0, scale=1 / 255))
    sums = make_evaluate(model, task)(params, {}, test.x, test.y, test.real)
    loss, right = sums["loss"], sums["right"]
    assert test.size == size and int(test.real.sum()) == size
    on_host = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for seed in range(3):
        p = {layer: {name: leaf[seed] for name, leaf in leaves.items()} for layer, leaves in on_host.items()}
        hidden = np.maximum(x.reshape(size, -1) / 255 @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"], 0)
        logits = hidden @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]
        expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(size), y]
        np.testing.assert_allclose(loss[seed], expected.sum(), rtol=1e-4)
        assert int(right[seed]) == (logits.argmax(1) == y).sum()


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path, 0)
    for step in (5, 10, 15):
        writer.write({"kind": "train", "step": step})
    writer.close()
    with open(path, "a") as file:
        file.write('{"kind": "train", "st')
    assert [r["step"] for r in read_metrics(path)] == [5, 10, 15]
    again = MetricsWriter(path, 10)
    assert [r["step"] for r in again.records] == [5, 10]
    again.write({"kind": "train", "step": 15})
    again.close()
    assert path.read_text().splitlines() == [json.dumps({"kind": "train", "step": step}) for step in (5, 10, 15)]
    MetricsWriter(path, 0).close()
    assert path.read_text() == ""
    with pytest.warns(RuntimeWarning, match="records up to step 10 are missing"):
        MetricsWriter(path, 10).close()


def test_weight_decay_is_for_kernels():
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    for name in ("adamw", "sgd"):
        config = resolve({"optimizer": name, "weight_decay": 0.5, "learning_rate": 0.1})
        tx = make_optimizer(config, 100)
        updates, _ = tx.update(zeros, tx.init(params), params)
        np.testing.assert_allclose(updates["kernel"], -0.05 * np.ones((2, 3)), rtol=1e-6)
        np.testing.assert_array_equal(updates["bias"], 0)


def test_schedules():
    config = resolve({"learning_rate": 0.4, "warmup_steps": 10, "schedule": "cosine"})
    cosine = make_schedule(config, 110)
    np.testing.assert_allclose(
        [cosine(0), cosine(5), cosine(10), cosine(60), cosine(110)], [0, 0.2, 0.4, 0.2, 0], atol=1e-7
    )
    constant = make_schedule(config | {"schedule": "constant"}, 110)
    np.testing.assert_allclose([constant(0), constant(5), constant(10), constant(1000)], [0, 0.2, 0.4, 0.4])


@pytest.mark.parametrize(
    "pattern",
    [
        "unstructured",
        "unstructured()",
        "fan_in",
        "fan_in()",
        "block(4, 4)",
        "block((2, 8))",
        "channel",
        "channel(axis=0)",
    ],
)
def test_patterns_are_written_as_calls(pattern):
    config = resolve(small("static", method_args={"pattern": pattern}))
    transform = make_transform(config, 10, sparsity=0.5)
    masks = get_masks(transform.init({"kernel": jnp.ones((16, 8)), "bias": jnp.ones(8)}))
    assert int(masks["kernel"].sum()) == 64 and isinstance(transform, optax.GradientTransformationExtraArgs)


def test_nm_in_a_config():
    config = resolve(small("static", method_args={"pattern": "nm(2, 4)"}, sparsity=0.5))
    mask = get_masks(make_transform(config, 10, sparsity=0.5).init({"kernel": jnp.ones((16, 8))}))["kernel"]
    np.testing.assert_array_equal(mask.reshape(4, 4, 8).sum(1), 2)

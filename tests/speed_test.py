"""The benchmark: its rules, that what it calls an update is one, its file, and the report of it."""

import json
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.image import imread

import sparsejax
from sparsejax import cli
from sparsejax.report import speed

sys.path.append(str(Path(__file__).parent.parent / "experiments" / "speed"))

import cases
import groups
import h200_core
import optimizer
import peer
import program
import record
import targets
import timing
import trees

TINY = trees.Tree("tiny", {"dense/kernel": (32, 16), "dense/bias": (16,)})
KEEP = {"kernel": np.arange(512).reshape(32, 16) % 2 == 0, "bias": None}
HERE = [case for case in cases.CASES if case.name != "srigl"]


# timing


def test_quartiles_and_the_rule_that_refuses_a_ratio():
    assert timing.spread([3.0, 1.0, 2.0, 5.0, 4.0]) == (2.0, 3.0, 4.0, 5)
    assert timing.spread([2.0]) == (2.0, 2.0, 2.0, 1)
    assert not timing.Spread(0.9, 1.0, 1.15, 9).wide
    assert timing.Spread(0.9, 1.0, 1.16, 9).wide


@pytest.mark.parametrize(
    ("ratio", "target", "said"),
    [
        (timing.Spread(1.0, 1.04, 1.1, 9), 1.05, "met"),
        (timing.Spread(1.0, 1.06, 1.1, 9), 1.05, "missed"),
        (timing.Spread(1.0, 1.04, 1.1, 8), 1.05, "few rounds"),
        (timing.Spread(1.0, 1.04, 1.1, 9), None, ""),
        (timing.Spread(0.8, 1.04, 1.1, 9), 1.05, "spread"),
        (timing.Spread(0.8, 1.04, 1.1, 9), None, "spread"),
    ],
)
def test_what_is_said_of_a_ratio(ratio, target, said):
    assert timing.verdict(ratio, target) == said


def test_every_round_measures_each_once_and_the_order_turns():
    calls = []

    def contestant(name):
        return lambda: calls.append(name) or 0.5

    found = timing.interleaved({name: contestant(name) for name in "abc"}, 3, lambda: calls.append("|"))
    assert "".join(calls) == "|abc|cba|abc"
    assert found == {name: {0: 0.5, 1: 0.5, 2: 0.5} for name in "abc"}


def test_slow_contestants_sit_out_later_rounds_and_ratios_are_of_the_same_round():
    clock = iter(range(1, 100))
    found = timing.interleaved({"bare": lambda: float(next(clock)), "slow": lambda: 10.0}, 5)
    assert list(found["slow"]) == list(range(timing.FEW))
    assert list(found["bare"]) == list(range(5))
    assert timing.ratios(found["slow"], found["bare"]) == [10 / 1, 10 / 2, 10 / 3]


# trees and cases


@pytest.mark.parametrize(
    ("name", "weights", "leaves", "prunable"),
    [
        ("resnet50", 25_557_032, 161, 54),
        ("gpt2", 124_439_808, 148, 50),
        ("gpt-1b", 1_011_476_480, 220, 74),
        ("leaves-1000", 10_000_000, 1_000, 1_000),
    ],
)
def test_sizes_of_the_trees(name, weights, leaves, prunable):
    facts = trees.TREES[name].facts()
    assert (facts["weights"], facts["leaves"], facts["prunable_leaves"]) == (weights, leaves, prunable)


@pytest.mark.parametrize("case", HERE, ids=lambda case: case.name)
def test_masks_change_at_update_steps_and_at_no_other(case):
    tx = case.make(optax.adamw(1e-3), TINY.layout)
    params, grads = TINY.values(0), TINY.values(1)
    state = jax.jit(tx.init)(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def changed(update):
        nonlocal params, state
        before = cases.fingerprint(state.masks)
        params, state = step(params, case.at(state, update))
        return int(cases.fingerprint(state.masks)) != int(before)

    if case.changes == "always":
        assert [changed(None) for _ in range(3)] == [False, True, False]
        return
    on_grid = case.changes == "grid"
    seen = [changed(update) for update in (0, None, None, 1, None)]
    assert seen == [on_grid, False, False, on_grid, False]


def test_one_entry_changes_the_fingerprint():
    mask = np.arange(40) % 3 == 0
    one = mask.copy()
    one[7] ^= True
    moved = np.roll(mask, 1)
    prints = {int(cases.fingerprint({"a": jnp.asarray(m), "b": None})) for m in (mask, one, moved)}
    assert len(prints) == 3


def test_a_step_that_changes_no_mask_is_not_measured():
    still = cases.Case("still", "static", lambda inner, layout: sparsejax.static(inner, masks={"dense": KEEP}))
    with pytest.raises(RuntimeError, match="still: no mask changed"):
        program.Program(still, TINY, program.Material(TINY)).update()


def test_groups_fit_into_memory():
    facts = trees.TREES["gpt2"].facts()
    size = groups.group_size(facts, optimizer.MEMORY)
    held = (2 + 3) * 4 * facts["weights"] + size * 13 * facts["weights"]
    assert size > 1 and held <= optimizer.MEMORY
    assert groups.group_size(trees.TREES["gpt-1b"].facts(), 1e9) == 1


def test_targets_go_by_case_tree_and_device():
    by_name = {case.name: case for case in cases.CASES}
    facts = trees.TREES["gpt2"].facts()
    rigl = targets.targets(by_name["rigl"], facts, "cpu")
    assert (rigl["ordinary"], rigl["update"], rigl["init_seconds"], rigl["compile_seconds"]) == (1.05, 5.0, 2.5, 4.0)
    assert rigl["temp_bytes"] == facts["prunable_weights"] + 4 * 50257 * 768
    assert targets.targets(by_name["gmp"], facts, "gpu")["ordinary"] == 1.03
    assert "ordinary" not in targets.targets(by_name["nm_2_4"], facts, "cpu")
    assert targets.targets(by_name["rigl"], trees.TREES["leaves-1000"].facts(), "cpu") == {"compile_seconds": 15.0}
    assert targets.targets(cases.BARE, facts, "cpu") == {}


# the command


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--tree", "resnet"], ["--tree", "'resnet'", "resnet50"]),
        (["--only", "gmp,adam"], ["--only", "'adam'", "rigl"]),
        (["--rounds", "0"], ["--rounds", "'0'", "from 1 to"]),
        (["--rounds", "many"], ["--rounds", "'many'"]),
        (["--out", "results.txt"], ["--out", ".json"]),
        (["--peer", "no/such"], ["--peer", "no/such", "jaxpruner/__init__.py"]),
        (["--fast"], ["--fast"]),
    ],
)
def test_wrong_flags_are_one_line(argv, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        optimizer.main(argv)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and all(word in error for word in words)


def test_without_a_gpu_the_h200_script_stops(capsys):
    with pytest.raises(SystemExit) as stopped:
        h200_core.main(["--device-check"])
    assert stopped.value.code == 2
    assert "no GPU" in capsys.readouterr().err


def test_every_case_has_its_place_on_the_h200():
    assert sorted(h200_core.ORDER) == sorted(case.name for case in cases.CASES)


def test_selection_alone():
    found = h200_core.selection_alone(1_000, "bfloat16")
    assert found["array"] == "1,000 bfloat16" and found["top_mask ms"] > 0


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The file of a run on a tiny tree, with one case that fails and one that is not there."""

    def absent(inner, layout):
        raise cases.Skipped("not there")

    gmp = next(case for case in cases.CASES if case.name == "gmp")
    rigl = cases.Case("rigl", "rewire", lambda inner, layout: 1 / 0)
    out = tmp_path_factory.mktemp("speed") / "deep" / "speed.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizer, "CASES", [gmp, rigl, cases.Case("srigl", "rewire", absent)])
        patch.setattr(optimizer, "TREES", {"tiny": TINY, "many": TINY._replace(name="many", compile_only=True)})
        assert optimizer.main(["--rounds", "2", "--out", str(out)]) == 1
    assert [path.name for path in out.parent.iterdir()] == ["speed.json"]
    return out


def test_the_file_has_every_row(measured):
    results = json.loads(measured.read_text())
    assert (results["kind"], results["version"], results["rounds"]) == (speed.KIND, speed.VERSION, 2)
    assert results["command"] == "python experiments/speed/optimizer.py --rounds 2"
    assert set(results["packages"]) == {"jax", "jaxlib", "optax", "sparsejax"}
    assert str(measured.parent) not in measured.read_text()
    rows = {(row["tree"], row["case"]): row for row in results["rows"]}
    assert list(rows) == [("tiny", "adamw"), ("tiny", "gmp"), ("many", "adamw")]
    assert rows["tiny", "adamw"]["update"] is None
    gmp = rows["tiny", "gmp"]
    assert (gmp["ordinary"]["rounds"], gmp["update"]["rounds"]) == (6, 2)
    for kind in ("ordinary", "update"):
        low, median, high = gmp[kind]["ratio"]
        assert 0 < low <= median <= high and len(gmp[kind]["every_ms"]) == gmp[kind]["rounds"]
    assert gmp["mask_bytes_per_weight"] <= 1 and len(gmp["init_seconds"]) == 2 and gmp["compile_seconds"] > 0
    left_out = [(entry["tree"], entry["case"], entry["failed"]) for entry in results["left_out"]]
    assert left_out == [("tiny", "rigl", True), ("tiny", "srigl", False), ("many", "rigl", True)]
    assert results["left_out"][0]["reason"] == "ZeroDivisionError: division by zero"


def test_names_of_files_say_the_machine_and_the_date():
    results = record.heading("command", 9)
    path = record.default_path(results, complete=True)
    assert path.parent.name == "results"
    assert path.name == f"{record.machine()}-{results['date']}.json"
    assert record.default_path(results, complete=False).name.endswith("-part.json")
    assert record.machine() == record.machine().lower() and "(" not in record.machine()


# the peer


def test_a_folder_without_the_peer_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"jaxpruner/__init__\.py"):
        peer.peer_cases(tmp_path)


# the report


def hand_made(tmp_path, **changes):
    """A small file as the benchmark writes it, with round numbers."""

    def timed(median, verdict):
        return {"ms": [median * 9, median * 10, median * 11], "ratio": [0.9 * median, median, 1.1 * median]} | {
            "rounds": 9,
            "verdict": verdict,
        }

    def row(tree, case, ordinary, update, library="sparsejax", **more):
        wanted = {"ordinary": 1.05, "update": 5.0, "init_seconds": 0.5} if library == "sparsejax" else {}
        return {"tree": tree, "case": case, "library": library, "targets": wanted} | {
            "ordinary": ordinary and timed(*ordinary),
            "update": update and timed(*update),
            "compile_seconds": 1.5,
            "bare_compile_seconds": 1.25,
            "init_seconds": [0.25, 0.125],
            **more,
        }

    shape = {"leaves": 20, "prunable_leaves": 10, "prunable_weights": 900, "dtype": "float32"}
    rows = []
    for tree, factor in (("small", 1), ("big", 2)):
        rows.append(row(tree, "adamw", (1.0, ""), None, "optax"))
        rows.append(row(tree, "static", (1.04, "met"), None))
        rows.append(row(tree, "rigl", (1.5, "missed"), (4.0 * factor, "met"), temp_bytes=3 * 2**20))
        rows.append(row(tree, "set", (1.5, "spread"), (4.0, "spread")))
        rows.append(row(tree, "jaxpruner rigl", (3.0, ""), (200.0, ""), "jaxpruner"))
    results = {
        "kind": speed.KIND,
        "version": speed.VERSION,
        "device": "Some Processor",
        "cores": 2,
        "python": "3.12.1",
        "packages": {"jax": "0.11.2", "optax": "0.2.8"},
        "date": "2026-11-21",
        "command": "make bench",
        "load_average": 0.5,
        "rounds": 9,
        "trees": [{"name": "small", "weights": 1_000_000, **shape}, {"name": "big", "weights": 4_000_000, **shape}],
        "rows": rows,
        "left_out": [{"tree": "small", "case": "srigl", "reason": "not there", "failed": False}],
    }
    path = tmp_path / "some-processor-2026-11-21.json"
    path.write_text(json.dumps(results | changes))
    return path


@pytest.mark.parametrize("by_directory", [True, False])
def test_report_writes_table_and_picture(tmp_path, capsys, by_directory):
    path = hand_made(tmp_path)
    (tmp_path / "other.json").write_text("{}")
    assert cli.main(["report", str(tmp_path if by_directory else path)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    text = path.with_suffix(".md").read_text()
    assert "| rigl | 15.0 | 1.50 (1.35..1.65) | 1.05 missed | 40.0 | 4.00 (3.60..4.40) | 5 met |" in text
    assert "| static | 10.4 | 1.04 (0.94..1.14) | 1.05 met | - | - | - |" in text
    assert "| set | 15.0 | spread | 1.05 | 40.0 | spread | 5 |" in text
    assert "| jaxpruner rigl | 30.0 | 3.00 (2.70..3.30) | - | 2,000 | 200.00 (180.00..220.00) | - |" in text
    assert "| rigl | 0.250 (0.500 met) | 0.125 | 1.50 | 1.25 | 3.00 | - |" in text
    assert "| rigl | 40.0 | 20.0 | 2.00 (1.50 missed) |" in text
    assert "Left out: small srigl: not there." in text and "Some Processor, 2 cores" in text
    assert "4.00 (3.60..4.40)" in shown.out and "some-processor-2026-11-21.png" in shown.out
    pixels = imread(path.with_suffix(".png"))
    assert min(pixels.shape[:2]) >= 400
    assert not list(tmp_path.glob(".*"))


def test_report_of_what_the_benchmark_wrote(measured, capsys):
    assert cli.main(["report", str(measured)]) == 0
    assert "| gmp |" in measured.with_suffix(".md").read_text()
    assert measured.with_suffix(".png").exists()


def test_report_refuses_other_files(tmp_path, capsys):
    for changes, words in (
        ({"version": 2}, "version 2"),
        ({"trees": [{}]}, "not a whole result"),
        ({"kind": "x"}, "nor a result"),
    ):
        assert cli.main(["report", str(hand_made(tmp_path, **changes))]) == 2
        assert words in capsys.readouterr().err


def test_numbers_have_three_digits():
    assert [speed._number(x) for x in (None, 0, 0.01234, 1.234, 12.34, 1234.5, math.inf, "a")] == [
        *("-", "0", "0.0123", "1.23", "12.3", "1,234", "inf", "a")
    ]

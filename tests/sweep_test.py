"""Sweeps: names and overrides, worker processes, retry, resume and stop; most trials are stand-ins for training."""

import json
import os
import signal
import subprocess
import sys

import pytest

from sparsejax import cli
from sparsejax.launch import config as configs
from sparsejax.launch import local, sweep, trials
from sparsejax.launch.config import InputError

CONFIG = """
from sparsejax.training import default_config

def get_config(arg=""):
    config = default_config()
    config.epochs = int(arg or 1)
    config.seeds = 2
    return config

def get_hyper(h):
    return h.list([{"method": "dense"}]) + h.product({"method": ["set", "rigl"], "sparsity": [0.9, 0.95]})
"""
NAMES = ["dense", "set-0.9", "set-0.95", "rigl-0.9", "rigl-0.95"]

# What a trial's process leaves behind, without the training.
TRIAL = """
import json, os, pathlib, sys
out, name, broken = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3].split(",")
run = out / "trials" / name
config = next(t["config"] for t in json.loads((out / "config.json").read_text())["trials"] if t["name"] == name)
(run / "config.json").write_text(json.dumps(config))
(out / "order.txt").open("a").write(name + "\\n")
os.write(int(os.environ["SPARSEJAX_PROGRESS_FD"]), b"1 2\\n")
tries = run / "tries"
tries.open("a").write("x")
if name in broken or (name + "!" in broken and len(tries.read_text()) == 1):
    sys.exit("ValueError: no more of this")
one = {"layer": [1 - config["sparsity"]] * 2}
result = {**config, "accuracy": [0.9, 0.92], "weights": 100, "weights_kept": [50, 50], "density": one,
          "inference_flops": 0.5, "training_flops": 0.5, "seconds": 1.0}
(run / "result.json").write_text(json.dumps(result))
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def stand_in(monkeypatch):
    """Puts TRIAL in place of training; the list says which trials fail always (`name`) or once (`name!`)."""
    broken: list[str] = []
    command = lambda out, name: [sys.executable, "-c", TRIAL, str(out), name, ",".join(broken)]
    monkeypatch.setattr(sweep, "trial_command", command)
    return broken


def run(config_file, *more: str, workers: int = 2) -> int:
    out = config_file.parent / "out"
    return cli.main(["sweep", "--config", str(config_file), "--out", str(out), "--workers", str(workers), *more])


def started(config_file) -> list[str]:
    return (config_file.parent / "out/order.txt").read_text().split()


# Trials and their names.


def load(config_file, **overrides):
    return trials.expand(configs.load(str(config_file), hyper_too=True), overrides)


def test_trials_carry_their_resolved_config(config_file):
    plan = load(config_file)
    assert [trial.name for trial in plan] == NAMES
    assert plan[4].config["method"] == "rigl"
    assert plan[4].config["sparsity"] == 0.95
    assert plan[4].config["seeds"] == [0, 1]


def test_the_command_line_wins_and_equal_trials_are_one(config_file):
    plan = load(config_file, sparsity="0.8", epochs="7")
    assert [trial.name for trial in plan] == ["dense", "set-0.8", "rigl-0.8"]
    assert {trial.config["epochs"] for trial in plan} == {7}


@pytest.mark.parametrize(
    "overrides, name",
    [
        ({"method": "dense"}, "dense"),
        ({"method": "rigl", "sparsity": 0.98}, "rigl-0.98"),
        ({"sparsity": 0.995, "method": "set"}, "set-0.995"),
        ({"method": "set", "method_args.drop_fraction": 0.5}, "set-drop_fraction=0.5"),
        ({"model_args.features": (32, 16), "learning_rate": 1e-4}, "features=32,16-learning_rate=0.0001"),
        ({"a.x": 1, "b.x": 2}, "a.x=1-b.x=2"),
        ({"data_dir": "/no/../such dir"}, "data_dir=_no_.._such_dir"),
    ],
)
def test_names(overrides, name):
    assert trials.trial_name(overrides) == name


def test_long_names_stay_different():
    one, two = (trials.trial_name({f"field_{k}": value for k in range(30)}) for value in (1, 2))
    assert len(one) <= 100
    assert one != two


@pytest.mark.parametrize(
    "hyper, words",
    [
        ('[{"methd": "set"}]', ["methd", "'method'"]),
        ('[{"sparsity": "high"}]', ["sparsity", "'high'", "a number"]),
        ('h.product({"method": ["rigel"]})', ["method", "'rigel'", "'rigl'"]),
        ('h.product({"method": "rigl"})', ["config.py:11", "h.product", "list"]),
        ("[]", ["get_hyper", "[]"]),
        ("h.grid({})", ["config.py:11", "grid"]),
        ('[{"method_args.drop_fracton": 0.1}]', ["drop_fracton", "'drop_fraction'"]),
    ],
)
def test_mistakes_in_get_hyper(config_file, hyper, words, capsys):
    config_file.write_text(CONFIG[: CONFIG.index("    return h.list")] + f"    return {hyper}\n")
    assert run(config_file) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words)
    assert not (config_file.parent / "out").exists()


def test_computed_fields_follow_overrides(tmp_path):
    path = tmp_path / "c.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    config = ConfigDict({'epochs': 3})\n"
        "    config.steps = config.get_ref('epochs') * 10\n"
        "    return config\n"
    )
    config = configs.load(str(path)).fresh()
    configs.apply(config, {"epochs": "5"})
    assert config.steps == 50


# Processes.


def jobs_of(tmp_path, **programs: str) -> list[local.Job]:
    return [local.Job(n, [sys.executable, "-c", code], tmp_path / n / "log.txt") for n, code in programs.items()]


def ends(events) -> dict[str, tuple[int, int]]:
    """name -> (exit code, attempts) of the processes that had no successor."""
    return {e.name: (e.code, e.attempts) for e in events if isinstance(e, local.Ended) and not e.retried}


def test_a_crash_is_tried_once_more_and_the_rest_goes_on(tmp_path):
    seen = str(tmp_path / "seen")
    flaky = f"import os, sys; sys.exit(0 if os.path.exists({seen!r}) else open({seen!r}, 'w').close() or 9)"
    killed = "import os, signal; print('going', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    jobs = jobs_of(tmp_path, flaky=flaky, killed=killed, bad="import sys; sys.exit(2)", good="print('fine')")
    assert ends(local.run(jobs, workers=2)) == {
        "flaky": (0, 2),
        "killed": (-signal.SIGKILL, 2),
        "bad": (2, 1),
        "good": (0, 1),
    }
    assert (tmp_path / "good/log.txt").read_text() == "fine\n"
    assert (tmp_path / "killed/log.txt").read_text() == "going\ngoing\n"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores are not given out on this system")
def test_each_process_has_its_share_of_the_cores(tmp_path):
    before = os.sched_getaffinity(0)
    code = "import os; print(sorted(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'])"
    ends(local.run(jobs_of(tmp_path, a=code, b=code), workers=2))
    shares = []
    for name in "ab":
        cores, threads = (tmp_path / name / "log.txt").read_text().rsplit(None, 1)
        shares.append(set(json.loads(cores)))
        assert int(threads) == len(shares[-1])
    assert shares[0] | shares[1] == before
    if len(before) > 1:
        assert not shares[0] & shares[1]
    assert os.sched_getaffinity(0) == before


def test_gpus_are_given_out_one_each_or_in_parts():
    two = [share.env for share in local.share_out(2, {"CUDA_VISIBLE_DEVICES": "3,GPU-5"})]
    assert [env["CUDA_VISIBLE_DEVICES"] for env in two] == ["3", "GPU-5"]
    assert not any("XLA_PYTHON_CLIENT_MEM_FRACTION" in env for env in two)
    three = [share.env for share in local.share_out(3, {"CUDA_VISIBLE_DEVICES": "0,1"})]
    assert [env["CUDA_VISIBLE_DEVICES"] for env in three] == ["0", "1", "0"]
    assert [env.get("XLA_PYTHON_CLIENT_MEM_FRACTION") for env in three] == ["0.450", None, "0.450"]
    own = {"CUDA_VISIBLE_DEVICES": "0", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in local.share_out(2, own)[0].env
    assert "CUDA_VISIBLE_DEVICES" not in local.share_out(2, {**own, "JAX_PLATFORMS": "cpu"})[0].env


def test_progress_arrives(tmp_path):
    code = "import os; os.write(int(os.environ['SPARSEJAX_PROGRESS_FD']), b'3 8\\n')"
    events = list(local.run(jobs_of(tmp_path, a=code), workers=1))
    assert events == [local.Started("a", 1), local.Progress("a", 3, 8), local.Ended("a", 0, 1, False)]


WAITS = """
import os, signal, sys
signal.signal(signal.SIGTERM, {handler})
os.write(int(os.environ['SPARSEJAX_PROGRESS_FD']), b'1 2\\n')
while True:
    signal.pause()
"""


@pytest.mark.parametrize("asked, handler, code", [(1, "lambda *_: sys.exit(143)", 143), (2, "signal.SIG_IGN", -9)])
def test_stopping_waits_for_what_runs_and_starts_nothing(tmp_path, asked, handler, code):
    waits = WAITS.format(handler=handler)
    wanted = [0]
    seen = []
    for event in local.run(jobs_of(tmp_path, a=waits, b=waits, c=waits), workers=2, stop=lambda: wanted[0]):
        seen.append(event)
        if {e.name for e in seen if isinstance(e, local.Progress)} == {"a", "b"}:
            wanted[0] = asked
    assert ends(seen) == {"a": (code, 1), "b": (code, 1)}


def test_closing_the_events_stops_the_processes(tmp_path):
    waits = f"import os; print(os.getpid(), flush=True)\n{WAITS.format(handler='signal.SIG_DFL')}"
    events = local.run(jobs_of(tmp_path, a=waits), workers=1)
    while not isinstance(next(events), local.Progress):
        pass
    events.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "a/log.txt").read_text()), 0)


# Whole sweeps.


def test_a_sweep_finishes_what_it_can_and_goes_on_later(config_file, stand_in, capsys):
    stand_in[:] = ["set-0.95", "rigl-0.9!"]
    out = config_file.parent / "out"
    assert run(config_file) == 1
    shown = capsys.readouterr()
    log = out / "trials/set-0.95/log.txt"
    assert f"set-0.95: failed twice (exit code 1): ValueError: no more of this; log: {log}" in shown.out
    assert "rigl-0.9: exit code 1; it will be tried once more" in shown.out
    assert shown.err == ""
    assert "ValueError" in log.read_text()
    assert sorted(started(config_file)) == sorted([*NAMES, "set-0.95", "rigl-0.9"])
    assert {"table.txt", "table.md", "accuracy.png", "layers.png", "metrics.jsonl"} <= {p.name for p in out.iterdir()}
    assert "rigl" in (out / "table.txt").read_text()

    stand_in.clear()  # the fault is repaired: only the failed trial runs
    (out / "order.txt").unlink()
    assert run(config_file) == 0
    assert started(config_file) == ["set-0.95"]
    assert "4 of 5 trials" in capsys.readouterr().out
    assert not (out / "trials/set-0.95/failed.json").exists()
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 5

    assert run(config_file, workers=0) == 0
    assert f"all 5 trials in {out} are done" in capsys.readouterr().out
    assert started(config_file) == ["set-0.95"]


def test_a_finished_sweep_says_so_without_the_training_stack(config_file, stand_in):
    assert run(config_file) == 0
    heavy = ["flax", "orbax.checkpoint", "matplotlib", "sklearn", "sparsejax.training"]
    code = f"import sys; from sparsejax.cli import main; print(main(), [m for m in {heavy} if m in sys.modules])"
    arguments = ["sweep", "--config", str(config_file), "--out", str(config_file.parent / "out")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert "are done" in done.stdout
    assert done.stdout.splitlines()[-1] == "0 []"


def test_a_larger_sweep_keeps_what_is_done(config_file, stand_in):
    assert run(config_file) == 0
    (config_file.parent / "out/order.txt").unlink()
    config_file.write_text(CONFIG.replace("[0.9, 0.95]", "[0.9, 0.95, 0.98]"))
    assert run(config_file) == 0
    assert sorted(started(config_file)) == ["rigl-0.98", "set-0.98"]


def test_another_config_in_the_same_place_is_refused(config_file, stand_in, capsys):
    assert run(config_file) == 0
    before = (config_file.parent / "out/config.json").read_bytes()
    assert run(config_file, "--config.epochs=3") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "epochs was 1 there and is 3 now" in line
    assert (config_file.parent / "out/config.json").read_bytes() == before


def test_two_sweeps_in_one_place(config_file, stand_in, capsys):
    out = config_file.parent / "out"
    out.mkdir()
    from sparsejax.files import locked

    with locked(out / ".lock") as free:
        assert free
        assert run(config_file) == 2
    assert "another process is running the sweep" in capsys.readouterr().err
    assert run(config_file) == 0


def test_trials_in_this_process_share_its_fate_but_not_their_errors(config_file, monkeypatch, capsys):
    """--workers 0: one that crashes once, one that always does, one whose loss is not finite; all others finish."""
    from sparsejax.launch import here
    from sparsejax.training import NonFiniteLoss

    out, calls = config_file.parent / "out", []

    def train(config, workdir, *, on_progress):
        calls.append(workdir.name)
        on_progress(1, 2, {"loss": [1.0]})
        if workdir.name == "set-0.9" or (workdir.name == "dense" and calls.count("dense") == 1):
            raise RuntimeError("out of [memory]\nand patience")
        if workdir.name == "rigl-0.9":
            raise NonFiniteLoss("loss is nan at step 7")
        workdir.mkdir(parents=True, exist_ok=True)
        result = {"method": "set", "sparsity": 0.9, "accuracy": [0.5], "weights": 9, "weights_kept": [3], "density": {}}
        (workdir / "result.json").write_text(json.dumps(result))

    monkeypatch.setattr(here, "train", train)
    assert run(config_file, workers=0) == 1
    assert calls == ["dense", "dense", "set-0.9", "set-0.9", "set-0.95", "rigl-0.9", "rigl-0.95"]
    shown = capsys.readouterr().out
    log = out / "trials/set-0.9/log.txt"
    assert f"failed twice (exception): RuntimeError: out of [memory] and patience; log: {log}" in shown
    assert "rigl-0.9: failed once (exception): NonFiniteLoss: loss is nan at step 7" in shown
    assert log.read_text().count("Traceback") == 2


DRIVER = """
import signal, sys
from sparsejax import cli
from sparsejax.launch import sweep

WAITS = '''
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: print("saved", flush=True) or sys.exit(143))
open(sys.argv[1], "w").write("up")
while True:
    signal.pause()
'''
sweep.trial_command = lambda out, name: [sys.executable, "-c", WAITS, sys.argv[1]]
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_trials_gently(config_file, number, code):
    out, fifo = config_file.parent / "out", config_file.parent / "fifo"
    os.mkfifo(fifo)
    arguments = ["sweep", "--config", str(config_file), "--out", str(out), "--workers", "1"]
    command = [sys.executable, "-c", DRIVER, str(fifo), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert fifo.read_text() == "up"  # waits until the trial runs
        process.send_signal(number)
        shown, _ = process.communicate()
    assert process.returncode == code
    assert "the same command goes on" in shown
    assert (out / "trials/dense/log.txt").read_text() == "saved\n"
    assert not (out / "trials/dense/failed.json").exists()


def test_a_sweep_of_real_trials_in_processes(config_file, monkeypatch, capsys):
    """Two processes that train; config.json is enough to run one of their trials by hand."""
    monkeypatch.setenv("XLA_FLAGS", "")  # not the eight devices of the other tests
    config_file.write_text(CONFIG.replace('["set", "rigl"]', '["static"]').replace("[0.9, 0.95]", "[0.9]"))
    assert run(config_file, "--config.model_args.features=(16,)") == 0
    assert "2 seeds each" in capsys.readouterr().out
    out = config_file.parent / "out"
    result = json.loads((out / "trials/static-0.9/result.json").read_text())
    assert result["method"] == "static"
    assert "accuracy" in (out / "trials/dense/log.txt").read_text()
    config = configs.load(f"{out / 'config.json'}:static-0.9").fresh()
    assert json.loads((out / "trials/static-0.9/config.json").read_text()) == config.to_dict()
    with pytest.raises(InputError, match=r"static-0\.9'"):
        configs.load(f"{out / 'config.json'}:static-0.8")

"""kill -9 at any instant, then the same command: the same bits as a run that nobody killed. Real processes."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.training import resolve
from sparsejax.training.checkpoint import Checkpoints
from sparsejax.training.trial import prepare

CONFIG = {
    "method": "rigl",
    "sparsity": 0.8,
    "method_args": {"update_every": 6, "update_end": 50},
    "model_args": {"features": [12]},
    "batch_size": 200,  # 7 steps an epoch
    "epochs": 12,
    "learning_rate": 1e-2,
    "seeds": 2,
    "eval_every_epochs": 2,
    "checkpoint_every_epochs": 1,
}
STEPS = 84

# A line for each chunk; and, if asked, SIGKILL from inside at the n-th time that Python opens, makes, renames or
# removes something in the run's directory: in the middle of writing a checkpoint, its seal, config.json,
# metrics.jsonl.
SCRIPT = """
import json, os, signal, sys
config, workdir, die_at = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
events = 0
def hook(event, args):
    global events
    if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") and str(args[0]).startswith(workdir):
        events += 1
        if events == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
from sparsejax.training import train
sys.addaudithook(hook)
train(config, workdir, on_progress=lambda done, total, last: print(done, flush=True))
print("events", events, flush=True)
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts the script as a process; all share a cache of compiled programs, which saves most of their time."""
    cache = tmp_path_factory.mktemp("compiled")
    env = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        "XLA_FLAGS": "",
    }

    def start(workdir, die_at=0):
        command = [sys.executable, "-c", SCRIPT, json.dumps(CONFIG), str(workdir), str(die_at)]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def wait(process):
    """(exit code, events in the directory); a failure that nobody asked for is shown."""
    out, errors = process.communicate(timeout=300)
    assert process.returncode in (0, -signal.SIGKILL, 143), errors
    return process.returncode, int(out.split()[-1]) if "events" in out else 0


@pytest.fixture(scope="module")
def reference(start, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("reference") / "run"
    code, events = wait(start(workdir))
    assert code == 0
    return workdir, events


def outcome(workdir):
    """Everything that must be identical: the bits of the final state, metrics.jsonl, the result without its times."""
    checkpoints = Checkpoints(workdir / "checkpoints", keep=9)
    step, state = checkpoints.restore(prepare(resolve(CONFIG)).like)
    checkpoints.close()
    assert step == STEPS
    words = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    bits = [(str(path), np.asarray(words(leaf)).tobytes()) for path, leaf in jax.tree_util.tree_leaves_with_path(state)]
    result = json.loads((workdir / "result.json").read_text())
    del result["seconds"], result["date"]
    return bits, (workdir / "metrics.jsonl").read_bytes(), result


def test_killed_at_random_moments_of_progress(start, reference, tmp_path):
    """The parent kills after a random number of reported chunks, 7 times in one run."""
    rng, workdir, kills = random.Random(0), tmp_path / "run", 0
    while kills < 7:
        process = start(workdir)
        for _ in range(rng.randint(1, 6)):
            line = process.stdout.readline()
        if line.strip().isdigit() and int(line) < STEPS:
            process.kill()
            kills += wait(process)[0] == -signal.SIGKILL
        else:
            wait(process)
            break
    assert kills >= 4
    code, _ = wait(start(workdir))
    assert code == 0
    assert outcome(workdir) == outcome(reference[0])


@pytest.mark.long
def test_killed_in_the_middle_of_writing(start, reference, tmp_path):
    """The process kills itself at a random event in its directory, 7 times in one run."""
    rng, workdir, kills = random.Random(1), tmp_path / "run", 0
    for _ in range(7):
        code, _ = wait(start(workdir, die_at=rng.randint(5, reference[1] // 5)))
        kills += code == -signal.SIGKILL
    assert kills == 7 and not (workdir / "result.json").exists()
    assert wait(start(workdir))[0] == 0
    assert outcome(workdir) == outcome(reference[0])


def test_sigterm_then_the_same_command(start, reference, tmp_path):
    process = start(tmp_path / "run")
    for _ in range(5):
        process.stdout.readline()
    process.terminate()
    assert wait(process)[0] == 143
    assert wait(start(tmp_path / "run"))[0] == 0
    assert outcome(tmp_path / "run") == outcome(reference[0])

"""kill -9 in a procedure, then the same call: the same bytes as of one that nobody killed. Real processes."""

import json
import os
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
    "model_args": {"features": [12]},
    "batch_size": 200,  # 7 steps an epoch
    "epochs": 3,
    "seeds": 2,
    "optimizer": "adam",
    "learning_rate": 1e-2,
    "schedule": "cosine",
    "checkpoint_every_epochs": 1,
}
RUNS = ["round_00", "round_01", "round_01_reinit"]

# SIGKILL from inside: at the n-th chunk that is reported, all rounds counted, or the n-th time that a file of the
# procedure itself is put in its place.
SCRIPT = """
import json, os, signal, sys
config, workdir, die_at, die_writing = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
from sparsejax.training.procedures import iterative_magnitude_pruning
chunks = writes = 0
def follow(done, total, last):
    global chunks
    chunks += 1
    if chunks == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
def hook(event, args):
    global writes
    if event == "os.rename" and str(args[1]).endswith(("rounds.jsonl", "procedure.json", workdir + "/config.json")):
        writes += 1
        if writes == die_writing:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
for done in iterative_magnitude_pruning(config, workdir, rounds=1, rewind=5, controls=["reinit"], on_progress=follow):
    print(done.name, chunks, writes, flush=True)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, chunk to die at, write to die at) -> (exit code, the rounds that it finished)."""
    cache = tmp_path_factory.mktemp("compiled")
    env = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        "XLA_FLAGS": "",
    }

    def run(workdir, chunk=0, write=0):
        command = [sys.executable, "-c", SCRIPT, json.dumps(CONFIG), str(workdir), str(chunk), str(write)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode, [line.split()[0] for line in done.stdout.splitlines()]

    return run


def outcome(workdir):
    """Everything that must be identical: the bits of every final state, all records, what the procedure wrote."""
    out = [(workdir / name).read_bytes() for name in ("rounds.jsonl", "procedure.json", "config.json")]
    words = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    for folder in (workdir / "rewind", *(workdir / "trials" / name for name in RUNS)):
        checkpoints = Checkpoints(folder / "checkpoints", keep=9)
        step, state = checkpoints.restore(prepare(resolve(json.loads((folder / "config.json").read_text()))).like)
        checkpoints.close()
        out += [step, *(np.asarray(words(leaf)).tobytes() for leaf in jax.tree.leaves(state))]
        out += [(folder / name).read_bytes() for name in ("metrics.jsonl", "start.json", "config.json")]
    return out


@pytest.mark.long
def test_killed_in_a_round_and_between_rounds(run, tmp_path):
    assert run(tmp_path / "whole") == (0, RUNS)
    workdir = tmp_path / "killed"
    # before the line of round_00 is written, which is trained; then after the second of the three chunks of round_01
    for kill, finished in (({"write": 3}, []), ({"chunk": 2}, RUNS[:1])):
        assert run(workdir, **kill) == (-signal.SIGKILL, finished)
    assert not (workdir / "trials/round_01/result.json").exists()
    assert [path.name for path in (workdir / "trials/round_01/checkpoints").iterdir()]  # it goes on from there
    assert run(workdir) == (0, RUNS)
    assert outcome(workdir) == outcome(tmp_path / "whole")

"""Checkpoints: what is saved comes back bit for bit, and what was damaged on disk is noticed and skipped."""

import shutil
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.training.checkpoint import Checkpoints


class Inner(NamedTuple):
    masks: Any
    moment: Any


def make_state(seed=0):
    rng = np.random.default_rng(seed)
    weights = (
        jnp.asarray(rng.normal(size=(2, 9, 5)), jnp.float32)
        .at[0, 0]
        .set(jnp.array([0.0, -0.0, 1e-45, jnp.inf, jnp.nan]))
    )
    return {
        "params": {"Dense_0": {"kernel": weights, "bias": jnp.asarray(rng.normal(size=(2, 5)), jnp.bfloat16)}},
        "opt": (
            Inner({"kernel": weights > 0, "bias": None}, ()),
            jax.random.key(seed),
            jax.random.split(jax.random.key(1), 2),
        ),
        "step": jnp.int32(7),
    }


LIKE = jax.eval_shape(make_state)


def same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape and isinstance(x, jax.Array)
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with checkpoints of steps 1 and 2, to be copied by each test."""
    folder = tmp_path_factory.mktemp("checkpoints") / "whole"
    checkpoints = Checkpoints(folder, keep=2)
    for step in (0, 1, 2):
        checkpoints.save(step, make_state(step))
    checkpoints.close()
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "checkpoints")


def restore(folder):
    checkpoints = Checkpoints(folder, keep=2)
    found = checkpoints.restore(LIKE)
    checkpoints.close()
    return found


def test_comes_back_bit_for_bit_and_keeps_the_newest(folder):
    step, state = restore(folder)
    assert step == 2
    same_bits(state, make_state(2))
    assert sorted(Checkpoints(folder, keep=2).steps()) == [1, 2]


def test_nothing_there(tmp_path):
    assert restore(tmp_path / "new") is None


def files_of(folder):
    return sorted(path for path in (folder / "2").rglob("*") if path.is_file())


def check_noticed(folder):
    """Either the newest came back whole, or it was skipped with a warning that names it, for the one before."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step, state = restore(folder)
    same_bits(state, make_state(step))
    named = [str(w.message) for w in caught if str(folder / "2") in str(w.message)]
    assert (step == 2 and not named) or (step == 1 and len(named) == 1 and "\n" not in named[0])
    return step == 1


@pytest.mark.parametrize("cut", [0, 0.5, -1])
def test_every_file_cut_short(whole, tmp_path, cut):
    skipped = 0
    for index, file in enumerate(files_of(whole)):
        folder = shutil.copytree(whole, tmp_path / f"{index}")
        target = folder / file.relative_to(whole)
        data = target.read_bytes()
        target.write_bytes(data[: int(len(data) * cut)] if cut >= 0 else data[:-1])
        skipped += check_noticed(folder)
    assert (
        skipped >= sum(file.stat().st_size > 0 for file in files_of(whole)) - 1
    )  # the newline at the seal's end means nothing


def test_every_file_missing(whole, tmp_path):
    skipped = 0
    for index, file in enumerate(files_of(whole)):
        folder = shutil.copytree(whole, tmp_path / f"{index}")
        (folder / file.relative_to(whole)).unlink()
        skipped += check_noticed(folder)
    assert skipped == len(files_of(whole))


def test_flipped_bits(whole, tmp_path):
    rng = np.random.default_rng(0)
    for index, file in enumerate(files_of(whole) * 3):
        data = bytearray(file.read_bytes())
        if data:
            folder = shutil.copytree(whole, tmp_path / f"{index}")
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
            (folder / file.relative_to(whole)).write_bytes(data)
            assert check_noticed(folder)


@pytest.mark.parametrize("content", [(), ("default",), ("default", "metrics")])
def test_empty_and_half_made_folders(folder, content):
    (folder / "3").mkdir()
    for name in content:
        (folder / "3" / name).mkdir()
    with pytest.warns(RuntimeWarning, match="checkpoints/3 is damaged and skipped"):
        step, state = restore(folder)
    assert step == 2
    same_bits(state, make_state(2))


def test_a_write_that_was_killed_leaves_no_trace(folder):
    shutil.copytree(folder / "2", folder / "3.orbax-checkpoint-tmp-123")
    checkpoints = Checkpoints(folder, keep=2)
    assert checkpoints.restore(LIKE)[0] == 2
    checkpoints.save(3, make_state(3))
    checkpoints.close()
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]


def test_a_kill_before_the_seal(folder):
    (folder / "2" / "seal.json").unlink()
    with pytest.warns(RuntimeWarning, match="checkpoints/2 is damaged and skipped .*: it was not finished"):
        assert restore(folder)[0] == 1


def test_a_file_of_another_checkpoint(folder):
    shutil.rmtree(folder / "2" / "default")
    shutil.copytree(folder / "1" / "default", folder / "2" / "default")
    with pytest.warns(RuntimeWarning, match=r"file default/\S+: it"):
        assert restore(folder)[0] == 1


def test_a_state_of_other_shapes_is_refused(folder):
    like = LIKE | {"step": jax.ShapeDtypeStruct((3,), jnp.int32)}
    with pytest.warns(RuntimeWarning, match=r"array step: it is int32\[\], expected int32\[3\]") as caught:
        assert Checkpoints(folder, keep=2).restore(like) is None
    assert len(caught) == 2


def test_a_damaged_step_can_be_saved_again(folder):
    shutil.rmtree(folder / "2" / "default")
    checkpoints = Checkpoints(folder, keep=2)
    with pytest.warns(RuntimeWarning, match=r"now 2\.damaged"):
        assert checkpoints.restore(LIKE)[0] == 1
    checkpoints.save(2, make_state(2))
    checkpoints.close()
    assert restore(folder)[0] == 2

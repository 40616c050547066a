"""Checkpoints of the whole train state: the only file that knows orbax.

Orbax writes a checkpoint to a temporary folder and renames it, so that a kill leaves a whole one or none. It does not
notice every damage that a disk or a copy does later; so when it is done, a seal is put into the folder, a file with
the checksum of every other file and the shape of every array. A folder whose seal is missing or does not fit is never
given to orbax. Nothing is pickled.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from sparsejax.files import write_json
from sparsejax.leaves import named_leaves

State = Any
_SEAL = "seal.json"
_DATA = "data.json"


class Checkpoints:
    """The checkpoints of one run, one folder a step.

    Example:
      >>> init = lambda: {"weights": jnp.ones(3), "step": jnp.int32(0)}
      >>> checkpoints = Checkpoints(Path("checkpoints"), keep=2)
      >>> checkpoints.restore(jax.eval_shape(init)) is None
      True
      >>> checkpoints.save(100, init())
      >>> checkpoints.close()
      >>> step, state = Checkpoints(Path("checkpoints"), keep=2).restore(jax.eval_shape(init))
      >>> step, state["weights"].tolist()
      (100, [1.0, 1.0, 1.0])
    """

    def __init__(self, folder: Path, keep: int):
        """Opens (or makes) the folder; the `keep` newest checkpoints stay."""
        folder.mkdir(exist_ok=True)
        self._folder = folder.resolve()
        self._keep = keep
        self._manager: ocp.CheckpointManager | None = None
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def restore(self, like: State, shardings: State = None) -> tuple[int, State] | None:
        """The newest checkpoint that is whole; others are set aside with a warning that names them.

        Args:
          like: the state's shapes and dtypes, from `jax.eval_shape`.
          shardings: where each array goes, whatever devices it was on when it was saved; None: the default device.

        Returns:
          (step, state), or None if there is no whole checkpoint.
        """
        for step in sorted(self.steps(), reverse=True):
            folder = self._folder / str(step)
            try:
                _check_seal(folder, like)
                return step, self._read(step, like, shardings)
            except Exception as error:  # a disk can damage a file in more ways than orbax has exceptions
                reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
                aside = folder.with_name(f"{step}.damaged")
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
                warnings.warn(
                    f"checkpoint {folder} is damaged and skipped (now {aside.name}): {reason}",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return None

    def steps(self) -> list[int]:
        """The steps of which there is a folder, whole or damaged."""
        return [int(entry.name) for entry in self._folder.iterdir() if entry.name.isdigit()]

    def drop_damaged(self, like: State) -> None:
        """Removes what is not whole, so that it can be saved again."""
        for step in self.steps():
            try:
                _check_seal(self._folder / str(step), like)
            except (ValueError, OSError):
                shutil.rmtree(self._folder / str(step))

    def save(self, step: int, state: State, data: Mapping[str, Any] | None = None) -> None:
        """Saves in the background: the arrays are copied before this returns; `close` waits for the files.

        Args:
          step: after how many steps.
          state: arrays.
          data: where the reading of the data is, as JSON has it.

        Raises:
          OSError and others: what went wrong with the save before this one.
        """
        self._wait()
        self._open().save(step, args=ocp.args.StandardSave(state))
        self._writing = self._writer.submit(self._finish, step, _arrays(state), dict(data or {}))

    def close(self) -> None:
        """Waits until everything is on disk."""
        try:
            self._wait()
        finally:
            self._writer.shutdown()
            if self._manager is not None:
                self._manager.close()
                self._manager = None

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def data(self, step: int) -> dict[str, Any]:
        """What `save` was given as `data`, of a checkpoint that `restore` has found to be whole."""
        path = self._folder / str(step) / _DATA
        return json.loads(path.read_text()) if path.is_file() else {}

    def _finish(self, step: int, arrays: dict[str, str], data: dict[str, Any]) -> None:
        self._open().wait_until_finished()
        folder = self._folder / str(step)
        if data:
            write_json(folder / _DATA, data)
        write_json(folder / _SEAL, {"arrays": arrays, "sha256": _checksums(folder)})
        # Deleted here and not by orbax, so that the one before is there until the new one is sealed.
        for old in sorted(self.steps())[: -self._keep]:
            shutil.rmtree(self._folder / str(old))

    def _open(self) -> ocp.CheckpointManager:
        # Opened late: it looks at the folder once, and by then damaged checkpoints are out of its way.
        if self._manager is None:
            for entry in self._folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(entry, ignore_errors=True)  # half-written by a killed run
            self._manager = ocp.CheckpointManager(self._folder)
        return self._manager

    def _read(self, step: int, like: State, shardings: State) -> State:
        # Named always: else orbax asks for the devices that the arrays were on.
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        places = jax.tree.map(lambda _: here, like) if shardings is None else shardings
        with ocp.CheckpointManager(self._folder) as manager:
            state = manager.restore(step, args=ocp.args.StandardRestore(jax.tree.map(_placed, like, places)))
        return jax.tree.map(_uncommitted, state) if shardings is None else state


def _placed(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _uncommitted(leaf: jax.Array) -> jax.Array:
    """A copy that is not pinned to a device, as a fresh state is not: for a pinned one, jit compiles a second time."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_uncommitted(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
    return jnp.array(jax.device_get(leaf))


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _SEAL)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _arrays(state: State) -> dict[str, str]:
    return {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in named_leaves(state)}


def _check_seal(folder: Path, like: State) -> None:
    """Raises ValueError that names the first file or array which is not what it should be."""
    seal = folder / _SEAL
    if not seal.is_file():
        raise ValueError(f"it was not finished: there is no {_SEAL}")
    try:
        content = json.loads(seal.read_bytes())
        files, arrays = dict(content["sha256"]), dict(content["arrays"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{_SEAL} cannot be read: {error}") from error
    for kind, sealed, found in (("file", files, _checksums(folder)), ("array", _arrays(like), arrays)):
        for name in sorted(sealed.keys() | found.keys()):
            if sealed.get(name) != found.get(name):
                detail = "its content is not what was written"
                if kind == "array":
                    detail = f"it is {found.get(name, 'missing')}, expected {sealed.get(name, 'nothing')}"
                raise ValueError(f"{kind} {name}: {detail if name in found else 'it is missing'}")

"""How the programs of a run are compiled: for speed or in a hurry, and kept on disk for the runs beside it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

CACHE = ".compiled"  # beside the runs that share it
# Measured on LeNet-300-100, five seeds in a program, one core. LLVM's first level compiles a training loop in 0.6 of
# the time and the random initialisation in a sixth, and the loop runs no slower: what takes time is in libraries.
_QUICK = {"xla_backend_optimization_level": 1}
# YNNPACK's float32 matrix products take up to 1.6 x the time of the library that XLA uses without it.
_NO_YNNPACK = {"xla_cpu_experimental_ynn_fusion_type": ""}


def fast() -> dict[str, Any]:
    """Compiler options of a program that runs many times."""
    return {**accepted(_QUICK), **accepted(_NO_YNNPACK)} if jax.default_backend() == "cpu" else {}


def hurried() -> dict[str, Any]:
    """Compiler options of a program that runs once."""
    return accepted(_QUICK)


def accepted(option: dict[str, Any]) -> dict[str, Any]:
    """The option, or nothing where this XLA has none of its name."""
    return option if _known(*option.items()) else {}


@cache
def _known(option: tuple[str, Any]) -> bool:
    """Whether this XLA has the option; its name is not promised to stay."""
    try:
        jax.jit(lambda x: x, compiler_options=dict([option])).lower(0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


@contextlib.contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """While the block runs, every compiled program is written to `folder`, or read from there.

    JAX's own variables have the last word: JAX_COMPILATION_CACHE_DIR chooses another place,
    JAX_ENABLE_COMPILATION_CACHE=false none. Processes may share the folder; what a killed one wrote by half is removed.
    """
    if _setting("jax_compilation_cache_dir") or not _setting("jax_enable_compilation_cache"):
        yield
        return
    place = folder.resolve() / _machine()
    _remove_damaged(place)
    settings = {
        "jax_compilation_cache_dir": str(place),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_persistent_cache_enable_xla_caches": "none",  # their path would be part of what programs are found by
    }
    before = {name: _setting(name) for name in settings}
    _configure(settings)
    try:
        yield
    finally:
        _configure(before)


def _setting(name: str) -> Any:
    return getattr(jax.config, name)


def _configure(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX looks at the settings once, at the first program that it compiles


def _machine() -> str:
    """A name for this kind of machine: code for one CPU may not run on another that shares the disk."""
    features = platform.machine()
    with contextlib.suppress(OSError):  # there is no such file but on Linux
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"


@cache
def _remove_damaged(place: Path) -> None:
    """JAX writes an entry in place and never again: one that was cut short would warn, and be compiled, for ever."""
    for entry in place.glob("*-cache"):
        with contextlib.suppress(OSError):  # another process may have removed it
            if not _whole(entry.read_bytes()):
                os.remove(entry)


def _whole(entry: bytes) -> bool:
    if entry.startswith(b"\x28\xb5\x2f\xfd"):  # zstandard, where that is installed: it notices a cut by itself
        return True
    try:
        zlib.decompress(entry)
    except zlib.error:
        return False
    return True

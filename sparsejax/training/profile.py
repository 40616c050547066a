"""Where the wall-clock time of a run goes: spans that cost nothing unless somebody collects them.

`with span("data"): ...` gives its time to "data"; a span inside another takes its time from the outer one, so that the
parts add up to the whole. What JAX traces and compiles anywhere is taken out of the span that it happens in. Nothing
here waits for the device: "train" and "evaluate" are what the host waits for results that it reads anyway.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from jax import monitoring

PARTS = {
    "start": "the interpreter, imports, the config",
    "data": "reading the data set, drawing the order of its examples",
    "trace": "JAX tracing and lowering programs",
    "compile": "XLA compiling them, or reading them from the cache",
    "init": "parameters and masks at step 0",
    "dispatch": "handing steps to the device",
    "train": "waiting for training steps",
    "evaluate": "waiting for evaluations",
    "checkpoint": "restoring, copying, waiting for what is written in the background",
    "metrics": "writing records",
    "report": "tables and plots",
    "other": "everything else",
}
_TRACING = ("/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration")
_COMPILING = "/jax/core/compile/backend_compile_duration"
_CACHE = {"/jax/compilation_cache/cache_hits": "hits", "/jax/compilation_cache/cache_misses": "misses"}


class Profile:
    """Seconds by part, and how often the compilation cache had a program or not.

    Attributes:
      seconds: part -> seconds; their sum is the time from the begin to the end of `collected`.
      cache: {"hits": programs read from disk, "misses": programs compiled and written there}.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.cache = {"hits": 0, "misses": 0}
        self._open = ["other"]
        self._since = time.perf_counter()
        self._taken: list[tuple[float, float]] = []  # (begin, seconds) of what JAX reported in the open span

    def as_dict(self) -> dict[str, dict]:
        """What profile.json holds."""
        return {"seconds": {part: round(self.seconds[part], 4) for part in self.seconds}, "cache": self.cache}

    def _tick(self) -> None:
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def _event(self, event: str, **_: str | int) -> None:
        if event in _CACHE and _active.get() is self:
            self.cache[_CACHE[event]] += 1

    def _duration(self, event: str, duration_secs: float, **_: str | int) -> None:
        part = "trace" if event in _TRACING else "compile" if event == _COMPILING else None
        if part is None or _active.get() is not self:  # another profile inside this one has it
            return
        # Tracing one function traces those that it calls: what they took was reported before.
        begin = time.perf_counter() - duration_secs
        inside = sum(taken for at, taken in self._taken if at >= begin)
        self._taken = [each for each in self._taken if each[0] < begin] + [(begin, duration_secs)]
        self.seconds[part] += duration_secs - inside
        self.seconds[self._open[-1]] -= duration_secs - inside


_active: ContextVar[Profile | None] = ContextVar("profile", default=None)


@contextlib.contextmanager
def collected(wanted: bool = True, *, since_start: bool = False) -> Iterator[Profile | None]:
    """Collects the spans of the block; yields None, and nothing is collected, unless `wanted`.

    Args:
      wanted: whether to.
      since_start: whether the time from the start of this process until now is counted too, as "start".
    """
    if not wanted:
        yield None
        return
    profile = Profile()
    if since_start:
        profile.seconds["start"] += _age_of_process()
    token = _active.set(profile)
    monitoring.register_event_listener(profile._event)
    monitoring.register_event_duration_secs_listener(profile._duration)
    try:
        yield profile
    finally:
        profile._tick()
        monitoring.unregister_event_listener(profile._event)
        monitoring.unregister_event_duration_listener(profile._duration)
        _active.reset(token)


@contextlib.contextmanager
def span(part: str) -> Iterator[None]:
    """Gives the time of the block to one of PARTS, if anybody collects."""
    profile = _active.get()
    if profile is None:
        yield
        return
    profile._tick()
    profile._open.append(part)
    try:
        yield
    finally:
        profile._tick()
        profile._open.pop()


def _age_of_process() -> float:
    """Seconds since this process was started; 0 where the system does not say."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / 100  # USER_HZ, 100 on every Linux
    except (OSError, AttributeError, ValueError, IndexError):
        return 0.0

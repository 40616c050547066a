"""Trials as local processes, each with its share of the cores or an accelerator of its own.

`run` is a generator of events, so that its consumer decides what to show; closing it stops the processes.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

# A trial writes lines "done total" to the file descriptor named by this variable.
PROGRESS_FD = "SPARSEJAX_PROGRESS_FD"
_TICK = 0.1  # seconds between two looks at the processes


class Job(NamedTuple):
    """One process to run.

    Attributes:
      name: in the events.
      argv: the command.
      log: file that stdout and stderr are appended to; its directory is made.
    """

    name: str
    argv: Sequence[str]
    log: Path


class Started(NamedTuple):
    """A process has begun; `attempt` counts from 1."""

    name: str
    attempt: int


class Progress(NamedTuple):
    """`done` of `total` steps are behind it."""

    name: str
    done: int
    total: int


class Ended(NamedTuple):
    """A process is over.

    Attributes:
      name: of the job.
      code: exit status; negative for a signal.
      attempts: how many processes the job has had.
      retried: whether another one will follow.
    """

    name: str
    code: int
    attempts: int
    retried: bool


Event = Started | Progress | Ended


class _Child(NamedTuple):
    job: Job
    attempt: int
    slot: int
    process: subprocess.Popen
    progress_fd: int


def run(
    jobs: Sequence[Job],
    *,
    workers: int,
    retries: int = 1,
    final_codes: Sequence[int] = (2,),
    stop: Callable[[], int] = lambda: 0,
) -> Generator[Event, None, None]:
    """Runs the jobs, `workers` at a time, and yields what happens.

    Args:
      jobs: what to run, started in this order; a crashed job is tried again at the end.
      workers: processes at a time, >= 1.
      retries: how often a job that ended with a non-zero code is started again.
      final_codes: exit codes that a second try would not change.
      stop: how often the user asked to stop: at 1 the processes get SIGTERM and are waited for, at 2 they are
        killed.

    Yields:
      Started, Progress and Ended; when stopping, Ended for those that were running.
    """
    if workers < 1:
        raise ValueError(f"workers: {workers} is not at least 1")
    queue = deque((job, 1) for job in jobs)
    shares = share_out(workers, os.environ)
    running: dict[int, _Child] = {}  # slot -> process
    selector = selectors.DefaultSelector()
    asked = 0
    try:
        while queue or running:
            if (stops := min(stop(), 2)) > asked:
                asked = stops
                queue.clear()
                _signal(running.values(), signal.SIGKILL if asked == 2 else signal.SIGTERM)
            while queue and len(running) < workers:
                job, attempt = queue.popleft()
                slot = next(s for s in range(workers) if s not in running)
                child = running[slot] = _start(job, attempt, slot, shares[slot])
                selector.register(child.progress_fd, selectors.EVENT_READ, child)
                yield Started(job.name, attempt)
            for key, _ in selector.select(_TICK) if selector.get_map() else ():
                yield from _read_progress(key.data, selector)
            for child in [c for c in running.values() if c.process.poll() is not None]:
                del running[child.slot]
                yield from _read_progress(child, selector)
                _forget(child, selector)
                code = child.process.returncode
                again = code != 0 and code not in final_codes and child.attempt <= retries and not asked
                if again:
                    queue.append((child.job, child.attempt + 1))
                yield Ended(child.job.name, code, child.attempt, again)
    finally:
        _signal(running.values(), signal.SIGTERM)
        for child in running.values():
            child.process.wait()
            _forget(child, selector)
        selector.close()


class Share(NamedTuple):
    """What one worker may use: CPU cores (empty: any) and environment variables."""

    cores: frozenset[int]
    env: dict[str, str]


def share_out(workers: int, environ: Mapping[str, str]) -> list[Share]:
    """Divides the machine: a GPU for each worker where there are any, and an equal share of the cores.

    With more workers than GPUs several share one; JAX takes three quarters of a GPU's memory when it starts,
    so each is limited to its part, unless the user has set one of JAX's own variables for that.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    gpus = _gpus(environ)
    shares = []
    for worker in range(workers):
        low, high = worker * len(cores) // workers, (worker + 1) * len(cores) // workers
        mine = cores[low:high] or cores[worker % len(cores) : worker % len(cores) + 1] if cores else []
        env = {} if not mine else {"OMP_NUM_THREADS": str(len(mine)), "OPENBLAS_NUM_THREADS": str(len(mine))}
        if gpus:
            env["CUDA_VISIBLE_DEVICES"] = gpus[worker % len(gpus)]
            tenants = len(range(worker % len(gpus), workers, len(gpus)))
            if tenants > 1 and not any(name.startswith("XLA_PYTHON_CLIENT_") for name in environ):
                env["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / tenants:.3f}"
        shares.append(Share(frozenset(mine), env))
    return shares


def _gpus(environ: Mapping[str, str]) -> list[str]:
    """The GPUs that JAX would use, found without starting JAX, which would claim them for this process."""
    if environ.get("JAX_PLATFORMS", "").split(",")[0] == "cpu":
        return []
    if "CUDA_VISIBLE_DEVICES" in environ:
        return [name for name in environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip() not in ("", "-1")]
    found = Path("/dev").glob("nvidia[0-9]*")
    return sorted((path.name.removeprefix("nvidia") for path in found), key=lambda name: (len(name), name))


def _start(job: Job, attempt: int, slot: int, share: Share) -> _Child:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    read_fd, write_fd = os.pipe()
    try:
        os.set_blocking(read_fd, False)
        with open(job.log, "ab") as log, _on_cores(share.cores):
            process = subprocess.Popen(
                list(job.argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **share.env, PROGRESS_FD: str(write_fd)},
                pass_fds=(write_fd,),
                process_group=0,  # Ctrl-C reaches us alone, and we ask the children to save and end
            )
    except BaseException:
        os.close(read_fd)
        raise
    finally:
        os.close(write_fd)
    return _Child(job, attempt, slot, process, read_fd)


@contextlib.contextmanager
def _on_cores(cores: frozenset[int]) -> Iterator[None]:
    """A child inherits the cores of the thread that starts it, so it never has the others."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _read_progress(child: _Child, selector: selectors.BaseSelector) -> Iterator[Progress]:
    """The newest complete line in the pipe; at its end the pipe is no longer watched."""
    try:
        data = os.read(child.progress_fd, 65536)
    except BlockingIOError:
        return
    if not data:
        with contextlib.suppress(KeyError):
            selector.unregister(child.progress_fd)
        return
    for line in reversed(data.split(b"\n")[:-1]):
        words = line.split()
        if len(words) == 2 and all(word.isdigit() for word in words):
            yield Progress(child.job.name, int(words[0]), int(words[1]))
            return


def _forget(child: _Child, selector: selectors.BaseSelector) -> None:
    with contextlib.suppress(KeyError):
        selector.unregister(child.progress_fd)
    os.close(child.progress_fd)


def _signal(children, number: int) -> None:
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            child.process.send_signal(number)

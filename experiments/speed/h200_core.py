"""The optimizer core on one H200: 124 M and 1 B weights, float32 and bfloat16, and the selection alone. Raw JSON.

From the root of a checkout, with jax[cuda], optax, chex and rich installed, under ten minutes:

    PYTHONPATH=. python experiments/speed/h200_core.py --out h200.json

The file is written after every group of cases, so that a run that is killed loses one group at most; no case is begun
after --minutes. `sparsejax report h200.json` draws it, anywhere. --device-check only looks for a GPU (exit code 2 where
there is none); --small runs everything on tiny trees, on any device.

Calls are asynchronous: a row's `dispatch_ms` is the host's share of an ordinary step. Where it is as long as the step
itself, the host was the limit, and the ratio says little about the GPU.
"""

from __future__ import annotations

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")  # jax reads it when it is imported

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from cases import CASES
from groups import Settings
from optimizer import Parser, add_tree, out_file, rounds, say
from program import no_compilation_cache
from record import default_path, heading
from sparsejax import selection
from sparsejax.files import write_json
from sparsejax.report.speed import show_tables
from sparsejax.selection import radix
from timing import ENOUGH
from trees import TREES, Tree, gpt

MEMORY = 90e9  # bytes of params, moments, masks and gradients at a time; temporaries come on top
ORDER = (  # what matters first
    "gmp", "rigl", "gmp_global", "set", "static", "granet", "srigl", "static_bool", "rigl_bool", "nm_2_4", "nm_1_16",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints the tables, writes the file; 1 where a case failed, 2 where there is no GPU."""
    began = time.monotonic()
    parser = Parser(prog="h200_core.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--out", type=out_file, metavar="FILE", help="default: results/<machine>-<date>.json")
    parser.add_argument("--rounds", type=rounds, default=ENOUGH, metavar="N", help=f"default {ENOUGH}")
    parser.add_argument("--minutes", type=float, default=8.0, help="no case is begun after them (default 8)")
    parser.add_argument("--small", action="store_true", help="tiny trees, on any device")
    parser.add_argument("--device-check", action="store_true", help="only look for a GPU")
    arguments = parser.parse_args(argv)
    device = jax.devices()[0]
    if device.platform != "gpu" and not arguments.small:
        parser.error(f"no GPU: jax {jax.__version__} sees {device.device_kind} ({device.platform})")
    say(f"{device.device_kind} ({device.platform}), jax {jax.__version__}")
    if arguments.device_check:
        return 0
    command = "python experiments/speed/h200_core.py" + " --small" * arguments.small
    results = heading(f"{command} --rounds {arguments.rounds}", arguments.rounds)
    out = arguments.out or default_path(results, complete=not arguments.small)
    out.parent.mkdir(parents=True, exist_ok=True)
    in_time = lambda: time.monotonic() - began < 60 * arguments.minutes
    settings = Settings(arguments.rounds, MEMORY, device.platform, say, most=3, time_left=in_time)
    cases = sorted(CASES, key=lambda case: ORDER.index(case.name))
    with no_compilation_cache():
        size = 10_000 if arguments.small else 100_000_000
        results["selection"] = [selection_alone(size, dtype) for dtype in ("float32", "bfloat16")]
        write_json(out, results)
        for tree in trees(arguments.small):
            add_tree(results, tree, cases, settings, out)
    show_tables(results, Console(highlight=False))
    print(f"written: {out}")
    return int(any(entry["failed"] for entry in results["left_out"]))


def trees(small: bool) -> list[Tree]:
    """Each size in each dtype; the smaller size first, since time may run out."""
    sizes = [Tree("gpt-tiny", gpt(1, 32, 64, 16))] if small else [TREES["gpt2"], TREES["gpt-1b"]]
    return [
        tree._replace(name=f"{tree.name} {dtype}", dtype=dtype, only=None)
        for tree in sizes
        for dtype in ("float32", "bfloat16")
    ]


def selection_alone(size: int, dtype: str) -> dict[str, Any]:
    """`top_mask` on one array, 10 % kept, against a copy (read and written) and one counting pass (read) of it.

    A pass is one reading of the array. Counted are those of the search for the threshold; what counts ties and writes
    the mask comes on top, so the rate given is a lower bound. None on a processor: there the data decide how many.
    """
    x = jax.random.normal(jax.random.key(0), (size,), dtype)
    passes = None if jax.default_backend() == "cpu" else 8 * x.dtype.itemsize // radix.BITS
    copy = seconds(jax.jit(jnp.negative), x)
    count = seconds(jax.jit(lambda x: jnp.sum(x >= x[0], dtype=jnp.int32)), x)
    mask = seconds(jax.jit(lambda x: selection.top_mask(x, size // 10)), x)
    giga = x.nbytes / 1e9
    return {
        "array": f"{size:,} {dtype}",
        "copy GB/s": 2 * giga / copy,
        "one count GB/s": giga / count,
        "top_mask ms": 1e3 * mask,
        "passes": passes,
        "GB/s per pass": passes and passes * giga / mask,
        "share of copy": passes and passes * giga / mask / (2 * giga / copy),
    }


def seconds(function: Callable[[Any], Any], x: jax.Array) -> float:
    """Median of nine measurements, each of as many calls as take 20 ms."""

    def run(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            result = function(x)
        jax.block_until_ready(result)
        return (time.perf_counter() - start) / calls

    run(1)
    calls = max(1, min(1_000, int(0.02 / run(3))))
    return statistics.median(run(calls) for _ in range(9))


if __name__ == "__main__":
    sys.exit(main())

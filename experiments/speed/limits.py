"""What the parts of a sparse step cost at least here, written by hand without the package's engines, against AdamW.

    python experiments/speed/limits.py [--rounds 15] [--out FILE]

Twelve leaves of GPT-2's feed-forward shape, 28.3 M weights in float32. Every part is a program of its own that reads
and writes what that part must; all are timed in turn, and given as multiples of AdamW by hand. A step cannot cost less
than AdamW with masks; a mask update not less than that, the check that all is finite, some counting passes for each
selection, and the new masks.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.packing import pack, unpack
from timing import interleaved, ratios, spread

SHAPE, LEAVES = (768, 3072), 12
RATE, B1, B2, EPS, DECAY = 1e-3, 0.9, 0.999, 1e-8, 1e-4
CANDIDATES = (0x3C000000, 0x3C800000, 0x3D000000)  # bits of floats from 2^-7 to 2^-5, among the weights


def adamw(w, g, mu, nu, select: Callable[[jax.Array], jax.Array] = lambda x: x, late: bool = False):
    """One leaf's AdamW step; the masked values are `select`ed on the way in, or once, on the way out (`late`)."""
    early, out = (lambda x: x, select) if late else (select, lambda x: x)
    mu = out(B1 * early(mu) + (1 - B1) * early(g))
    nu = out(B2 * early(nu) + (1 - B2) * early(g) ** 2)
    w = early(w) - RATE * (mu / (jnp.sqrt(nu) + EPS) + DECAY * early(w))
    return select(w), mu, nu


def stepped(mode: str) -> Callable[..., Any]:
    """`(weights, moments, masks, grads) -> (weights, moments)` of all leaves."""

    def step(weights, moments, masks, grads):
        new = []
        for w, (mu, nu), mask, g in zip(weights, moments, masks, grads, strict=True):
            on = unpack(mask) if mode != "bare" else None
            select = lambda x, on=on: x if on is None else jnp.where(on, x, 0)
            new.append(adamw(w, g, mu, nu, select, late=mode == "late"))
        return [w for w, _, _ in new], [(mu, nu) for _, mu, nu in new]

    return step


def summed(tests: list[jax.Array]) -> tuple[jax.Array, ...]:
    """How many entries pass each test, added up by rows, in one reading."""
    add = lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True))
    rows = lax.reduce(tuple(t.astype(jnp.uint32) for t in tests), (jnp.uint32(0),) * len(tests), add, (1,))
    return tuple(jnp.sum(x) for x in rows)


def bits(w: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(w, jnp.uint32) & jnp.uint32(0x7FFFFFFF)


def finite(weights, grads):
    """The check that no weight and no gradient is infinite or NaN."""
    fine = [jnp.isfinite(w) & jnp.isfinite(g) for w, g in zip(weights, grads, strict=True)]
    return [summed([ok, ~ok]) for ok in fine]


def passed(weights, masks):
    """A counting pass: how many kept |w| reach each of three candidates."""
    keys = [jnp.where(unpack(mask), bits(w), 0) for w, mask in zip(weights, masks, strict=True)]
    return [summed([key >= jnp.uint32(candidate) for candidate in CANDIDATES]) for key in keys]


def masked(weights):
    """New masks, one bit a weight, from weights and a cut."""
    return [pack(bits(w) > jnp.uint32(CANDIDATES[1])).bits for w in weights]


def two_of_four(weights):
    """2:4 masks along the inputs, one bit a weight: each is compared with the three others of its group."""

    def mask(w):
        a, b, c, d = (bits(w.reshape(-1, 4, w.shape[1])[:, i]) for i in range(4))
        ab, ac, ad, bc, bd, cd = a >= b, a >= c, a >= d, b >= c, b >= d, c >= d
        u = lambda test: test.astype(jnp.uint8)
        wins = (u(ab) + u(ac) + u(ad), u(~ab) + u(bc) + u(bd), u(~ac) + u(~bc) + u(cd), u(~ad) + u(~bd) + u(~cd))
        nibble = sum((u(won >= 2) << i for i, won in enumerate(wins)), jnp.uint8(0)).reshape(-1, 2, w.shape[1])
        return nibble[:, 0] | (nibble[:, 1] << 4)

    return [mask(w) for w in weights]


def timed(function: Callable[..., Any], *given: Any) -> Callable[[], float]:
    """One measurement of a part that changes nothing."""
    run = jax.jit(function).lower(*given).compile()

    def once() -> float:
        jax.block_until_ready(run(*given))
        start = time.perf_counter()
        jax.block_until_ready(run(*given))
        return time.perf_counter() - start

    return once


def timed_steps(mode: str, weights: list, masks: list, grads: list) -> Callable[[], float]:
    """One measurement of a step, its weights and moments donated."""
    state = [jax.tree.map(jnp.array, weights), [(jnp.zeros(SHAPE), jnp.zeros(SHAPE)) for _ in weights]]
    run = jax.jit(stepped(mode), donate_argnums=(0, 1)).lower(*state, masks, grads).compile()

    def once() -> float:
        state[:] = jax.block_until_ready(run(*state, masks, grads))
        start = time.perf_counter()
        state[:] = jax.block_until_ready(run(*state, masks, grads))
        return time.perf_counter() - start

    return once


def main() -> None:
    parser = argparse.ArgumentParser(description="What the parts of a sparse step cost at least, against AdamW.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    draw = lambda seed: [0.02 * jax.random.normal(jax.random.key(seed + i), SHAPE) for i in range(LEAVES)]
    weights, grads = draw(0), draw(100)
    masks = [pack(jax.random.bernoulli(jax.random.key(200 + i), 0.1, SHAPE)) for i in range(LEAVES)]
    parts = {
        "AdamW by hand": timed_steps("bare", weights, masks, grads),
        "AdamW, all masked on the way in": timed_steps("early", weights, masks, grads),
        "AdamW, masked once on the way out": timed_steps("late", weights, masks, grads),
        "check that all is finite": timed(finite, weights, grads),
        "one counting pass, three candidates": timed(passed, weights, masks),
        "new masks, packed": timed(masked, weights),
        "2:4 masks, packed": timed(two_of_four, weights),
    }
    seconds = interleaved(parts, args.rounds)
    found = {name: spread(ratios(each, seconds["AdamW by hand"])) for name, each in seconds.items()}
    for name, ratio in found.items():
        milliseconds = 1e3 * spread(list(seconds[name].values())).median
        print(f"{name:40} {milliseconds:7.2f} ms   {ratio.median:.2f} ({ratio.low:.2f}..{ratio.high:.2f}) x AdamW")
    if args.out:
        args.out.write_text(json.dumps({name: ratio._asdict() for name, ratio in found.items()}, indent=1) + "\n")


if __name__ == "__main__":
    main()

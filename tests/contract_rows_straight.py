"""The contract's rows of straight-through methods: their dense weights, behind the params, are what is ranked."""

import jax.numpy as jnp
import numpy as np
import oracles
from contract_cases import LAYOUTS, Behind, Row, _always, _level, _of, _uniform

import sparsejax


def _best(t, weights, grads, masks, counts):
    """The largest |w| of each leaf, whatever was kept before."""
    return [oracles.top(abs(oracles.exact(w)), k) for w, k in zip(weights, counts, strict=True)]


def _groups(weights, n, m):
    """The n largest |w| of every m along the last input axis, in Flax's layout."""
    found = []
    for weight in weights:
        moved = np.moveaxis(abs(oracles.exact(weight)), -2, -1)
        runs = moved.reshape(-1, m)
        mask = np.stack([oracles.top(run, n) for run in runs]).reshape(moved.shape)
        found.append(np.moveaxis(mask, -1, -2))
    return found


def _nm(method, **fixed):
    """A method of N:M; 1:2, since groups of two are cut by no device."""

    def make(inner, form, *, sparsity, seed=0):
        pattern = {0.5: sparsejax.nm(1, 2), 0.0: sparsejax.nm(2, 2)}[sparsity]
        return method(inner, pattern=pattern, seed=seed, layout=LAYOUTS.get(form), **fixed)

    return make


def _frame(t):
    """The n of every 4 from step 1 to 13 in three frames."""
    return (3, 2, 1)[min((t - 1) // 4, 2)]


def _halves(t, weights, grads, masks, counts):
    return _groups(weights, 1, 2)


def _decays(factor):
    return lambda v, mask, backward, t: factor * jnp.where(mask, jnp.zeros_like(v), v)


def _pulled(v, mask, backward, t):
    return 0.05 * jnp.where(mask, v, v / 0.25)


always = lambda t: True
f32, bf16, f16 = jnp.float32, jnp.bfloat16, jnp.float16
# All of them but asp waive clauses 3 and 4 by definition: dense weights, gradients and moments; see `Behind`.
ROWS = {
    "ste": Row(
        _of(sparsejax.ste), "adamw", bf16, "equinox", 0.8, 0.6, _level, _always(1.0), always, _best, behind=Behind(),
    ),
    "sr_ste": Row(
        _nm(sparsejax.sr_ste, lambda_w=0.05), "momentum", f32, "linen", 0.5, 0.0, _level, _always(1.0), always,
        _halves, behind=Behind(term=_decays(0.05)),
    ),
    "dnw": Row(
        _of(sparsejax.dnw, update_every=3), "lion", f32, "nnx", 0.7, 0.5, _level, _always(1.0),
        lambda t: t % 3 == 0, _best, behind=Behind(),
    ),
    "asp": Row(
        _nm(sparsejax.asp, at_step=3, multiples=None), "momentum", f16, "dataclasses", 0.5, 0.0, _uniform,
        lambda t: float(t >= 3), lambda t: t == 3, _halves,
    ),
    # Clause 1 holds once beta is 0: from step 6 on.
    "mdgf": Row(
        _of(sparsejax.mdgf, decay=0.25, update_start=2), "sgd", f32, "tuples", 0.8, 0.6, _uniform,
        lambda t: float(t >= 2), lambda t: t >= 2, _best,
        behind=Behind(share=lambda t: jnp.clip(1 - 0.25 * (t - 2), 0.0, 1.0)),
    ),
    "sdgf": Row(
        lambda inner, form, *, sparsity, seed=0: sparsejax.sdgf(
            inner, pattern=sparsejax.nm(1, 4), update_start=1, update_end=13, seed=seed
        ),
        "adamw", f32, "linen", 0.75, 0.75, _uniform, lambda t: (1 - _frame(t) / 4) / 0.75 if t else 0.0,
        lambda t: t >= 1, lambda t, weights, grads, masks, counts: _groups(weights, _frame(t), 4), gathers=True,
        behind=Behind(),
    ),
    # Moments are fresh off the weights that may move, a larger set than the mask.
    "top_kast": Row(
        _of(sparsejax.top_kast, update_every=2, penalty=0.05), "momentum", f32, "dataclasses", 0.75, 0.6, _level,
        _always(1.0), lambda t: t % 2 == 0, _best,
        behind=Behind(term=_pulled, moves=lambda mask, backward, t: backward, backward=True),
    ),
    # Clause 1 holds once the smallest are cut off: from step 9 on. Then clauses 3 and 4 hold too.
    "iss_p": Row(
        _of(sparsejax.iss_p, update_end=9), "adamw", f32, "tuples", 0.7, 0.5, _uniform, _always(1.0),
        lambda t: t <= 9, _best,
        behind=Behind(
            share=lambda t: jnp.float32(t < 9), shrink=lambda t: jnp.where(t < 9, 0.99, 0.0),
            moves=lambda mask, backward, t: mask | (t <= 9),
        ),
    ),
}  # fmt: skip

"""The contract test's rows of N:M methods that have more than a mask: BDWP, AST, CAST."""

import jax.numpy as jnp
import oracles
from contract_cases import LAYOUTS, Behind, Row, _always, _level, _of

import sparsejax


def _bdwp(inner, form, *, sparsity, seed=0):
    pattern = sparsejax.nm(2, 4)
    return sparsejax.bdwp(inner, sparsity=sparsity, pattern=pattern, update_end=8, seed=seed, layout=LAYOUTS.get(form))


def _cast(inner, form, *, sparsity, seed=0):
    options = dict(pattern=sparsejax.nm(2, 4), update_every=2, update_end=8, scale_groups=1, layout=LAYOUTS.get(form))
    return sparsejax.cast(inner, sparsity=sparsity, seed=seed, **options)


def _of_four(t, weights, grads, masks, counts):
    """The two largest |w| of every four along the inputs."""
    return [oracles.n_of_m(weight, 2, 4) for weight in weights]


def _of_two(t, weights, grads, masks, counts):
    """The largest |w| of every two along the inputs."""
    return [oracles.n_of_m(weight, 1, 2) for weight in weights]


def _half(shapes, sparsity):
    return [0.5] * len(shapes)


ROWS = {
    # Waives clause 1 until update_end: the params are dense by definition. Every step before it is an update step.
    "bdwp": Row(
        _bdwp, "momentum", jnp.float32, "linen", 0.5, 0.5, _half, lambda t: 1.0, lambda t: t < 8, _of_four,
        lays=8, after=True,
    ),
    "ast": Row(
        _of(sparsejax.ast, update_every=3, pattern=sparsejax.nm(1, 2)), "sgd", jnp.float32, "tuples", 0.5, 0.5,
        _level, _always(1.0), lambda t: t % 3 == 0, _of_two, behind=Behind(),
    ),
    # Waives clause 1 until update_end, too, and 3 and 4: the optimizer sees weights without their scales, and scales.
    "cast": Row(
        _cast, "sgd", jnp.float32, "linen", 0.5, 0.5, _half, lambda t: 1.0, lambda t: t <= 8 and t % 2 == 0, _of_four,
        lays=8, plain=False,
    ),
}  # fmt: skip

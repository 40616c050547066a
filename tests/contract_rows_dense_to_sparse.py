"""Rows of the contract: methods that go from dense to sparse."""

import dense_to_sparse_oracles as rules
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
from contract_cases import LAYOUTS, Row, _always, _of, _ramp, _uniform

import sparsejax

FLIPS = {1: 1.0, 4: 0.0, 6: 1.0, 9: 0.0, 11: 1.0}  # of AC/DC: share of the target sparsity from a step on
GRADIENTS, BLOCK, DAMP = 6, 24, 1e-2


def _phases(t):
    return ([0.0] + [share for step, share in FLIPS.items() if step <= t])[-1]


def _acdc(t, weights, grads, masks, counts):
    return rules.largest(weights, counts)


def _sap(inner, form, *, sparsity, seed=0):
    del sparsity  # the weights decide
    return sparsejax.sap(inner, update_every=3, seed=seed, layout=LAYOUTS.get(form))


def _sap_rule(t, weights, grads, masks, counts):
    return rules.sap(weights, masks, "layer")


def some_gradients(params, i):
    """The i-th of many gradients, at these params: any function that NumPy and XLA compute alike."""

    def some(w):
        place = jnp.arange(w.size, dtype=jnp.float32).reshape(w.shape)
        turn = (place * 7 + i * 13) % 31 - 15  # whole numbers
        return (turn / 16 + w.astype(jnp.float32) / 4).astype(w.dtype)

    return jax.tree.map(some, params)


def gradients_by_hand(weights, number=GRADIENTS):
    """`some_gradients` in NumPy: (number, *shape) for each leaf."""
    found = []
    for weight in weights:
        place = np.arange(weight.size, dtype=np.float32).reshape(weight.shape)
        turns = np.stack([(place * 7 + i * 13) % 31 - 15 for i in range(number)])
        found.append(turns / 16 + oracles.exact(weight) / 4)
    return found


def with_gradients(tx):
    """The transformation with `grads_fn` given."""

    def update(grads, state, params=None, **extra):
        return tx.update(grads, state, params, grads_fn=some_gradients, **extra)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _obert(inner, form, *, sparsity, seed=0):
    options = dict(update_end=11, update_every=4, gradients=GRADIENTS, block_size=BLOCK, damp=DAMP)
    return with_gradients(sparsejax.obert(inner, sparsity=sparsity, seed=seed, layout=LAYOUTS.get(form), **options))


def _obert_rule(t, weights, grads, masks, count):
    weights = [np.where(m, w, np.zeros_like(w)) for w, m in zip(weights, masks, strict=True)]
    return rules.obert(weights, masks, count, gradients_by_hand(weights), BLOCK, DAMP)[0]


def _table():
    ramp, ramp_due = _ramp(0, 11, 4)
    f32, bf16 = jnp.float32, jnp.bfloat16
    flips = dict(
        sparse_starts=[step for step, share in FLIPS.items() if share],
        dense_starts=[step for step, share in FLIPS.items() if not share],
    )
    return {
        # In its dense phases no weight is promised to be zero: all masks are full there, and clause 1 says nothing.
        "acdc": Row(
            _of(sparsejax.acdc, distribution=sparsejax.distributions.uniform, **flips), "momentum", bf16, "tuples",
            0.8, 0.6, _uniform, _phases, lambda t: t in FLIPS, _acdc,
        ),
        # How sparse it gets is not asked for: the counts are the oracle's.
        "sap": Row(
            _sap, "adamw", f32, "linen", 0.0, 0.0, _uniform, _always(0.0), lambda t: t > 0 and t % 3 == 0, _sap_rule,
            counted=False,
        ),
        # An update changes kept weights too; its matrices gather leaves.
        "obert": Row(
            _obert, "sgd", f32, "nnx", 0.8, 0.6, _uniform, ramp, ramp_due, _obert_rule, layerwise=False, adjusts=True,
            gathers=True,
        ),
    }  # fmt: skip


ROWS = _table()

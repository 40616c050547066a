"""Requests that cannot be met: a ValueError, at construction or init, that names the leaf or argument and the value."""

import jax.numpy as jnp
import pytest
from small_tree import SGD, small

import sparsejax
from sparsejax import nm, rigl, schedules, static


def kernel(leaf):
    """Something for the kernel of the small tree, None for its bias."""
    return {"Dense_0": {"kernel": leaf, "bias": None}}


NO_RULE = (schedules.rewire(5, 0.3),)
IMPOSSIBLE = {
    "sparsity 1": (lambda: rigl(SGD, sparsity=1.0), "sparsity=1.0"),
    "sparsity below 0": (lambda: static(SGD, sparsity=-0.1), "sparsity=-0.1"),
    "sparsity NaN": (lambda: sparsejax.gmp(SGD, sparsity=float("nan")), "sparsity=nan"),
    "sparsity missing": (lambda: sparsejax.set_(SGD), "sparsity"),
    "sparsity a word": (lambda: sparsejax.one_shot(SGD, sparsity="high"), "sparsity='high'"),
    "neither": (lambda: static(SGD), "sparsity"),
    "both": (lambda: static(SGD, sparsity=0.5, masks={}), "masks"),
    "n above m": (lambda: nm(5, 4), "nm"),
    "n zero": (lambda: nm(0, 4), "nm"),
    "disagrees with n:m": (lambda: rigl(SGD, sparsity=0.9, pattern=nm(2, 4)), "0.9.*0.5"),
    "distribution with n:m": (
        lambda: rigl(SGD, pattern=nm(2, 4), distribution=sparsejax.distributions.erk),
        "distribution",
    ),
    "m does not divide": (lambda: rigl(SGD, pattern=nm(2, 5)).init(small()), "Dense_0/kernel.*12.*5"),
    "axis of n:m": (lambda: rigl(SGD, pattern=nm(2, 4, axis=2)).init(small()), "axis 2"),
    "density": (
        lambda: rigl(SGD, sparsity=0.5, distribution=lambda *_: kernel(1.5)).init(small()),
        "Dense_0/kernel.*1.5",
    ),
    "no leaf": (lambda: rigl(SGD, sparsity=0.5, where=lambda path, leaf: False).init(small()), "where.*Dense_0/kernel"),
    "glob": (lambda: rigl(SGD, sparsity=0.5, where=sparsejax.except_("Dens_0/*")).init(small()), "Dens_0.*Dense_0"),
    "pattern glob": (
        lambda: rigl(SGD, sparsity=0.5, pattern={"Conv*": nm(2, 4)}).init(small()), "Conv.*Dense_0",
    ),
    "layout": (
        lambda: rigl(SGD, sparsity=0.5, layout=lambda path, leaf: ((), (0,), (0,))).init(small()),
        "layout.*Dense_0/kernel",
    ),
    "masks' shape": (
        lambda: static(SGD, masks=kernel(jnp.ones((8, 12), bool))).init(small()),
        r"Dense_0/kernel.*\(12, 8\).*\(8, 12\)",
    ),
    "masks' dtype": (
        lambda: static(SGD, masks=kernel(jnp.ones((12, 8)))).init(small()),
        "Dense_0/kernel.*bool.*float32",
    ),
    "masks' tree": (lambda: static(SGD, masks={"Dense_1": None}).init(small()), "masks"),
    "ties": (lambda: rigl(SGD, sparsity=0.5, ties="first"), "ties='first'.*random"),
    "drop fraction": (lambda: rigl(SGD, sparsity=0.5, drop_fraction=1.5), "drop_fraction=1.5"),
    "every": (lambda: sparsejax.set_(SGD, sparsity=0.5, update_every=0), "update_every=0"),
    "every in gmp": (lambda: sparsejax.gmp(SGD, sparsity=0.5, update_every=0), "update_every=0"),
    "end before start": (lambda: sparsejax.gmp(SGD, sparsity=0.5, update_start=9, update_end=5), "update_end=5"),
    "initial above target": (lambda: sparsejax.gmp(SGD, sparsity=0.5, initial_sparsity=0.6), "initial_sparsity=0.6"),
    "at_step": (lambda: sparsejax.one_shot(SGD, sparsity=0.5, at_step=-1), "at_step=-1"),
    "rounding": (lambda: rigl(SGD, sparsity=0.5, drop_rounding="up"), "drop_rounding='up'"),
    "distribution's name": (lambda: sparsejax.gmp(SGD, sparsity=0.5, distribution="erk"), "distribution='erk'"),
    "global in RigL": (lambda: rigl(SGD, sparsity=0.5, distribution="global"), "global"),
    "global with a pattern": (lambda: sparsejax.gmp(SGD, distribution="global", pattern=nm(2, 4)), "distribution"),
    "block": (lambda: sparsejax.block((0, 4)), "block"),
    "two ramps": (
        lambda: sparsejax.sparse_wrapper(SGD, sparsejax.keep_best, plan=(schedules.gradual(5, 1),) * 2, sparsity=0.5),
        "gradual",
    ),
    "no rule": (lambda: sparsejax.sparse_wrapper(SGD, plan=NO_RULE, sparsity=0.5), "new_mask"),
    "no params": (lambda: _without_params(rigl(SGD, sparsity=0.5)), "params"),
    "given masks and a ramp": (
        lambda: _update(
            sparsejax.sparse_wrapper(
                SGD, sparsejax.keep_best, plan=(schedules.gradual(5, 1),),
                masks=kernel(jnp.ones((12, 8), bool)),
            )
        ),
        "sparsity|masks",
    ),
}  # fmt: skip


def _without_params(tx):
    params = small()
    tx.update(params, tx.init(params))


def _update(tx):
    params = small()
    tx.update(params, tx.init(params), params)


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_requests(name):
    """One ValueError, at construction or init, with the leaf or argument, the value and what is allowed."""
    build, message = IMPOSSIBLE[name]
    with pytest.raises(ValueError, match=message):
        build()

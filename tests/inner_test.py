"""Which leaves of an inner optimizer's state belong to which parameter."""

import jax.numpy as jnp
import optax

from sparsejax.transforms.inner import owned_leaves, params_shaped


def test_moments_are_found_and_counters_are_not():
    params = {"a": {"kernel": jnp.ones((2, 3))}, "b": {"kernel": jnp.ones((2, 3))}}
    assert owned_leaves(optax.adam(0.1).init(params), params) == [None, 0, 1, 0, 1]  # count, mu, nu


def test_a_parameter_named_like_a_moment_keeps_its_own():
    params = {"kernel": jnp.ones((2, 3)), "mu": {"kernel": jnp.ones((2, 3))}}
    assert owned_leaves(optax.adam(0.1).init(params), params) == [None, 0, 1, 0, 1]


def test_other_shapes_are_left_alone():
    params = {"kernel": jnp.ones((256, 128))}
    state = optax.adafactor(0.1).init(params)
    assert all(owner is None for owner in owned_leaves(state, params))  # its moments are factored


def test_a_bare_array_owns_what_has_its_shape():
    params = jnp.ones((2, 3))
    assert [sorted(leaves) for leaves in params_shaped(optax.adam(0.1).init(params), params)] == [["0/mu", "0/nu"]]

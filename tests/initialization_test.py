"""Density-aware initialisation: scales by hand, and the variance that it is there to keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.initialization import density_aware
from sparsejax.leaves import equinox_layout, stacked

MASK = jnp.array([[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]], bool)  # 4 inputs, 3 outputs: 4, 1 and 0 kept


def test_each_leaf_by_its_density_or_each_output_by_its_inputs():
    params = {"a": {"kernel": jnp.full((4, 3), 2.0), "bias": jnp.ones(3)}, "b": {"kernel": jnp.ones((2, 2))}}
    masks = {"a": {"kernel": MASK, "bias": None}, "b": {"kernel": None}}
    plain = density_aware(params, masks)
    np.testing.assert_allclose(plain["a"]["kernel"], np.where(MASK, 2 * np.sqrt(12 / 5), 0), rtol=1e-6)
    exact = density_aware(params, masks, per_output=True)
    by_output = np.array([2 * np.sqrt(4 / 4), 2 * np.sqrt(4 / 1), 0])
    np.testing.assert_allclose(exact["a"]["kernel"], np.where(MASK, by_output, 0), rtol=1e-6)
    for scaled in (plain, exact):
        np.testing.assert_array_equal(scaled["a"]["bias"], params["a"]["bias"])
        np.testing.assert_array_equal(scaled["b"]["kernel"], params["b"]["kernel"])
        assert jax.tree.structure(scaled) == jax.tree.structure(params)


def test_stacked_layers_have_densities_of_their_own():
    params = {"layers": {"kernel": jnp.ones((2, 4, 3))}}
    masks = {"layers": {"kernel": jnp.stack([MASK, jnp.ones((4, 3), bool)])}}
    scaled = density_aware(params, masks, stacked("layers/*"))["layers"]["kernel"]
    np.testing.assert_allclose(scaled[0], np.where(MASK, np.sqrt(12 / 5), 0), rtol=1e-6)
    np.testing.assert_allclose(scaled[1], 1, rtol=1e-6)
    together = density_aware(params, masks)["layers"]["kernel"]
    np.testing.assert_allclose(together[1], np.sqrt(24 / 17), rtol=1e-6)
    by_output = density_aware(params, masks, stacked("layers/*"), per_output=True)["layers"]["kernel"]
    np.testing.assert_allclose(by_output[0], np.where(MASK, [1, 2, 0], 0), rtol=1e-6)


def test_the_layout_says_which_axes_are_inputs():
    params, masks = {"weight": jnp.ones((3, 4))}, {"weight": MASK.T}
    scaled = density_aware(params, masks, equinox_layout, per_output=True)["weight"]
    np.testing.assert_allclose(scaled, np.where(MASK.T, np.array([[1], [2], [0]]), 0), rtol=1e-6)


def test_a_convolution_counts_its_taps_and_keeps_the_variance_of_its_sums():
    rng = np.random.default_rng(0)
    mask = rng.random((3, 3, 32, 64)) < np.linspace(0.02, 0.3, 64)
    kernel = rng.normal(0, np.sqrt(2 / 288), mask.shape).astype(np.float32)
    scaled = density_aware({"kernel": kernel}, {"kernel": jnp.asarray(mask)}, per_output=True)["kernel"]
    kept = mask.sum((0, 1, 2))
    expected = kernel * np.where(mask, np.sqrt(288 / kept), 0)
    np.testing.assert_allclose(scaled, expected, rtol=1e-5)
    # Σ w² over an output's inputs is 2 in the dense net; by the leaf's density it is 2 on average alone.
    assert float((np.asarray(scaled) ** 2).sum((0, 1, 2)).mean()) == pytest.approx(2, rel=0.05)
    plain = np.asarray(density_aware({"kernel": kernel}, {"kernel": jnp.asarray(mask)})["kernel"])
    sums = (plain**2).sum((0, 1, 2))
    assert float(sums.mean()) == pytest.approx(2, rel=0.05)
    assert float(sums[-8:].mean()) > 4 * float(sums[:8].mean())


def test_dtype_jit_and_vmap():
    params = {"kernel": jnp.ones((2, 4, 3), jnp.bfloat16)}
    masks = {"kernel": jnp.stack([MASK, ~MASK])}
    scaled = jax.jit(jax.vmap(density_aware))(params, masks)["kernel"]
    assert scaled.dtype == jnp.bfloat16
    np.testing.assert_allclose(scaled[0].astype(float), np.where(MASK, np.sqrt(12 / 5), 0), rtol=1e-2)
    np.testing.assert_allclose(scaled[1].astype(float), np.where(MASK, 0, np.sqrt(12 / 7)), rtol=1e-2)


def test_trees_that_do_not_fit():
    with pytest.raises(ValueError):
        density_aware({"kernel": jnp.ones((4, 3))}, {"other": MASK})

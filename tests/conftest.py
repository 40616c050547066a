"""Strictness for every test: eight host devices, and a rank promotion raises; setup.cfg turns warnings into errors."""

import gc
import os
from importlib import metadata

# XLA's older emitters write kernels in half the time, and most of what tests do is compile. They are in jaxlib 0.10;
# to later ones the option is unknown, and there the tests run by the emitters that users get.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_cpu_use_fusion_emitters=false" * metadata.version("jaxlib").startswith("0.10."),
    ]
)

import devices  # noqa: F401
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
gc.set_threshold(100_000)  # tracing makes many objects and few cycles: a twelfth of the time went in looking for them


@pytest.fixture(scope="module", autouse=True)
def forgotten():
    """What a module compiled is no use to the next one, and the collector would look through all of it for ever."""
    yield
    jax.clear_caches()
    gc.collect()
    gc.freeze()

"""Strictness for every test: eight host devices, and a rank promotion raises; setup.cfg turns warnings into errors."""

import os
from importlib import metadata

flags = ["--xla_force_host_platform_device_count=8"]
if metadata.version("jaxlib").startswith("0.10."):
    # XLA's older emitters write the same kernels in half the time, and most of what the tests do is compile. From 0.11
    # on they are gone, and the option with them.
    flags.append("--xla_cpu_use_fusion_emitters=false")

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])

import devices  # noqa: F401
import jax

jax.config.update("jax_numpy_rank_promotion", "raise")

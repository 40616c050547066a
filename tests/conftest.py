"""Strictness for every test: eight host devices, and a rank promotion raises; setup.cfg turns warnings into errors."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import devices  # noqa: F401
import jax

jax.config.update("jax_numpy_rank_promotion", "raise")

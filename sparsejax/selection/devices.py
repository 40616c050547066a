"""Where leaves may be."""

from __future__ import annotations

import jax


def on_one_device() -> bool:
    """Whether no leaf can be sharded."""
    return jax.device_count() == 1


def on_processor() -> bool:
    """Whether programs run on a processor, not on an accelerator."""
    return jax.default_backend() == "cpu"

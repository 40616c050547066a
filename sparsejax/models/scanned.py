"""From a loop over layers to a scan and back: `block_0`, `block_1`, ... <-> `blocks`, with layers along axis 0."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

_BLOCK = re.compile(r"block_(\d+)")


def stack_blocks(params: Mapping[str, Any]) -> dict[str, Any]:
    """The params of a model with `scan`, from those of the same model without.

    Args:
      params: a dict with `block_0`, `block_1`, ... of equal structure and shapes, and others, which stay. Masks are
        fine: None stays None.

    Raises:
      ValueError: there are no blocks, one is missing, or two differ.

    Example:
      >>> stack_blocks({"block_0": {"w": jnp.ones(3)}, "block_1": {"w": jnp.ones(3)}})["blocks"]["w"].shape
      (2, 3)
    """
    found = sorted(int(match[1]) for match in map(_BLOCK.fullmatch, params) if match)
    if not found or found != list(range(len(found))):
        raise ValueError(f"params: blocks {found} are not block_0, block_1, ... without a gap")
    blocks = [params[f"block_{layer}"] for layer in found]
    rest = {name: tree for name, tree in params.items() if not _BLOCK.fullmatch(name)}
    return rest | {"blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}


def unstack_blocks(params: Mapping[str, Any]) -> dict[str, Any]:
    """The params of a model without `scan`, from those of the same model with it.

    Raises:
      ValueError: there is no `blocks`.

    Example:
      >>> sorted(unstack_blocks({"blocks": {"w": jnp.ones((2, 3))}, "head": jnp.ones(3)}))
      ['block_0', 'block_1', 'head']
    """
    if "blocks" not in params:
        raise ValueError(f"params: no 'blocks' among {', '.join(params) or '(nothing)'}")
    blocks = params["blocks"]
    layers = len(jax.tree.leaves(blocks)[0])
    apart = {f"block_{layer}": jax.tree.map(lambda leaf: leaf[layer], blocks) for layer in range(layers)}  # noqa: B023
    return {name: tree for name, tree in params.items() if name != "blocks"} | apart

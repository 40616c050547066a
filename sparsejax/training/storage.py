"""What a run's final weights take: parameters that are zero, bits of the masks, bytes by format."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sparsejax import flops
from sparsejax.leaves import Layout, named_leaves


def storage(
    params: Any, masks: Mapping[str, np.ndarray], nm: tuple[int, int] | None = None, layout: Layout | None = None
) -> dict[str, Any]:
    """Parameters, the share of them that is zero, bits of the masks, and bytes by format; means over the seeds.

    Args:
      params: stacked, arrays or shapes.
      masks: path -> bool (S, *shape) on the host; {} of a dense run.
      nm: (n, m), where masks keep n of every m.
      layout: tells the input axes for nm; None is Flax's.

    Returns:
      "parameters": of one seed, masked or not; "parameter_sparsity": one share a seed; "mask_bits": one bit a masked
      weight; "bytes": as of `flops.bytes_of`, a list with one number a seed each.

    Example:
      >>> params = {"kernel": jnp.ones((1, 4, 4)), "bias": jnp.ones((1, 4))}
      >>> found = storage(params, {"kernel": np.eye(4, dtype=bool)[None]})
      >>> found["parameters"], found["parameter_sparsity"], found["mask_bits"], found["bytes"]["csr"]
      (20, [0.6], 16, [68])
    """
    shapes = {path: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for path, leaf in named_leaves(params)}
    seeds = jax.tree.leaves(params)[0].shape[0]
    parameters = sum(math.prod(shape.shape) for shape in shapes.values())
    by_seed = [{path: mask[index] for path, mask in masks.items()} for index in range(seeds)]
    zeros = [sum(int(mask.size - np.count_nonzero(mask)) for mask in own.values()) for own in by_seed]
    sizes = [flops.bytes_of(own, shapes, nm=nm, layout=layout) for own in by_seed]
    return {
        "parameters": parameters,
        "parameter_sparsity": [count / parameters for count in zeros],
        "mask_bits": sum(mask[0].size for mask in masks.values()),
        "bytes": {name: [each[name] for each in sizes] for name in sizes[0]},
    }

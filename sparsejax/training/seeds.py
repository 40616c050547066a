"""All seeds of a trial in one program: side by side, or, where that would be slow, one after another.

On a processor XLA has no fast program for convolutions inside a loop, and none for those of several seeds at once,
which become one with groups. A step of ResNet-20 with 32 images took 0.11 s on two cores, and 2.0 s inside a loop; of
three seeds, 0.42 s in turn and 0.94 s side by side (2026-11-25, jax 0.10.2). Nets with convolutions are thus run there
one seed after another, and one step in each dispatch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

_KERNEL_NDIM = 5  # of a convolution's kernel (height, width, in, out) behind the axis of seeds


def each_seed(function: Callable[..., Any], in_axes: Sequence[int | None]) -> Callable[..., Any]:
    """`jax.vmap(function, in_axes)`, axes 0 or None, for functions whose first argument is a net's stacked params."""

    def apply(*given: Any) -> Any:
        if not one_by_one(given[0]):
            return jax.vmap(function, in_axes)(*given)
        seeds = jax.tree.leaves(given[0])[0].shape[0]
        own = lambda i: [jax.tree.map(lambda x: x[i], v) if a == 0 else v for v, a in zip(given, in_axes, strict=True)]
        found = [function(*own(i)) for i in range(seeds)]
        return jax.tree.map(lambda *each: jnp.stack(each), *found)

    return apply


def one_by_one(params: Any) -> bool:
    """Whether nets with these stacked params are run seed by seed and step by step here."""
    return jax.default_backend() == "cpu" and any(leaf.ndim == _KERNEL_NDIM for leaf in jax.tree.leaves(params))


def own_axis(seeds: int, devices: int) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """What takes the axis of seeds off a tree and what puts it back, for a loop of one seed; else the same one twice.

    XLA does not take a batch of one away everywhere. Without the axis a step of LeNet-300-100 took 0.91 of the time, of
    a GPT of 0.8 M parameters 1.07 (2026-11-25, two cores, jax 0.10.2).
    """
    if seeds > 1 or devices > 1:
        return _unchanged, _unchanged
    return (lambda tree: jax.tree.map(lambda x: x[0], tree)), (lambda tree: jax.tree.map(lambda x: x[None], tree))


def _unchanged(tree: Any) -> Any:
    return tree

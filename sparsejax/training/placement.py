"""Where everything lies when a run takes several devices of one host: batches split, parameters sharded.

The mesh has two axes. A batch is split over both of them. Over "fsdp", parameters are split too, along the largest
axis that the number of devices divides; masks and moments, which have the shape of their parameter, by the same rule
and so in the same way. Where the model uses a parameter it is gathered; its gradient is summed into the shards again.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sparsejax.training.errors import ConfigError

AXES = ("data", "fsdp")


def make_mesh(wanted: Mapping[str, int]) -> Mesh | None:
    """The mesh of a config's `mesh`, as {"data": 2, "fsdp": 4}; -1 is all devices that are left; None without one.

    Raises:
      ConfigError: there are not so many devices.
    """
    if not wanted:
        return None
    there = jax.local_device_count()
    fixed = math.prod(size for size in wanted.values() if size > 0)
    if list(wanted.values()).count(-1) > 1:
        raise ConfigError("mesh: only one of data and fsdp can be -1 (all devices that are left)")
    sizes = {name: there // fixed if size == -1 else size for name, size in wanted.items()}
    devices = math.prod(sizes.values())
    if not 0 < devices <= there:
        asked = " x ".join(f"{name}={wanted[name]}" for name in AXES)
        raise ConfigError(f"mesh: {asked} are more than the {there} devices of this host")
    shape = tuple(sizes[name] for name in AXES)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 2, devices=jax.local_devices()[:devices])


class Placement:
    """How arrays lie on a mesh, or on the default device if that is None.

    Example:
      >>> Placement(None).of({"kernel": jnp.ones((1, 8, 4))}) is None
      True
    """

    def __init__(self, mesh: Mesh | None):
        self.mesh = mesh

    @property
    def devices(self) -> int:
        """How many devices there are."""
        return self.mesh.size if self.mesh else 1

    def of(self, state: Any) -> Any:
        """The sharding of each leaf of a stacked state (arrays or their shapes); None without a mesh."""
        return jax.tree.map(self._of_leaf, state) if self.mesh else None

    def keep(self, state: Any) -> Any:
        """The traced state, held in its places."""
        return jax.lax.with_sharding_constraint(state, self.of(state)) if self.mesh else state

    def split(self, batch: Any) -> Any:
        """Traced arrays (S, B, ...), split along B."""
        if not self.mesh:
            return batch
        return jax.lax.with_sharding_constraint(batch, NamedSharding(self.mesh, PartitionSpec(None, AXES)))

    def gathered(self, params: Any) -> Any:
        """Traced params of one seed, whole on every device; their gradient is sharded as they are.

        Without this the compiler may split activations by what the parameters are split by, and move them about.
        """
        if not self.mesh:
            return params
        whole = NamedSharding(self.mesh, PartitionSpec())
        shards = jax.tree.map(lambda leaf: self._sharding(leaf.dtype, leaf.shape, seeds=False), params)

        @jax.custom_vjp
        def gather(params):
            return jax.lax.with_sharding_constraint(params, whole)

        def scatter(_, grads):  # summed first, then cut: of shards alone the compiler would ask for split activations
            return (jax.lax.with_sharding_constraint(jax.lax.with_sharding_constraint(grads, whole), shards),)

        gather.defvjp(lambda p: (gather(p), None), scatter)
        return gather(params)

    def put(self, tree: Any) -> Any:
        """Arrays that every device holds whole."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec())) if self.mesh else tree

    def put_split(self, tree: Any) -> Any:
        """Arrays (K, B, ...), split along B."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec(None, AXES)) if self.mesh else None)

    def _of_leaf(self, leaf: Any) -> NamedSharding:
        return self._sharding(leaf.dtype, leaf.shape[1:], seeds=leaf.ndim > 0)

    def _sharding(self, dtype: Any, sizes: tuple[int, ...], *, seeds: bool) -> NamedSharding:
        """Of a leaf of these sizes, in front of which the state has the axis of the seeds."""
        assert self.mesh is not None
        shards = self.mesh.shape["fsdp"]
        # Floats, masks and packed masks; counters, keys and tables stay whole.
        split = jnp.issubdtype(dtype, jnp.floating) or dtype in (jnp.bool_, jnp.uint8)
        fitting = [axis for axis, size in enumerate(sizes) if size % shards == 0 and size > 1]
        spec: list[str | None] = [None] * len(sizes)
        if split and shards > 1 and fitting:
            spec[max(fitting, key=lambda axis: sizes[axis])] = "fsdp"
        while spec and spec[-1] is None:  # as the compiler writes it
            spec.pop()
        return NamedSharding(self.mesh, PartitionSpec(*([None] if seeds and spec else []), *spec))

"""Random parameter sharing (ROAST): all weights of a model are read from one small array, at places given by a hash."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsejax.leaves import default_where, named_leaves
from sparsejax.models.fields import check_form
from sparsejax.models.layers import variance

Model = TypeVar("Model", bound=nn.Module)


class Roast(NamedTuple):
    """What a model's attribute `roast` holds; `roast` makes it, and checks it."""

    density: float
    stabilised: bool = True
    tile: int = 256
    memory_std: float = 0.04
    seed: int = 0


def roast(
    model: Model,
    density: float,
    *,
    stabilised: bool = True,
    tile: int = 256,
    memory_std: float = 0.04,
    seed: int = 0,
) -> Model:
    """The model with all its kernels read from one shared array: as little memory as a mask of this density keeps.

    w = λ g θ[h], where θ (`memory`, of density x the kernels' size) is the only parameter, h a place, g = ±1, both
    given by a hash of the layer and of the position in it, and λ = (standard deviation of the layer's initial weights)
    / memory_std. Replaced are the leaves of the default `where`, convolutions and dense layers alike; their biases and
    all else stay. FLOPs stay those of the dense model: it is a baseline of equal memory, not of equal work.

    Stabilised (STABLE-RPS): all kernels in a row are cut into pieces of the memory's size, and each piece is the
    memory, rotated by a hash; at density 1 each weight has a place of its own. The gradient of θ_i is divided by
    Σ λ², summed over the weights that share it: an SGD step moves the weights by what of their own gradient step the
    sharing allows (its projection), whatever memory_std; at density 1 the model trains as the dense one. Otherwise
    (ROAST): each run of `tile` weights of a layer is a run of the memory, at a place of its own, and the gradient is
    the plain sum Σ λ g ∂L/∂w. Optimizers that normalise gradients, such as Adam, hardly see the difference in scale.

    Unverified: which divisor the paper used. The official code has several; its default is (Σ λ)² / count, the same
    where the λ are equal. Its tiles are two-dimensional; here they are runs of a flattened kernel, outputs last.

    Args:
      model: MLP, LeNet5, ResNet or WideResNet, whatever their size.
      density: parameters in the memory by weights that they replace, in (0, 1].
      stabilised: with both changes of STABLE-RPS.
      tile: length of a run in ROAST, in weights.
      memory_std: standard deviation with which the memory starts.
      seed: of the hashes; the same for all seeds of a run.

    Raises:
      ValueError: the model has no such form, or an argument is out of range.

    Example:
      >>> from sparsejax.models import MLP
      >>> model = roast(MLP(10, features=(300, 100)), density=0.05)
      >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 784)))["params"]
      >>> shapes["memory"].shape, sorted(shapes["Dense_0"])
      ((13310,), ['bias'])

    Source: Desai et al., Hardware-Aware Compression with Random Operation Access Specific Tile Hashing (2023); Desai &
    Shrivastava, In defense of parameter sharing for model-compression (2024); their official code.
    """
    check_form(model, "roast", "MLP, LeNet5, ResNet, WideResNet")
    if not _number(density) or not 0 < density <= 1:
        raise ValueError(f"roast: density {density!r} is not a number in (0, 1]")
    if not isinstance(stabilised, bool):
        raise ValueError(f"stabilised: {stabilised!r} is not true or false")
    if not _number(memory_std) or not 0 < memory_std < math.inf:
        raise ValueError(f"memory_std: {memory_std!r} is not a number > 0")
    for name, value, least in (("tile", tile, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}: {value!r} is not an integer >= {least}")
    return model.clone(roast=Roast(float(density), stabilised, tile, float(memory_std), seed))


class Plan(NamedTuple):
    """Where each weight is in the memory.

    Attributes:
      layers: (path, shape, λ, first position) of each kernel; positions count weights of all layers in a row.
      size: of the memory.
      starts: where in the memory each run of positions begins; one that passes the end goes on at the beginning.
      run: positions in a run.
      divisor: float32 (size,), by which the memory's gradient is divided; None: by nothing.
      seed: of the signs.
    """

    layers: tuple[tuple[str, tuple[int, ...], float, int], ...]
    size: int
    starts: np.ndarray
    run: int
    divisor: np.ndarray | None
    seed: int


def plan_of(spec: Roast, shapes: dict[str, tuple[int, ...]], deviations: dict[str, float]) -> Plan:
    """The plan for kernels of these shapes and initial standard deviations, by path.

    Example:
      >>> plan = plan_of(Roast(0.5), {"a/kernel": (4, 4), "b/kernel": (4, 1)}, {"a/kernel": 0.5, "b/kernel": 0.5})
      >>> plan.size, plan.run, plan.starts.shape
      (10, 10, (2,))
    """
    weights = sum(map(math.prod, shapes.values()))
    size = max(1, round(spec.density * weights))
    run = size if spec.stabilised else min(spec.tile, size)
    layers, starts, position = [], [], 0
    for index, (path, shape) in enumerate(shapes.items()):
        layers.append((path, shape, deviations[path] / spec.memory_std, position))
        if not spec.stabilised:  # each layer begins a run
            runs = -(-math.prod(shape) // run)
            starts.append(_hashed(np.arange(runs, dtype=np.uint32), spec.seed, index) % np.uint32(size - run + 1))
            position += runs * run
        else:
            position += math.prod(shape)
    if spec.stabilised:
        starts = [_hashed(np.arange(-(-weights // size), dtype=np.uint32), spec.seed, 0) % np.uint32(size)]
    plan = Plan(tuple(layers), size, np.concatenate(starts).astype(np.int32), run, None, spec.seed)
    return plan._replace(divisor=_divisor(plan)) if spec.stabilised else plan


def _divisor(plan: Plan) -> np.ndarray:
    """Σ λ² over the weights at each place of the memory; 1 where there are none."""
    total = np.zeros(plan.size)
    for _, shape, scale, first in plan.layers:
        total += scale**2 * np.bincount(places(plan, first, math.prod(shape)), minlength=plan.size)
    return np.where(total > 0, total, 1).astype(np.float32)


def places(plan: Plan, first: int, count: int) -> np.ndarray:
    """The place in the memory of each of `count` positions from `first` on."""
    position = np.arange(first, first + count)
    return (plan.starts[position // plan.run] + position % plan.run) % plan.size


def read(memory_M: jax.Array, plan: Plan) -> dict[str, jax.Array]:
    """All kernels by path, read from the memory."""
    if plan.divisor is not None:
        memory_M = _divided_gradient(memory_M, jnp.asarray(plan.divisor))
    twice = jnp.concatenate([memory_M, memory_M])  # a run that passes the end is a slice, too
    flat = jax.vmap(lambda start: lax.dynamic_slice(twice, (start,), (plan.run,)))(jnp.asarray(plan.starts)).reshape(-1)
    out = {}
    for path, shape, scale, first in plan.layers:
        position = jnp.arange(first, first + math.prod(shape), dtype=jnp.uint32)
        scales = jnp.where(_hashed(position, plan.seed, -1) & np.uint32(1) == 1, scale, -scale)
        out[path] = (flat[first : first + math.prod(shape)] * scales.astype(flat.dtype)).reshape(shape)
    return out


@jax.custom_jvp
def _divided_gradient(x: jax.Array, divisor: jax.Array) -> jax.Array:
    """x; its derivative is not 1 but 1 / divisor."""
    del divisor
    return x


@_divided_gradient.defjvp
def _(primals, tangents):
    return primals[0], tangents[0] / primals[1]


def _hashed(x: Any, seed: int, stream: int) -> Any:
    """uint32 hashes of uint32 numbers, NumPy's or JAX's: the last mixing of MurmurHash3, thrice."""

    def mixed(x):
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        return x ^ (x >> np.uint32(16))

    key = mixed(mixed(np.asarray([seed % 2**32], np.uint32)) ^ np.asarray([(stream + 2) % 2**32], np.uint32))
    return mixed(x ^ key)


def with_shared(
    module: Any, run: Callable[[Any, jax.Array], jax.Array], init_of: Callable[[str], str], x: jax.Array
) -> jax.Array:
    """`run(module, x)`, with the kernels of its layers read from the memory where the module's `roast` says so.

    Called in the module's compact method. `init_of`: path -> the name of the kernel's initialiser.
    """
    if module.roast is None:
        return run(module, x)
    plain = module.clone(roast=None)
    params = jax.eval_shape(plain.init, jax.random.key(0), jax.ShapeDtypeStruct(x.shape, x.dtype))["params"]
    shapes = {path: leaf.shape for path, leaf in named_leaves(params) if default_where(path, leaf)}
    deviations = {path: variance(init_of(path), shape) ** 0.5 for path, shape in shapes.items()}
    plan = plan_of(module.roast, shapes, deviations)
    memory_M = module.param("memory", nn.initializers.normal(module.roast.memory_std), (plan.size,))

    def expanded(variables):
        return {"params": _merged(variables["params"], read(memory_M, plan))}

    def reduced(variables):
        return {"params": _without(variables["params"], {*shapes, "memory"})}

    sharing = nn.map_variables(
        run, "params", trans_in_fn=expanded, trans_out_fn=reduced, init=module.is_initializing(), mutable=False
    )
    return sharing(module, x)


def _merged(params: Any, leaves: dict[str, jax.Array]) -> dict[str, Any]:
    """The params with these leaves at their paths."""
    out = {name: dict(tree) if hasattr(tree, "items") else tree for name, tree in params.items()}
    for path, leaf in leaves.items():
        name, _, rest = path.partition("/")
        out[name] = _merged(out.get(name, {}), {rest: leaf}) if rest else leaf
    return out


def _without(params: Any, paths: set[str], prefix: str = "") -> dict[str, Any]:
    """The params without the leaves at these paths, and without what is empty then."""
    out = {}
    for name, tree in params.items():
        path = f"{prefix}{name}"
        if path in paths:
            continue
        kept = _without(tree, paths, f"{path}/") if hasattr(tree, "items") else tree
        if not (hasattr(kept, "items") and not kept):
            out[name] = kept
    return out


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""The FLOPs and bytes that a masked model costs.

In the convention of RigL: multiply and add count as 2, and only matrix multiplications and convolutions
count, no bias, norm, activation, loss or optimizer.

`layer_flops` walks the jaxpr of the forward pass, because a convolution's cost cannot be read off its
parameters. Sparse costs are the layer's dense cost times its density: what a kernel that skips every zero
would do. Dense hardware that multiplies by masked weights does all of the dense work. Methods differ only in
how their training cost follows from the forward cost of the dense net (`f_dense`) and at the current masks
(`f_sparse`): one plain function on numbers each.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.jaxpr_walk import CONSTANT, DATA, jaxprs, walk
from sparsejax.leaves import Layout, checked_axes, named_leaves


def layer_flops(fun: Callable[..., Any], params: Any, *args: Any) -> dict[str, int]:
    """Dense FLOPs of one call `fun(params, *args)`, by the parameter that is multiplied.

    A parameter is followed through everything that does not involve data: reshapes, casts, slices, masks,
    functions of weights, jit, remat, custom derivatives, `vmap`, `scan` (body times length), `cond` (its most
    expensive branch), `while` (body counted once: its number of iterations is unknown). Padding counts as
    work; the zeros that a transposed convolution inserts do not. Each multiplication counts once: where two
    parameters meet in one (a kernel and its gain, a learned query and its projection), it belongs to the
    larger. A product of two weights is no parameter any more, as it has none of their zeros.

    Args:
      fun: the forward pass; it is traced, never run.
      params: pytree of arrays or jax.ShapeDtypeStruct.
      *args: arrays or ShapeDtypeStructs, as a rule a batch of one sample. Boolean ones are taken to be masks,
        all others data.

    Returns:
      path of the parameter -> FLOPs, for the parameters that take part in a multiplication; "" -> FLOPs of
      multiplications without a parameter (attention scores), if there are any.

    Raises:
      ValueError: a multiplication is inside a primitive that cannot be followed (`shard_map`, a Pallas
        kernel).

    Example:
      >>> layer_flops(lambda params, x: x @ params["kernel"], {"kernel": jnp.ones((8, 4))}, jnp.ones((1, 8)))
      {'kernel': 64}

    Source: Evci et al., Rigging the Lottery (2020).
    """
    paths = [path for path, _ in named_leaves(params)]
    sizes = [math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(params)]
    by_size = sorted(range(len(paths)), key=lambda index: sizes[index])
    rank = {index: place for place, index in enumerate(by_size, start=1)}
    (jaxpr,) = jaxprs([jax.make_jaxpr(fun)(params, *args)])
    ranks: list[float] = [rank[index] for index in range(len(paths))]
    ranks += [CONSTANT if var.aval.dtype == jnp.bool_ else DATA for var in jaxpr.invars[len(paths) :]]
    _, flops = walk(jaxpr, ranks)
    named = Counter({path: flops[rank[index]] for index, path in enumerate(paths)})
    named[""] += flops[CONSTANT]  # the path of params that are one bare array is "", too
    return {path: count for path, count in named.items() if count}


def inference_flops(layer_flops: Mapping[str, int], densities: Any) -> float:
    """Forward FLOPs at the given densities: Σ FLOPs of a layer times its density.

    Args:
      layer_flops: what `layer_flops` returned.
      densities: masks (boolean arrays) or densities (numbers), None where dense: the tree of the params, or
        path -> density. Layers that are not in it are dense, too.

    Raises:
      ValueError: no path of the densities is one of a layer: they belong to another tree (a "params/" too
        many, say); or an array is not boolean.

    Example:
      >>> inference_flops({"a": 100, "b": 50, "": 7}, {"a": 0.1, "b": None})
      67.0
    """
    given = {path: _density(leaf) for path, leaf in named_leaves(densities)}
    if given and not given.keys() & layer_flops.keys():
        layers = ", ".join(layer_flops)
        raise ValueError(f"densities: no path ({', '.join(given)}) is one of the layers ({layers})")
    return float(sum(flops * given.get(path, 1.0) for path, flops in layer_flops.items()))


def relative_inference_flops(layer_flops: Mapping[str, int], densities: Any) -> float:
    """`inference_flops` as a fraction of the dense net's; 1 for a net without multiplications."""
    dense = sum(layer_flops.values())
    return inference_flops(layer_flops, densities) / dense if dense else 1.0


def dense_training(f_dense: float) -> float:
    """Training FLOPs of a dense step: forward, gradient of the inputs, gradient of the weights; 3 f_dense."""
    return 3 * f_dense


def sparse_training(f_sparse: float) -> float:
    """Training FLOPs of a step that needs only the gradient of kept weights (static, SET): 3 f_sparse."""
    return 3 * f_sparse


def dense_gradient_training(f_sparse: float, f_dense: float) -> float:
    """Training FLOPs of a step that needs every weight's gradient (SNFS, STE): 2 f_sparse + f_dense."""
    return 2 * f_sparse + f_dense


def two_mask_training(f_forward: float, f_backward: float, f_dense: float) -> float:
    """Training FLOPs of a step with one mask forward and another for the inputs' gradient (BDWP): f_F + f_B + f_dense.

    Source: bidirectional weight pruning (BDWP), Fang et al. 2024, arXiv:2203.02549.
    """
    return f_forward + f_backward + f_dense


def rigl_training(f_sparse: float, f_dense: float, update_every: int) -> float:
    """Mean training FLOPs of a RigL step: (3 f_sparse ΔT + 2 f_sparse + f_dense) / (ΔT + 1).

    ΔT is update_every.

    Example:
      >>> round(rigl_training(f_sparse=0.1, f_dense=1.0, update_every=100) / 3, 4)
      0.103

    Raises:
      ValueError: update_every is below 1.

    Source: Evci et al., Rigging the Lottery (2020).
    """
    if update_every < 1:
        raise ValueError(f"update_every={update_every} must be at least 1")
    updates = dense_gradient_training(f_sparse, f_dense)
    return (sparse_training(f_sparse) * update_every + updates) / (update_every + 1)


def gradual_training(f_sparse: Sequence[float], durations: Sequence[float] | None = None) -> float:
    """Mean training FLOPs of a step while the density changes (GMP, one-shot): the mean of 3 f_sparse(t).

    Args:
      f_sparse: forward FLOPs at each stage of training.
      durations: length of each stage, in steps; None makes them equal.

    Raises:
      ValueError: there is no stage, the lengths differ in number from the stages, or they are negative or all
        zero.

    Example:
      >>> gradual_training([1.0, 0.2], durations=[25, 75])
      1.2
    """
    lengths = [1.0] * len(f_sparse) if durations is None else list(durations)
    if len(lengths) != len(f_sparse) or min(lengths, default=0) < 0 or not sum(lengths) > 0:
        raise ValueError(
            f"durations={durations} must be one length for each of the {len(f_sparse)} f_sparse, "
            "none negative, not all zero"
        )
    return sum(sparse_training(flops) * length for flops, length in zip(f_sparse, lengths)) / sum(lengths)


def bytes_of(
    masks: Any, params: Any, *, nm: tuple[int, int] | None = None, layout: Layout | None = None
) -> dict[str, int]:
    """Bytes of all params by format; a leaf without a mask, or that a format does not fit, is dense in it.

    dense: no masks. bool_mask, bit_mask: dense weights and a mask of one byte or one bit for each (rounded up
    per leaf).
    csr: kept values, an int32 column for each, int32 row pointers; the columns are the leaf's last axis.
    n_m (with nm): n values of every m, ceil(log2(m)) bits of position for each; fits where, along one input
    axis that m divides, no group of m keeps more than n.

    Args:
      masks: mask tree, None where not sparsified.
      params: arrays or shapes.
      nm: (n, m), n kept of every m.
      layout: tells the input axes for nm; None is Flax's.

    Example:
      >>> bytes_of({"kernel": jnp.eye(4, dtype=bool)}, {"kernel": jnp.ones((4, 4))}, nm=(2, 4))
      {'dense': 64, 'bool_mask': 80, 'bit_mask': 66, 'csr': 52, 'n_m': 34}
    """
    formats = ("dense", "bool_mask", "bit_mask", "csr", *(("n_m",) if nm else ()))
    total = dict.fromkeys(formats, 0)
    by_path = dict(named_leaves(masks))
    for path, leaf in named_leaves(params):
        size, width, mask = math.prod(leaf.shape), leaf.dtype.itemsize, by_path.get(path)
        stored = dict.fromkeys(formats, size * width)
        if mask is not None:
            stored["bool_mask"] += size
            stored["bit_mask"] += -(-size // 8)
            rows = size // max(1, leaf.shape[-1])
            stored["csr"] = _kept(mask) * (width + 4) + 4 * (rows + 1)
            if nm and _fits_nm(mask, nm, checked_axes(layout, path, leaf).inputs):
                values = size // nm[1] * nm[0]
                stored["n_m"] = values * width + -(-values * (nm[1] - 1).bit_length() // 8)
        for name, count in stored.items():
            total[name] += count
    return total


def _fits_nm(mask: Any, nm: tuple[int, int], axes: Sequence[int]) -> bool:
    """Whether, along one of the axes, every group of m neighbours keeps at most n."""
    n, m = nm
    xp = np if isinstance(mask, np.ndarray) else jnp
    divided = [xp.moveaxis(mask, axis, -1).reshape(-1, m) for axis in axes if mask.shape[axis] % m == 0]
    return any(bool(xp.all(xp.sum(groups, axis=-1) <= n)) for groups in divided)


def _kept(mask: Any) -> int:
    """Entries kept; the last sum is made on the host, as int32 ends at 2^31 of them."""
    if isinstance(mask, np.ndarray):
        return int(np.count_nonzero(mask))
    return int(jax.device_get(jnp.sum(mask, axis=-1, dtype=jnp.int32)).sum())


def _density(leaf: Any) -> float:
    """The density of a mask, or a number as it is."""
    if not getattr(leaf, "ndim", 0):
        return float(leaf)
    if leaf.dtype != jnp.bool_:
        raise ValueError(f"densities: {leaf.dtype}{list(leaf.shape)} is neither a boolean mask nor a number")
    return _kept(leaf) / max(1, leaf.size)

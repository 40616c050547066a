"""SLoRB: a low-rank add-on to masked dense layers, which starts as the block means of the weights that are gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sparsejax.masks import mask_leaves

DOWN, UP = "slorb_down", "slorb_up"


def slorb(kernel_IxO: jax.Array, mask_IxO: jax.Array, k: int = 64, start: str = "mean") -> dict[str, jax.Array]:
    """The two matrices of a layer's add-on x -> x D U.

    D_ib = 1 where input i lies in block b of k inputs, else 0; U_bo = the mean over the block of (1 - mask) w: what the
    masked layer lacks is thus replaced by its best approximation that is constant over blocks.

    Args:
      kernel_IxO: the dense weights.
      mask_IxO: bool, True = kept.
      k: inputs of a block (the official scripts: 16).
      start: "mean", "sum" or "zero".

    Returns:
      {"slorb_down": (I, I / k), "slorb_up": (I / k, O)}.

    Raises:
      ValueError: k does not divide the inputs, a kernel is no matrix, or start is unknown.

    Example:
      >>> found = slorb(jnp.array([[1.0], [3.0]]), jnp.array([[False], [True]]), k=2)
      >>> found["slorb_up"].tolist()
      [[0.5]]

    Source: Huang et al. 2024, arXiv:2407.20584, and its official code.
    """
    if kernel_IxO.ndim != 2:
        raise ValueError(f"kernel: shape {kernel_IxO.shape}; a low-rank add-on is for matrices (inputs, outputs)")
    inputs, outputs = kernel_IxO.shape
    if not isinstance(k, int) or k < 1 or inputs % k:
        raise ValueError(f"k={k!r} must be an integer that divides the {inputs} inputs")
    gone_BxKxO = jnp.where(mask_IxO, jnp.zeros_like(kernel_IxO), kernel_IxO).reshape(inputs // k, k, outputs)
    starts: dict[str, Callable[[jax.Array], jax.Array]] = {
        "mean": lambda x: x.mean(1), "sum": lambda x: x.sum(1), "zero": lambda x: jnp.zeros_like(x[:, 0]),
    }  # fmt: skip
    if start not in starts:
        raise ValueError(f"start={start!r}: one of {', '.join(starts)}")
    down_IxB = jnp.repeat(jnp.eye(inputs // k, dtype=kernel_IxO.dtype), k, axis=0)
    return {DOWN: down_IxB, UP: starts[start](gone_BxKxO)}


def with_slorb(params: Any, masks: Any, k: int = 64, start: str = "mean") -> Any:
    """The params of a Linen model with an add-on beside each masked kernel that is a matrix with k-divisible inputs.

    Args:
      params: nested dicts, dense (`get_dense(opt_state, params)`), before the masks are laid on.
      masks: as `get_masks` gives them.
      k, start: see `slorb`.

    Returns:
      New dicts; the arrays are shared. A transformation whose `where` is the default leaves the add-on dense.

    Raises:
      ValueError: no layer can have one, or start is unknown.

    Example:
      >>> params = {"Dense_0": {"kernel": jnp.ones((4, 3))}}
      >>> sorted(with_slorb(params, jax.tree.map(lambda w: w > 2, params), k=2)["Dense_0"])
      ['kernel', 'slorb_down', 'slorb_up']
    """
    found = 0

    def walk(node: Any, mask: Any) -> Any:
        nonlocal found
        if not isinstance(node, dict):
            return node
        of = lambda name: mask.get(name) if isinstance(mask, dict) else None
        out = {name: walk(child, of(name)) for name, child in node.items()}
        kernel, kept = node.get("kernel"), of("kernel")
        if kept is not None and kernel is not None and kernel.ndim == 2 and kernel.shape[0] % k == 0:
            found += 1
            out |= slorb(kernel, kept, k, start)
        return out

    out = walk(params, masks)
    if not found:
        raise ValueError(f"k={k} divides the inputs of none of the masked matrices: {', '.join(mask_leaves(masks))}")
    return out


class SLoRB:
    """A Linen module whose dense layers add x D U wherever the params have an add-on from `with_slorb`.

    `apply` does; every other attribute is the module's, `init` too, which makes no add-ons.

    Args:
      model: any Linen module; its Dense layers, whatever their depth.
      train_projection: whether D has a gradient too (the official code: no by default).

    Example:
      >>> kernel = {"kernel": jnp.array([[1.0], [3.0]])}
      >>> params = with_slorb(kernel, {"kernel": jnp.array([[False], [True]])}, 2)
      >>> model = SLoRB(nn.Dense(1, use_bias=False))
      >>> float(model.apply({"params": {**params, "kernel": jnp.array([[0.0], [3.0]])}}, jnp.ones((1, 2)))[0, 0])
      4.0
    """

    def __init__(self, model: nn.Module, train_projection: bool = False):
        self.model, self.train_projection = model, train_projection

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """The module's `apply`."""
        with nn.intercept_methods(self._call):
            return self.model.apply(*args, **kwargs)

    def _call(self, call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        """A method of a layer, with the add-on's output added to that of a dense layer."""
        layer, y = context.module, call(*args, **kwargs)
        if not isinstance(layer, nn.Dense) or context.method_name != "__call__" or not layer.has_variable("params", UP):
            return y
        down: jax.Array = layer.get_variable("params", DOWN).astype(y.dtype)
        up: jax.Array = layer.get_variable("params", UP).astype(y.dtype)
        if not self.train_projection:
            down = jax.lax.stop_gradient(down)
        return y + (args[0].astype(y.dtype) @ down) @ up

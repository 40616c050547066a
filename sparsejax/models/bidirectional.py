"""A model whose dense layers and convolutions compute with two weights, as BDWP trains it; its params are the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax import lax

from sparsejax.bidirectional import bdwp_conv, bdwp_dot_general
from sparsejax.leaves import Where, default_where
from sparsejax.patterns import NM

# which attribute of a layer holds the function that takes (activations, kernel), and what Flax takes for None
_FUNCTIONS: dict[type, tuple[str, Callable[..., Any]]] = {
    nn.Dense: ("dot_general", lax.dot_general),
    nn.DenseGeneral: ("dot_general", lax.dot_general),
    nn.Conv: ("conv_general_dilated", lax.conv_general_dilated),
}


class Bidirectional:
    """A Linen module in which every kernel that `where` takes is seen through N:M masks, see `bidirectional`.

    `init` and `apply` are the module's, and so is every other attribute.

    Args:
      model: any Linen module; its Dense, DenseGeneral and Conv layers change, whatever their depth.
      pattern: nm(n, m).
      where: which kernels, `(path, array) -> bool`; None is the default predicate.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.patterns import nm
      >>> model = Bidirectional(nn.Dense(4), nm(2, 4), where=lambda path, kernel: True)
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.ones((1, 4)))[0].shape
      (1, 4)
    """

    def __init__(self, model: nn.Module, pattern: NM, where: Where | None = None):
        self.model, self.pattern, self.where = model, pattern, where or default_where

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def init(self, *args: Any, **kwargs: Any) -> Any:
        """The module's `init`."""
        return self._intercepted(self.model.init, *args, **kwargs)

    def init_with_output(self, *args: Any, **kwargs: Any) -> Any:
        """The module's `init_with_output`."""
        return self._intercepted(self.model.init_with_output, *args, **kwargs)

    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """The module's `apply`."""
        return self._intercepted(self.model.apply, *args, **kwargs)

    def _intercepted(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with nn.intercept_methods(self._call):
            return function(*args, **kwargs)

    def _call(self, call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        """A method of a layer, with the layer's function exchanged while it runs."""
        layer = context.module
        if type(layer) not in _FUNCTIONS or context.method_name != "__call__":
            return call(*args, **kwargs)
        name, default = _FUNCTIONS[type(layer)]
        before = getattr(layer, name)
        path = "/".join((*layer.path, "kernel"))
        object.__setattr__(layer, name, self._function(name, path, before or default))
        try:
            return call(*args, **kwargs)
        finally:
            object.__setattr__(layer, name, before)

    def _function(self, name: str, path: str, before: Callable[..., Any]) -> Callable[..., Any]:
        """What computes with the kernel at `path`: as before where it stays dense."""
        make = bdwp_conv if name == "conv_general_dilated" else bdwp_dot_general
        masked = make(self.pattern.n, self.pattern.m, self.pattern.indivisible, path, before)

        def compute(lhs: jax.Array, rhs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
            return (masked if self.where(path, rhs) else before)(lhs, rhs, *args, **kwargs)

        return compute

"""What the vision models share: their inputs, dtypes, initialisers, convolutions and batch norm."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# fan in = inputs of one output, fan out = outputs that one input reaches, kernel positions included in both
INITIALIZERS: dict[str, Callable[..., jax.Array]] = {
    "glorot_normal": nn.initializers.glorot_normal(),
    "glorot_uniform": nn.initializers.glorot_uniform(),
    "kaiming_fan_in": nn.initializers.variance_scaling(2.0, "fan_in", "normal"),
    "kaiming_fan_out": nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    "lecun_normal": nn.initializers.lecun_normal(),
    "normal_0.01": nn.initializers.normal(0.01),
    "normal_0.02": nn.initializers.normal(0.02),
    "torch_default": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
}

# the variance of each, of its fan in and fan out
_VARIANCES: dict[str, Callable[[float, float], float]] = {
    "glorot_normal": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "glorot_uniform": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "kaiming_fan_in": lambda fan_in, fan_out: 2 / fan_in,
    "kaiming_fan_out": lambda fan_in, fan_out: 2 / fan_out,
    "lecun_normal": lambda fan_in, fan_out: 1 / fan_in,
    "normal_0.01": lambda fan_in, fan_out: 0.01**2,
    "normal_0.02": lambda fan_in, fan_out: 0.02**2,
    "torch_default": lambda fan_in, fan_out: 1 / (3 * fan_in),
}


def chosen(field: str, name: str, table: Mapping[str, Any]) -> Any:
    """The entry of a table that an attribute names.

    Raises:
      ValueError: it names none.

    Example:
      >>> chosen("stem", "cifar", {"cifar": 3, "imagenet": 7})
      3
    """
    if name not in table:
        raise ValueError(f"{field}: {name!r} is not one of {', '.join(table)}")
    return table[name]


def initializer(name: str) -> Callable[..., jax.Array]:
    """The initialiser of kernels that a model's attribute `initializer` names.

    kaiming_fan_in, kaiming_fan_out: N(0, 2 / fan); lecun_normal: truncated normal of variance 1 / fan_in;
    glorot_normal (truncated), glorot_uniform: variance 2 / (fan_in + fan_out); torch_default: uniform on
    ±1 / √fan_in; normal_0.01, normal_0.02: N(0, σ²).

    Raises:
      ValueError: the name is unknown.
    """
    return chosen("initializer", name, INITIALIZERS)


def variance(name: str, shape: Sequence[int]) -> float:
    """The variance with which the initialiser of that name fills a kernel (..., inputs, outputs).

    Raises:
      ValueError: the name is unknown.

    Example:
      >>> variance("lecun_normal", (5, 5, 4, 7))
      0.01
    """
    positions = math.prod(shape[:-2])
    return chosen("initializer", name, _VARIANCES)(positions * shape[-2], positions * shape[-1])


def float_dtype(dtype: Any) -> jnp.dtype:
    """The dtype of activations from its name or from a dtype.

    Raises:
      ValueError: it is no floating dtype.

    Example:
      >>> float_dtype("bfloat16")
      dtype(bfloat16)
    """
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise ValueError(f"dtype: {dtype!r} is not float32, bfloat16 or another floating dtype")
    return found


def as_images(x: jax.Array, dtype: Any) -> jax.Array:
    """A batch (B, H, W, C) in the compute dtype; greyscale images (B, H, W) get their channel axis.

    Raises:
      ValueError: the batch has neither 3 nor 4 axes.

    Example:
      >>> as_images(jnp.zeros((2, 8, 8)), "float32").shape
      (2, 8, 8, 1)
    """
    if x.ndim not in (3, 4):
        raise ValueError(f"x: shape {x.shape} is neither (B, H, W, C) nor (B, H, W)")
    return (x[..., None] if x.ndim == 3 else x).astype(float_dtype(dtype))


def conv(width: int, kernel: int, stride: int = 1, *, init: str, dtype: Any, name: str, groups: int = 1) -> nn.Conv:
    """A square convolution without bias, padded by (kernel - 1) / 2 on each side as in PyTorch."""
    return nn.Conv(
        width, (kernel, kernel), (stride, stride), padding=(kernel - 1) // 2, feature_group_count=groups,
        use_bias=False, dtype=float_dtype(dtype), kernel_init=initializer(init), name=name,
    )  # fmt: skip


def batch_norm(train: bool, dtype: Any, name: str, scale: float = 1.0) -> nn.BatchNorm:
    """Batch norm with epsilon 1e-5 and running statistics of momentum 0.9, in "batch_stats", in float32."""
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=float_dtype(dtype),
        scale_init=nn.initializers.constant(scale), name=name,
    )  # fmt: skip


def head(x_BxD: jax.Array, classes: int, init: str) -> jax.Array:
    """Logits (B, classes) by a dense layer `head`, in float32 whatever the dtype of the features."""
    x_BxD = x_BxD.astype(jnp.float32)
    return nn.Dense(classes, kernel_init=initializer(init), name="head")(x_BxD)

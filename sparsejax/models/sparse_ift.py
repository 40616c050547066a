"""Sparse-IFT: layers that are sparse and so much larger that they cost what the dense ones did."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax

from sparsejax.leaves import default_where
from sparsejax.models.fields import check_form
from sparsejax.models.layers import batch_norm, conv

FAMILIES = ("wide", "parallel", "factorized", "doped")
Model = TypeVar("Model", bound=nn.Module)


class SparseIFT(NamedTuple):
    """What a model's attribute `sparse_ift` holds; `sparse_ift` makes it, and checks it.

    Attributes:
      sparsity: fraction of zeros at which the model costs what its dense form does.
      family: one of `FAMILIES`.
    """

    sparsity: float
    family: str = "wide"

    def width(self, width: int) -> int:
        """Channels instead of `width`: √(1 / (1 - s)) as many in the family wide, as many in the others."""
        return round(width / math.sqrt(1 - self.sparsity)) if self.family == "wide" else width

    @property
    def branches(self) -> int:
        """Branches of a layer: 1 / (1 - s) in the family parallel, 1 in the others."""
        return round(1 / (1 - self.sparsity)) if self.family == "parallel" else 1

    def hidden(self, taps: int, inputs: int, outputs: int) -> int:
        """Width between a layer's two factors, of `taps` positions and of one; 0 in the families without.

        factorized: taps f_in f_out / ((1 - s) (taps f_in + f_out)), to the next integer and at least 1; doped:
        the rank s taps f_in f_out / (taps f_in + f_out), rounded down as in the official code.

        Example:
          >>> SparseIFT(0.75, "factorized").hidden(9, 64, 64), SparseIFT(0.75, "doped").hidden(9, 64, 64)
          (230, 43)
        """
        at_equal_cost = taps * inputs * outputs / (taps * inputs + outputs)
        if self.family == "factorized":
            return max(1, round(at_equal_cost / (1 - self.sparsity)))
        return math.floor(at_equal_cost * self.sparsity + 1e-9) if self.family == "doped" else 0

    def where(self, *dense: str) -> Where:
        """The leaves to sparsify: those of the default `where`, but the layers named here and doped low ranks."""
        return Where(dense)


class Where(NamedTuple):
    """A predicate over paths and leaves; equal ones are equal, so that programs are shared."""

    dense: tuple[str, ...]

    def __call__(self, path: str, array: Any) -> bool:
        parts = path.split("/")
        low_rank = any(part.endswith(("_low_u", "_low_v")) for part in parts)
        return default_where(path, array) and parts[0] not in self.dense and not low_rank


def sparse_ift(model: Model, sparsity: float, family: str = "wide") -> Model:
    """The model in a form that at this sparsity costs the FLOPs of the model itself at none.

    wide: all widths × √(1 / (1 - s)). parallel: 1 / (1 - s) branches of each layer, each with a batch norm, summed.
    factorized: each layer W becomes V ReLU(norm(U x)), both sparse, of inner width
    taps f_in f_out / ((1 - s) (taps f_in + f_out)); taps are kernel positions, 9 of a 3x3 convolution, 1 of a dense
    layer. doped: W x + V U x with a sparse W and dense U, V of rank ⌊s taps f_in f_out / (taps f_in + f_out)⌋. U has
    the layer's kernel size and stride, V is 1x1. In every family the first and the last layer stay, and stay dense
    (wide: they grow with their neighbours, by √(1 / (1 - s)), which no sparsity pays for); all others, 1x1 shortcuts
    too, take part. At sparsity 0 wide, parallel and doped are the model itself.

    The model's property `where` names the leaves to sparsify. FLOPs are equal where each of these layers has the
    sparsity s: `distribution=distributions.uniform`, the paper's; with ERK they are not.

    Args:
      model: ResNet, WideResNet, MLP or LeNet5, whatever their size.
      sparsity: s, fraction of zeros, in [0, 1).
      family: wide, parallel, factorized or doped.

    Raises:
      ValueError: the model has no such form, the sparsity is not in [0, 1), the family is unknown, or parallel would
        need a number of branches that is no integer (s = 0.5, 0.75, 0.8, 0.9 are fine).

    Example:
      >>> from sparsejax.models import MODELS
      >>> model = sparse_ift(MODELS["resnet20"](classes=10), 0.75, "wide")
      >>> x = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
      >>> shapes = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
      >>> shapes["stage1_block1"]["conv1"]["kernel"].shape, model.where("stem/kernel", shapes["stem"]["kernel"])
      ((3, 3, 32, 32), False)

    Source: Thangarasa et al., Sparse-IFT: Sparse Iso-FLOP Transformations for Maximizing Training Efficiency (2024),
    and its official code, which rounds the factorized width up; its shortcuts are neither split nor factorized.
    """
    check_form(model, "sparse_ift", "ResNet, WideResNet, MLP, LeNet5")
    if family not in FAMILIES:
        raise ValueError(f"sparse_ift: {family!r} is not one of {', '.join(FAMILIES)}")
    if not isinstance(sparsity, int | float) or isinstance(sparsity, bool) or not 0 <= sparsity < 1:
        raise ValueError(f"sparsity: {sparsity!r} is not a number in [0, 1)")
    made = SparseIFT(float(sparsity), family)
    if family == "parallel" and abs(made.branches * (1 - sparsity) - 1) > 0.025:
        raise ValueError(
            f"sparsity: {sparsity} asks for {1 / (1 - sparsity):.3g} branches; parallel takes 0.5, 0.75, 0.8, 0.9, ..."
        )
    return model.clone(sparse_ift=made)


def transformed(
    ift: SparseIFT | None,
    x: jax.Array,
    width: int,
    taps: int,
    name: str,
    layer: Callable[[int, str, bool], nn.Module],
    pointwise: Callable[[int, str, bool], nn.Module],
    norm: Callable[[str], nn.Module],
) -> jax.Array:
    """What a layer of that width computes from x, or what takes its place; called inside a compact module.

    Args:
      ift: None for the layer itself.
      x: (B, ..., f_in).
      width: f_out, already widened.
      taps: kernel positions of the layer.
      name: `name/kernel`; else `name_branch1/kernel`, `name_branch1_norm/...`; `name_u/kernel`, `name_u_norm/...`,
        `name_v/kernel`; `name/kernel`, `name_low_u/kernel`, `name_low_v/kernel`.
      layer: (width, name, whether a bias is of use) -> the layer; `pointwise` likewise, of one position.
      norm: name -> batch norm.
    """
    if ift is not None and ift.branches > 1:
        names = [f"{name}_branch{index}" for index in range(1, ift.branches + 1)]
        outputs = [norm(f"{each}_norm")(layer(width, each, False)(x)) for each in names]
        return sum(outputs[1:], outputs[0])
    hidden = ift.hidden(taps, x.shape[-1], width) if ift is not None else 0
    if ift is not None and ift.family == "factorized":
        inner = nn.relu(norm(f"{name}_u_norm")(layer(hidden, f"{name}_u", False)(x)))
        return pointwise(width, f"{name}_v", True)(inner)
    y = layer(width, name, True)(x)
    if hidden:
        y = y + pointwise(width, f"{name}_low_v", False)(layer(hidden, f"{name}_low_u", False)(x))
    return y


def square_conv(
    ift: SparseIFT | None,
    x: jax.Array,
    width: int,
    kernel: int,
    stride: int = 1,
    *,
    init: str,
    dtype: Any,
    train: bool,
    name: str,
    scale: float = 1.0,
) -> jax.Array:
    """`layers.conv` applied to x, or what takes its place; `scale` is where the norms of branches start."""
    return transformed(
        ift, x, width, kernel * kernel, name,
        lambda width, name, bias: conv(width, kernel, stride, init=init, dtype=dtype, name=name),
        lambda width, name, bias: conv(width, 1, init=init, dtype=dtype, name=name),
        lambda name: batch_norm(train, dtype, name, 1.0 if name.endswith("_u_norm") else scale),
    )  # fmt: skip

"""The forms of a model that trade density for width, by the words of a config's `model_args`."""

from __future__ import annotations

from typing import TypeVar

import flax.linen as nn

from sparsejax.models.monarch import monarch as in_monarch
from sparsejax.models.roast import roast as in_roast
from sparsejax.models.sparse_ift import sparse_ift as in_sparse_ift

Model = TypeVar("Model", bound=nn.Module)


def in_form(
    model: Model,
    *,
    sparse_ift: str | None = None,
    ift_sparsity: float | None = None,
    monarch: int | None = None,
    roast: float | None = None,
    roast_stabilised: bool = True,
) -> Model:
    """The model in the form that these arguments ask for; without any, as it is.

    Args:
      model: a module of the zoo.
      sparse_ift: a family of `models.sparse_ift.sparse_ift`.
      ift_sparsity: its sparsity; in a config, the config's own unless given.
      monarch: number of blocks, see `models.monarch.monarch`.
      roast: density, see `models.roast.roast`.
      roast_stabilised: whether with the changes of STABLE-RPS.

    Raises:
      ValueError: the model has no such form, two are asked for, or an argument is out of range.

    Example:
      >>> from sparsejax.models import MLP
      >>> in_form(MLP(10), roast=0.1).roast.density
      0.1
    """
    if sparse_ift is not None:
        model = in_sparse_ift(model, 0.0 if ift_sparsity is None else ift_sparsity, sparse_ift)
    if monarch is not None:
        model = in_monarch(model, monarch)
    return model if roast is None else in_roast(model, roast, stabilised=roast_stabilised)

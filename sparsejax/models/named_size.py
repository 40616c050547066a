"""Networks of a size that has a name: a constructor with some of its arguments set."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import flax.linen as nn

Model = TypeVar("Model", bound=nn.Module)


def named_size(make: Callable[..., Model], words: str, **size: Any) -> Callable[..., Model]:
    """`make` with the arguments `size`; its signature, which configs go by, has the others alone.

    Args:
      make: a module class or a constructor; its first argument is `classes`.
      words: the docstring.

    Example:
      >>> from sparsejax.models import MLP
      >>> deep = named_size(MLP, "Three layers of 8.", features=(8, 8, 8))
      >>> deep(10, dropout=0.1).features, "features" in inspect.signature(deep).parameters
      ((8, 8, 8), False)
    """

    def made(classes: int, **others: Any) -> Model:
        return make(classes=classes, **size, **others)

    signature = inspect.signature(make)
    left = [each for name, each in signature.parameters.items() if name not in size]
    only_by_name = [each.replace(kind=each.KEYWORD_ONLY) if i else each for i, each in enumerate(left)]
    made.__doc__, made.__signature__ = words, signature.replace(parameters=only_by_name)  # type: ignore[attr-defined]
    return made

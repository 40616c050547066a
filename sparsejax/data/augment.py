"""Augmentation by name: "pad_crop_flip(4), cutout(8)" in a config -> a function on the device."""

import ast
import difflib
from collections.abc import Callable
from typing import Any

import jax

from sparsejax.data.crops import Augmentation, flip, pad_crop_flip, random_resized_crop
from sparsejax.data.cutout import cutout
from sparsejax.data.mixing import Mixing, cutmix, mixup
from sparsejax.data.randaugment import randaugment

AUGMENTATIONS: dict[str, Callable[..., Augmentation]] = {
    "cutout": cutout, "flip": flip, "pad_crop_flip": pad_crop_flip, "randaugment": randaugment,
    "random_resized_crop": random_resized_crop,
}  # fmt: skip
MIXINGS: dict[str, Callable[..., Mixing]] = {"cutmix": cutmix, "mixup": mixup}


def augment(spec: str) -> Augmentation:
    """The augmentations that a config names, one after the other, as one function (key, x) -> x.

    Args:
      spec: names of AUGMENTATIONS, each with its arguments, separated by commas; empty: nothing is changed.

    Returns:
      A pure function of a key and a batch (B, H, W, C) or (B, H, W); the shape and the dtype stay.

    Raises:
      ValueError: one line that names what is wrong and what is allowed.

    Example:
      >>> import jax.numpy as jnp
      >>> jax.eval_shape(augment("pad_crop_flip(2), cutout(4)"), jax.random.key(0), jnp.ones((2, 8, 8, 3))).shape
      (2, 8, 8, 3)
      >>> augment("cutout(0)")
      Traceback (most recent call last):
      ValueError: augment: cutout: size: 0 is not an integer >= 1
    """
    steps = _made("augment", spec, AUGMENTATIONS)

    def augmented(key: jax.Array, x: jax.Array) -> jax.Array:
        for place, step in enumerate(steps):
            x = step(jax.random.fold_in(key, place), x)
        return x

    return augmented


def mix(spec: str) -> Mixing:
    """Mixup, CutMix, or one of them at random for each batch, as a config names them: (key, x, labels) -> both.

    Args:
      spec: "mixup(0.8)", "cutmix(1.0)" or both, separated by a comma; empty: nothing is changed.

    Returns:
      A pure function of a key, a batch (B, H, W, C) or (B, H, W), and labels (B, K).

    Raises:
      ValueError: one line that names what is wrong and what is allowed.

    Example:
      >>> import jax.numpy as jnp
      >>> mixed = mix("mixup(0.8), cutmix(1.0)")
      >>> x, labels = jax.eval_shape(mixed, jax.random.key(0), jnp.ones((4, 8, 8, 3)), jnp.eye(4))
      >>> x.shape, labels.shape
      ((4, 8, 8, 3), (4, 4))
    """
    ways = _made("mix", spec, MIXINGS)
    if not ways:
        return lambda key, x, labels: (x, labels)
    if len(ways) == 1:
        return ways[0]

    def mixed(key: jax.Array, x: jax.Array, labels_BxK: jax.Array) -> tuple[jax.Array, jax.Array]:
        which, draws = jax.random.split(key)
        return jax.lax.switch(jax.random.randint(which, (), 0, len(ways)), ways, draws, x, labels_BxK)

    return mixed


def _made(field: str, spec: str, known: dict[str, Callable[..., Any]]) -> list[Any]:
    """What each call in `spec` returns."""
    made = []
    for name, args, keywords in _calls(field, spec):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{field}: unknown {name!r};{hint} one of {', '.join(sorted(known))}")
        try:
            made.append(known[name](*args, **keywords))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{field}: {name}: {error}") from error
    return made


def _calls(field: str, spec: str) -> list[tuple[str, tuple, dict[str, Any]]]:
    """The names and the literals of "name, name(literals), ..."; nothing is evaluated."""
    if not isinstance(spec, str) or not spec.strip():
        if spec is None or isinstance(spec, str):
            return []
        raise ValueError(f"{field}: {spec!r} is not text such as 'name(4), name'")
    try:
        return [_call(node) for node in ast.parse(f"[{spec}]", mode="eval").body.elts]  # type: ignore[attr-defined]
    except (SyntaxError, ValueError, TypeError, AttributeError, MemoryError, RecursionError):
        raise ValueError(f"{field}: {spec!r} is not names with plain numbers, such as 'name(4), name'") from None


def _call(node: ast.expr) -> tuple[str, tuple, dict[str, Any]]:
    if isinstance(node, ast.Name):
        return node.id, (), {}
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or not all(k.arg for k in node.keywords):
        raise ValueError(ast.dump(node))
    args = tuple(ast.literal_eval(arg) for arg in node.args)
    return node.func.id, args, {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}

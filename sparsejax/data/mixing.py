"""Mixup and CutMix: a batch with its labels blended with the same batch in another order.

Each is a factory of a pure function (key, x (B, H, W, C) or (B, H, W), labels (B, K)) -> (x, labels).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sparsejax.data.crops import rounded

Mixing = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def mixup(alpha: float = 0.2) -> Mixing:
    """x <- l x + (1 - l) x[order], labels alike; one l ~ Beta(alpha, alpha) and one order for the batch.

    Args:
      alpha: > 0; the smaller, the nearer l is to 0 or 1.

    Raises:
      ValueError: if alpha is not a number > 0.

    Example:
      >>> x, labels = mixup(0.2)(jax.random.key(0), jnp.ones((4, 2, 2, 1)), jnp.eye(4))
      >>> labels.sum(1).tolist()
      [1.0, 1.0, 1.0, 1.0]

    Source: H. Zhang et al., mixup: beyond empirical risk minimization, 2018.
    """
    _check_alpha(alpha)

    def mixed(key: jax.Array, x: jax.Array, labels_BxK: jax.Array) -> tuple[jax.Array, jax.Array]:
        share, order = _draw(key, alpha, x.shape[0])
        return blended(x, labels_BxK, share, order)

    return mixed


def cutmix(alpha: float = 1.0) -> Mixing:
    """A box of x is that of x[order]; labels are blended by area. One box and one order for the batch.

    The box has sides sqrt(1 - l) of the image's, l ~ Beta(alpha, alpha), around a random pixel; what lies outside of
    the image is lost, and the labels count what is left.

    Args:
      alpha: > 0.

    Raises:
      ValueError: if alpha is not a number > 0.

    Example:
      >>> x, labels = cutmix(1.0)(jax.random.key(0), jnp.ones((4, 8, 8, 1)), jnp.eye(4))
      >>> x.shape, labels.shape
      ((4, 8, 8, 1), (4, 4))

    Source: S. Yun et al., CutMix: regularization strategy to train strong classifiers, 2019.
    """
    _check_alpha(alpha)

    def mixed(key: jax.Array, x: jax.Array, labels_BxK: jax.Array) -> tuple[jax.Array, jax.Array]:
        drawn, place = jax.random.split(key)
        share, order = _draw(drawn, alpha, x.shape[0])
        return patched(x, labels_BxK, random_patch(place, share, *x.shape[1:3]), order)

    return mixed


def blended(x: jax.Array, labels: jax.Array, share: jax.Array, order: jax.Array) -> tuple[jax.Array, jax.Array]:
    """share x + (1 - share) x[order], bytes rounded, and labels alike."""
    mix = lambda values: share * values + (1 - share) * values[order]
    return rounded(mix(x.astype(jnp.float32)), x.dtype), mix(labels)


def random_patch(key: jax.Array, share: jax.Array, height: int, width: int) -> jax.Array:
    """int32 (4,): top, left, bottom and right of a box with sides sqrt(1 - share), cut at the image's border."""
    side = jnp.sqrt(1 - share)
    size = jnp.asarray([height, width], jnp.int32)
    half = (size * side).astype(jnp.int32) // 2
    centre = jnp.stack([jax.random.randint(k, (), 0, n) for k, n in zip(jax.random.split(key), (height, width))])
    return jnp.concatenate([jnp.maximum(centre - half, 0), jnp.minimum(centre + half, size)])


def patched(x: jax.Array, labels: jax.Array, box: jax.Array, order: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x with the box (top, left, bottom, right) of x[order]; labels by the share of pixels."""
    height, width = x.shape[1:3]
    rows, columns = jnp.arange(height), jnp.arange(width)
    inside = ((rows >= box[0]) & (rows < box[2]))[:, None] & ((columns >= box[1]) & (columns < box[3]))[None]
    new = jnp.where(inside.reshape(1, height, width, *(1,) * (x.ndim - 3)), x[order], x)
    share = 1 - (box[2] - box[0]) * (box[3] - box[1]) / (height * width)
    return new, share * labels + (1 - share) * labels[order]


def _draw(key: jax.Array, alpha: float, batch: int) -> tuple[jax.Array, jax.Array]:
    share, order = jax.random.split(key)
    return jax.random.beta(share, alpha, alpha), jax.random.permutation(order, batch)


def _check_alpha(alpha: float) -> None:
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < float("inf"):
        raise ValueError(f"alpha: {alpha!r} is not a number > 0")

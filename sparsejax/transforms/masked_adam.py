"""Adam with a decay of the masked weights inside the normalised step: the optimizers of AST and CAST.

They are optax transformations whose update takes `masks=`; `straight_through` and `cast` hand them the step's masks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparsejax.masks import map_masks

PyTree = Any
Rate = float | jax.Array | Callable[[jax.Array], Any]
Mix = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class MaskedAdamState(NamedTuple):
    """The state of `ast_adam` and `adam_s`.

    Attributes:
      count: int32 scalar, updates so far.
      mu: EMA of the gradients, without the decay.
      nu: EMA of the squares, of the gradients or, in leaves with a mask, of mu and the decay.
    """

    count: jax.Array  # type: ignore[assignment]  # the name of optax's counters, and also a method of tuples
    mu: PyTree
    nu: PyTree


def ast_adam(
    learning_rate: Rate,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float | jax.Array = 0.1,
    mask: Any = None,
    masked_decay: float | jax.Array = 6e-5,
    decay_steps: int = 10_000,
) -> optax.GradientTransformationExtraArgs:
    """AST's AdamW: an L2 decay of masked weights that Adam normalises together with the gradient.

    m = b1 m + (1 - b1) g; w' = w (1 - lr wd); u = m + λ_t (1 - mask) w'; v = b2 v + (1 - b2) u²;
    w = w' - lr (u / (1 - b1^t)) / (√(v / (1 - b2^t)) + eps); λ_t = λ min(1, (t - 1) / decay_steps), t = 1, 2, ...
    Leaves without a mask, or all of them without `masks`, are AdamW's: u = m, and v averages g².

    Args:
      learning_rate: lr, a number or an optax schedule.
      b1, b2, eps: as of `optax.adamw`.
      weight_decay: wd, decoupled, of kept weights and masked ones.
      mask: which leaves wd acts on, as of `optax.adamw`.
      masked_decay: λ (the GPT-2 scripts: 1e-4).
      decay_steps: of λ's ramp; 0: none.

    Raises:
      ValueError: `update` is called without params.

    Example:
      >>> tx = sparsejax.ast(ast_adam(2e-4), pattern=sparsejax.nm(2, 4))

    Source: Huang et al. 2024, Pruning Large Language Models with Semi-Structural Adaptive Sparse Training,
    arXiv:2407.20584. Its GPT code negates an integer mask, so that masked weights grow there; not here.
    """

    def mix(m: jax.Array, weight: jax.Array, ramp: jax.Array) -> jax.Array:
        return m + masked_decay * ramp * weight

    return _masked_adam(mix, learning_rate, b1, b2, eps, weight_decay, mask, decay_steps)


def adam_s(
    learning_rate: Rate,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
    masked_decay: float | jax.Array = 4e-7,
    decay_steps: int = 7_500,
) -> optax.GradientTransformationExtraArgs:
    """CAST's AdamS: an L1 decay that takes the place of the gradient of masked weights, more and more of it.

    As `ast_adam`, with u = m where kept, u = (1 - a_t) m + a_t λ sign(w') where masked, and
    a_t = min(1, (t - 1) / decay_steps), t = 1, 2, ...

    Args:
      learning_rate, b1, b2, eps, weight_decay, mask: see `ast_adam`.
      masked_decay: λ (4e-7: LLaMA2). Far below the resolution of 16-bit weights, which need float32 masters.
      decay_steps: of the ramp, the whole training; 0: none.

    Raises:
      ValueError: `update` is called without params.

    Example:
      >>> tx = adam_s(0.1, masked_decay=1.0, decay_steps=0)
      >>> w, masks = {"w": jnp.array([3.0, -3.0])}, {"w": jnp.array([True, False])}
      >>> updates, _ = tx.update({"w": jnp.zeros(2)}, tx.init(w), w, masks=masks)
      >>> bool(updates["w"][1] > 0), float(updates["w"][0])
      (True, 0.0)

    Source: Huang et al. 2025, CAST, arXiv:2509.25996, algorithm 1, as an independent reimplementation quotes it.
    """

    def mix(m: jax.Array, weight: jax.Array, ramp: jax.Array) -> jax.Array:
        return (1 - ramp) * m + ramp * masked_decay * jnp.sign(weight)

    return _masked_adam(mix, learning_rate, b1, b2, eps, weight_decay, mask, decay_steps)


def _masked_adam(
    mix: Mix, learning_rate, b1, b2, eps, weight_decay, mask, decay_steps
) -> optax.GradientTransformationExtraArgs:
    """AdamW, where the masked weights' step is that of mix(gradient EMA, weight, ramp)."""

    def init_fn(params: PyTree) -> MaskedAdamState:
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)
        return MaskedAdamState(jnp.zeros([], jnp.int32), zeros(), zeros())

    def update_fn(updates: PyTree, state: MaskedAdamState, params: PyTree = None, *, masks: PyTree = None, **_: Any):
        if params is None:
            raise ValueError("Adam with masked decay needs params: tx.update(grads, state, params, masks=masks)")
        count = optax.safe_increment(state.count)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        ramp = jnp.minimum(1.0, state.count / decay_steps) if decay_steps else jnp.ones([])
        fix_1, fix_2 = 1 - b1**count, 1 - b2**count
        decays = _decayed(mask, params)
        shrunk = jax.tree.map(lambda w, yes: jnp.where(yes, w * (1 - rate * weight_decay), w), params, decays)
        mu = jax.tree.map(lambda m, g: (b1 * m + (1 - b1) * g).astype(m.dtype), state.mu, updates)

        def whole(mask, m, w):
            return m if mask is None else jnp.where(mask, m, mix(m, w, ramp).astype(m.dtype))

        def squares(mask, v, u, g):
            return (b2 * v + (1 - b2) * jnp.square(g if mask is None else u)).astype(v.dtype)

        def step(w, shrunk, u, v):
            return ((shrunk - w) - rate * (u / fix_1) / (jnp.sqrt(v / fix_2) + eps)).astype(w.dtype)

        mixed = map_masks(whole, masks, mu, shrunk)
        nu = map_masks(squares, masks, state.nu, mixed, updates)
        return jax.tree.map(step, params, shrunk, mixed, nu), MaskedAdamState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _decayed(mask: Any, params: PyTree) -> PyTree:
    """Which leaves weight decay acts on, from optax's forms of a mask."""
    if mask is None:
        return jax.tree.map(lambda _: True, params)
    return mask(params) if callable(mask) else mask

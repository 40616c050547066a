"""Text from a language model: sampling token after token, with the keys and values (or states) of earlier ones kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_CACHE = "cache"


def generate(
    apply: Callable[..., Any],
    params: Any,
    prompt_BxL: jax.Array,
    key: jax.Array,
    steps: int,
    temperature: float | jax.Array = 1.0,
    top_k: int | None = None,
    *,
    context: int | None = None,
) -> jax.Array:
    """The `steps` tokens that a language model puts after each prompt.

    A pure function, compiled once for each `apply`, shape, `steps`, `top_k` and `context`. A text that outgrows a
    context of W tokens goes on from its last W - ⌊W / 2⌋ tokens each time the cache is full; of a longer prompt, the
    last W tokens count at first.

    Args:
      apply: of a Linen module: `model.apply`. It is called `apply({"params": ...}, tokens, decode=True,
        mutable=["cache"])`.
      params: the module's.
      prompt_BxL: integers, at least one for each of the B texts.
      key: PRNG key; token t depends on it and on t.
      steps: new tokens, at least 1.
      temperature: divides the logits; 0 takes the likeliest token. May be traced.
      top_k: draw from the k likeliest tokens; None, or more than there are, is all.
      context: `model.context`, where the text may grow longer than that. None: it may not; recurrent models, which
        have no such limit, need none.

    Returns:
      int32 (B, steps), without the prompt.

    Raises:
      ValueError: an argument is out of range, or without `context` the model refuses a text that long.

    Example:
      >>> from sparsejax.models import GPT
      >>> model = GPT(vocab=5, layers=1, width=4, heads=1, context=8)
      >>> params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
      >>> generate(model.apply, params, jnp.array([[1, 2]]), jax.random.key(1), steps=6, top_k=2).shape
      (1, 6)
    """
    if prompt_BxL.ndim != 2 or not prompt_BxL.shape[1] or not jnp.issubdtype(prompt_BxL.dtype, jnp.integer):
        raise ValueError(f"prompt: {prompt_BxL.dtype}{list(prompt_BxL.shape)} is not integers (B, L) with L >= 1")
    for name, value in {"steps": steps, "top_k": top_k, "context": context}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}: {value} is below 1")
    if isinstance(temperature, float | int) and not temperature >= 0:
        raise ValueError(f"temperature: {temperature} is not >= 0")
    return _generate(apply, params, prompt_BxL.astype(jnp.int32), key, steps, temperature, top_k, context)


@partial(jax.jit, static_argnames=("apply", "steps", "top_k", "context"))
def _generate(apply, params, prompt_BxL, key, steps, temperature, top_k, context):
    batch, length = prompt_BxL.shape
    if context is None:  # the last new token is never read
        jax.eval_shape(apply, {"params": params}, jax.ShapeDtypeStruct((batch, length + steps - 1), jnp.int32))
        context = length + steps - 1
    segment = partial(_segment, apply, params, draw=partial(sample, temperature=temperature, top_k=top_k))
    keys = lambda start, count: jax.vmap(partial(jax.random.fold_in, key))(start + jnp.arange(count))

    given_BxL = prompt_BxL[:, -context:]
    first = min(steps, context - given_BxL.shape[1] + 1)
    tokens_BxN = segment(given_BxL, keys(0, first))
    kept, again = context - context // 2, context // 2 + 1  # tokens read, and made, each time the cache is full
    rounds = -(-(steps - first) // again)
    if not rounds:
        return tokens_BxN

    def go_on(seen_BxK, start):
        new_BxN = segment(seen_BxK, keys(start, again))
        return jnp.concatenate([seen_BxK, new_BxN], axis=1)[:, -kept:], new_BxN

    seen_BxK = jnp.concatenate([given_BxL, tokens_BxN], axis=1)[:, -kept:]
    _, more_RxBxN = lax.scan(go_on, seen_BxK, first + again * jnp.arange(rounds))
    more_BxM = jnp.moveaxis(more_RxBxN, 0, 1).reshape(batch, rounds * again)
    return jnp.concatenate([tokens_BxN, more_BxM], axis=1)[:, :steps]


def _segment(apply, params, given_BxL, keys_N, *, draw):
    """N tokens after the given ones, with a cache that starts empty: the given ones are read at once."""

    def read(tokens_BxL, cache, key):
        logits_BxLxV, state = apply({"params": params} | cache, tokens_BxL, decode=True, mutable=[_CACHE])
        return draw(logits_BxLxV[:, -1], key), {_CACHE: state[_CACHE]}

    def step(carry, key):
        token_B, cache = read(carry[0][:, None], carry[1], key)
        return (token_B, cache), token_B

    start = read(given_BxL, {}, keys_N[0])
    _, tokens_NxB = lax.scan(step, start, keys_N[1:])
    return jnp.concatenate([start[0][:, None], tokens_NxB.T], axis=1)


def sample(
    logits_BxV: jax.Array, key: jax.Array, temperature: float | jax.Array = 1.0, top_k: int | None = None
) -> jax.Array:
    """One token (B,) for each row, with probability ∝ exp(logit / temperature) among the top_k largest logits.

    Args:
      logits_BxV: float.
      key: PRNG key.
      temperature: 0 takes the largest (the first of equal ones).
      top_k: None, or more than V, is V; of equal logits at the border, the first are taken.

    Example:
      >>> sample(jnp.array([[0.0, 2.0, 1.0]]), jax.random.key(0), temperature=0.0).tolist()
      [1]
    """
    values_BxK, tokens_BxK = lax.top_k(logits_BxV, min(top_k or logits_BxV.shape[1], logits_BxV.shape[1]))
    heat = jnp.asarray(temperature, values_BxK.dtype)
    drawn_B = jax.random.categorical(key, values_BxK / jnp.where(heat > 0, heat, 1))
    place_B = jnp.where(heat > 0, drawn_B, 0)
    return jnp.take_along_axis(tokens_BxK, place_B[:, None], axis=1)[:, 0].astype(jnp.int32)

"""Text from a trained language model, token by token."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.training.model import evaluated


def continued(
    model: Any,
    params: Any,
    model_state: Any,
    prompt_L: jax.Array,
    key: jax.Array,
    steps: int,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> jax.Array:
    """int32 (steps,): the tokens that the model puts behind a prompt; it reads the last `model.context` of all.

    Args:
      model: a causal language model with the attribute `context`.
      params, model_state: of one seed.
      prompt_L: integers (L,), at least one.
      key: PRNG key.
      steps: how many tokens.
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: draw from the k likeliest; None is all.
    """
    context = int(model.context)
    given = jnp.asarray(prompt_L, jnp.int32)[-context:]
    window = jnp.zeros(context, jnp.int32).at[: len(given)].set(given)
    return _continued(model, steps, top_k, params, model_state, window, len(given), key, jnp.float32(temperature))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _continued(model, steps, top_k, params, model_state, window, length, key, temperature):
    context = window.shape[0]

    def step(carry, key):
        window, length = carry  # what is right of `length` is not seen, as the model is causal
        logits_V = evaluated(model, params, model_state, window[None])[0, length - 1]
        values, tokens = lax.top_k(logits_V, min(top_k or logits_V.shape[0], logits_V.shape[0]))
        drawn = jax.random.categorical(key, values / jnp.where(temperature > 0, temperature, 1))
        token = tokens[jnp.where(temperature > 0, drawn, 0)].astype(jnp.int32)
        full = length == context
        window = jnp.where(full, jnp.roll(window, -1), window)
        length = jnp.where(full, context, length + 1)
        return (window.at[length - 1].set(token), length), token

    return lax.scan(step, (window, length), jax.random.split(key, steps))[1]

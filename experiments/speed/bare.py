"""Training as one writes it by hand with flax and optax: what our loop is measured against."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class Bare(NamedTuple):
    """A loop by hand.

    Attributes:
      run: `(steps) -> seconds`, of training that many more.
      bytes: of the arguments, results and temporaries of a dispatch, what is given away and taken back counted once.
    """

    run: Any
    bytes: int


def bare_loop(
    model: Any, optimizer: optax.GradientTransformation, data: Any, cut: Any, size: int, batch: int, chunk: int
):
    """One seed, everything on the device, `chunk` steps in a dispatch.

    Args:
      model: a Linen module that takes train=True; dropout has its key.
      optimizer: the same as the other loop's.
      data: arrays on the device.
      cut: `(data, index (B,)) -> (x, y)`.
      size: examples to draw from.
      batch, chunk: examples of a step, steps of a dispatch.
    """
    example, _ = cut(data, jnp.zeros(1, jnp.int32))
    stats = jax.jit(model.init)(jax.random.key(0), example)
    params = stats.pop("params")

    def one_step(at, carry, data, order):
        params, stats, state, key, _ = carry
        x, y = cut(data, jax.lax.dynamic_slice(order, (at * batch,), (batch,)))
        key, dropout = jax.random.split(key)

        def loss_of(params):
            variables = {"params": params, **stats}
            logits, new = model.apply(variables, x, train=True, mutable=list(stats), rngs={"dropout": dropout})
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new

        (loss, stats), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), stats, state, key, loss

    @jax.jit
    def first_state(params, stats):
        return params, dict(stats), optimizer.init(params), jax.random.key(1), jnp.zeros([])

    def many_steps(carry, data, order, first):
        if chunk == 1:
            return one_step(first, carry, data, order)
        return jax.lax.fori_loop(first, first + chunk, lambda at, carry: one_step(at, carry, data, order), carry)

    carry, rng = jax.block_until_ready(first_state(params, stats)), np.random.default_rng(0)
    epoch = size // batch // chunk * chunk
    new_order = lambda: jnp.asarray(rng.permutation(size)[: epoch * batch], jnp.int32)
    program = jax.jit(many_steps, donate_argnums=0).lower(carry, data, new_order(), jnp.int32(0)).compile()
    memory = program.memory_analysis()
    held = [carry, 0, None]

    def run(steps: int) -> float:
        start = time.perf_counter()
        carry, done, order = held
        for _ in range(steps // chunk):
            if done % epoch == 0:
                order = new_order()
            carry = program(carry, data, order, jnp.int32(done % epoch))
            done += chunk
        held[:] = jax.block_until_ready(carry), done, order
        return time.perf_counter() - start

    return Bare(run, in_use(memory))


def in_use(memory: Any) -> int:
    """Bytes of a program's arguments, results and temporaries; results in a donated argument's place are not more."""
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return int(total - memory.alias_size_in_bytes)

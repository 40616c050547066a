"""A small tree and one update of it, for tests of single methods."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

SMALL = {
    "Dense_0": {"kernel": np.linspace(-1, 1, 96, dtype=np.float32).reshape(12, 8), "bias": np.zeros(8, np.float32)}
}
SGD = optax.sgd(0.1, momentum=0.9)


def small(seed=0):
    """A new copy of a small tree."""
    return jax.tree.map(
        lambda x: jnp.asarray(np.random.default_rng(seed).permutation(x.ravel()).reshape(x.shape)), SMALL
    )


def updated(tx, params, grads, step, start=None):
    """The masks before and after the update at one step, and the new params, of one leaf."""
    state = (jax.jit(tx.init)(params) if start is None else start)._replace(count=jnp.int32(step))
    updates, after = jax.jit(tx.update)(grads, state, params)
    pick = lambda tree: np.asarray(jax.tree.leaves(tree)[-1])
    return pick(state.masks), pick(after.masks), pick(optax.apply_updates(params, updates))

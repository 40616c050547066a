"""For tests of language models: random params without a compilation, and a jit that compiles in a hurry."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.training.compiling import hurried

KEY = jax.random.key(0)
# Each program here runs a few times, on few numbers: compiled without any optimisation, where XLA has that option.
quick = partial(jax.jit, compiler_options=dict.fromkeys(hurried(), 0))


def shapes(model, length=1):
    """Shapes of the params, and of the logits of one sequence; nothing is computed."""
    logits, variables = jax.eval_shape(model.init_with_output, KEY, jax.ShapeDtypeStruct((1, length), jnp.int32))
    return variables["params"], logits


def drawn(model, spread=0.3, seed=0):
    """Params drawn by NumPy, norm scales around 1 and biases around 0, so that one that is left out shows."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        scale = path[-1].key == "scale"
        return jnp.asarray(scale + rng.normal(size=leaf.shape) * spread, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes(model)[0])


def texts(batch=2, length=8, vocab=11, seed=0):
    """Random tokens."""
    return jnp.asarray(np.random.default_rng(seed).integers(0, vocab, (batch, length)), jnp.int32)


@partial(quick, static_argnums=0)
def logits_of(model, params, tokens_BxL):
    """The model's logits, without dropout or cache."""
    return model.apply({"params": params}, tokens_BxL)

"""For tests of models: random params without a compilation, and a jit that compiles in a hurry."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.leaves import named_leaves
from sparsejax.training.compiling import hurried

KEY = jax.random.key(0)
# Each program here runs a few times, on few numbers: compiled without any optimisation, where XLA has that option.
quick = partial(jax.jit, compiler_options=dict.fromkeys(hurried(), 0))


def shapes(model, length=1):
    """Shapes of the params, and of the logits of one sequence; nothing is computed."""
    logits, variables = jax.eval_shape(model.init_with_output, KEY, jax.ShapeDtypeStruct((1, length), jnp.int32))
    return variables["params"], logits


def filled(tree, rng=0, spread=None):
    """Values drawn by NumPy for a tree of shapes: scales and variances around 1, all else, biases too, around 0.

    So one that is left out shows. `rng`: a seed or a generator; `spread`: standard deviation, None: He's of kernels.
    """
    rng = np.random.default_rng(rng)

    def draw(path, leaf):
        around = path.endswith(("/scale", "/var", "a_right"))
        if spread is not None:
            return around + rng.normal(size=leaf.shape) * spread
        if around:
            return rng.uniform(0.5, 1.5, leaf.shape)
        return rng.normal(0, math.sqrt(2 / (math.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 10)), leaf.shape)

    leaves = [jnp.asarray(draw(path, leaf), leaf.dtype) for path, leaf in named_leaves(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def drawn(model, spread=0.3, seed=0):
    """Params of a language model, `filled`."""
    return filled(shapes(model)[0], seed, spread)


def texts(batch=2, length=8, vocab=11, seed=0):
    """Random tokens."""
    return jnp.asarray(np.random.default_rng(seed).integers(0, vocab, (batch, length)), jnp.int32)


@partial(quick, static_argnums=0)
def logits_of(model, params, tokens_BxL):
    """The model's logits, without dropout or cache."""
    return model.apply({"params": params}, tokens_BxL)

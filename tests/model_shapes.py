"""Shapes and dense FLOPs of the zoo's models, traced once a session and never run."""

import functools
import math

import jax
import jax.numpy as jnp

from sparsejax import flops
from sparsejax.leaves import named_leaves
from sparsejax.models import MODELS

MNIST, CIFAR, IMAGENET = (28, 28), (32, 32, 3), (224, 224, 3)


@functools.cache
def traced(name, classes, image, **arguments):
    """(params, statistics, FLOPs by path) of a model for one image, all of them shapes."""
    model = MODELS[name](classes=classes, **arguments)
    x = jax.ShapeDtypeStruct((1, *image), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    params, stats = variables["params"], variables.get("batch_stats", {})
    run = lambda params, stats, x: model.apply({"params": params, "batch_stats": stats}, x)
    return params, stats, flops.layer_flops(run, params, stats, x)


def size(params):
    """Number of parameters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def kernels(params):
    """path -> shape of the leaves that are called kernel."""
    return {path: leaf.shape for path, leaf in named_leaves(params) if path.endswith("/kernel")}

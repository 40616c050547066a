"""A model as training sees it: made from a config, initialised for all seeds, applied in training and evaluation."""

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.data.corpus import Corpus
from sparsejax.leaves import Layout
from sparsejax.models import MODELS
from sparsejax.training.errors import ConfigError

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


def make_model(config: Mapping[str, Any], data: Any) -> Any:
    """The Linen module that a resolved config names, of the size that the data asks for.

    Raises:
      ConfigError: the model is for other data, or has no argument dtype where the config sets it.
    """
    name, takes = config["model"], inspect.signature(MODELS[config["model"]]).parameters
    arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config["model_args"].items()}
    for field, value in arguments.items():
        default = takes[field].default
        if value is None and default is not None and default is not inspect.Parameter.empty:
            raise ConfigError(f"model_args.{field}: None; {name} takes a value there, such as its default {default!r}")
    text = isinstance(data, Corpus)
    if text != ("vocab" in takes):
        kinds = ("text", "images") if text else ("images", "text")
        raise ConfigError(f"model {name!r} is for {kinds[1]}, data set {config['dataset']!r} has {kinds[0]}")
    arguments |= {"vocab": data.vocab} if text else {"classes": data.classes}
    if "dtype" in takes:
        arguments["dtype"] = _DTYPES[config["dtype"]]
    elif config["dtype"] != "float32":
        raise ConfigError(f"dtype: {config['dtype']!r} with model {name!r}, which computes in float32 alone")
    return MODELS[name](**arguments)


def layout_of(model: Any) -> Layout | None:
    """Which axes of the model's leaves are inputs, outputs and stacked layers, where it does not follow from shapes."""
    return getattr(model, "layout", None)


def init_model(model: Any, example: jax.ShapeDtypeStruct, seeds: jax.Array) -> tuple[Any, Any]:
    """(params, model state) of the model, one for each seed, stacked; the state holds every other collection."""
    x = jnp.zeros(example.shape, example.dtype)

    def one(seed):
        variables = dict(model.init(jax.random.key(seed), x))
        return variables.pop("params"), variables

    return jax.vmap(one)(seeds)


def evaluated(model: Any, params: Any, model_state: Any, x: jax.Array) -> jax.Array:
    """float32 logits of one seed's model as it predicts."""
    return model.apply({"params": params, **model_state}, x, train=False).astype(jnp.float32)


def trained(model: Any, params: Any, model_state: Any, x: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
    """(float32 logits, new model state) of one seed's model as it learns; the key is for dropout."""
    variables = {"params": params, **model_state}
    logits, new = model.apply(variables, x, train=True, mutable=list(model_state), rngs={"dropout": key})
    return logits.astype(jnp.float32), dict(new)

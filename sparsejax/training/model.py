"""A model as training sees it: made from a config, initialised for all seeds, applied in training and evaluation."""

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.data.corpus import Corpus
from sparsejax.leaves import Layout, Where
from sparsejax.models import MODELS
from sparsejax.models.bidirectional import Bidirectional
from sparsejax.models.forms import in_form
from sparsejax.training.errors import ConfigError
from sparsejax.training.methods import arguments_of
from sparsejax.transforms.bdwp import along_inputs

FORM_ARGUMENTS = set(inspect.signature(in_form).parameters) - {"model"}
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


def make_model(config: Mapping[str, Any], data: Any) -> Any:
    """The Linen module that a resolved config names, of the size that the data asks for, computing as its method does.

    Raises:
      ConfigError: the model is for other data, has no argument dtype where the config sets it, or has not the form
        that model_args ask for.
    """
    name, takes = config["model"], inspect.signature(MODELS[config["model"]]).parameters
    arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config["model_args"].items()}
    form = {key: arguments.pop(key) for key in FORM_ARGUMENTS & arguments.keys()}
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
    model = MODELS[name](**arguments)
    try:
        model = in_form(model, **form)
    except ValueError as error:
        raise ConfigError(f"model_args: {error}") from error
    if config["method"] != "bdwp":
        return model
    taken = arguments_of(config)
    return Bidirectional(model, along_inputs(taken.get("pattern")), taken.get("where") or where_of(model))


def model_fields(config: Mapping[str, Any]) -> list[Any]:
    """What of the method's fields decides how the model computes: nothing but of BDWP."""
    return [config["method_args"]] if config["method"] == "bdwp" else []


def layout_of(model: Any) -> Layout | None:
    """Which axes of the model's leaves are inputs, outputs and stacked layers, where it does not follow from shapes."""
    return getattr(model, "layout", None)


def where_of(model: Any) -> Where | None:
    """Which of the model's leaves are sparsified, where that is not what the default predicate takes."""
    return getattr(model, "where", None)


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

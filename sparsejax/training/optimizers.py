"""The optimizer that a method wraps, by its name in a config: with clipping before it and decay where it belongs."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
import optax.contrib

from sparsejax.leaves import path_parts
from sparsejax.training.errors import ConfigError
from sparsejax.training.schedules import make_schedule

Config = Mapping[str, Any]
Mask = Callable[[Any], Any]


def adamw(rate: optax.Schedule, config: Config, decayed: Mask) -> optax.GradientTransformation:
    """AdamW; weight_decay is decoupled (times the learning rate)."""
    b1, b2 = config["betas"]
    return optax.adamw(rate, b1=b1, b2=b2, weight_decay=config["weight_decay"], mask=decayed)


def adam(rate: optax.Schedule, config: Config, decayed: Mask) -> optax.GradientTransformation:
    """Adam, without weight decay."""
    del decayed
    b1, b2 = config["betas"]
    return optax.adam(rate, b1=b1, b2=b2)


def sgd(rate: optax.Schedule, config: Config, decayed: Mask) -> optax.GradientTransformation:
    """SGD with momentum, Nesterov's if wanted; weight_decay is L2 (added to the gradient)."""
    decay = optax.add_decayed_weights(config["weight_decay"], mask=decayed)
    return optax.chain(decay, optax.sgd(rate, momentum=config["momentum"] or None, nesterov=config["nesterov"]))


def lion(rate: optax.Schedule, config: Config, decayed: Mask) -> optax.GradientTransformation:
    """Lion; weight_decay is decoupled (times the learning rate). Source: Chen et al. (2023)."""
    b1, b2 = config["betas"]
    return optax.lion(rate, b1=b1, b2=b2, weight_decay=config["weight_decay"], mask=decayed)


def adafactor(rate: optax.Schedule, config: Config, decayed: Mask) -> optax.GradientTransformation:
    """Adafactor, steps relative to the parameters' scale; weight_decay is decoupled (times the learning rate).

    Source: Shazeer, Stern (2018).
    """
    return _with_decay(optax.adafactor(1.0), rate, config, decayed)


def muon(rate: optax.Schedule, config: Config, decayed: Mask) -> optax.GradientTransformation:
    """Muon (momentum) on leaves of two axes, NAdam (betas) on the rest; weight_decay is decoupled.

    Source: Jordan et al., Muon (2024).
    """
    b1, b2 = config["betas"]
    steps = optax.contrib.muon(1.0, beta=config["momentum"], adam_b1=b1, adam_b2=b2)
    return _with_decay(steps, rate, config, decayed)


def _with_decay(steps, rate: optax.Schedule, config: Config, decayed: Mask) -> optax.GradientTransformation:
    """Steps of learning rate 1 with decay and the rate behind them: one mask for all parts, and decay that warms up."""
    decay = optax.add_decayed_weights(config["weight_decay"], mask=decayed)
    return optax.chain(steps, optax.scale(-1.0), decay, optax.scale_by_learning_rate(rate))


# name in a config -> factory
OPTIMIZERS: dict[str, Callable[[optax.Schedule, Config, Mask], optax.GradientTransformation]] = {
    "adafactor": adafactor, "adam": adam, "adamw": adamw, "lion": lion, "muon": muon, "sgd": sgd,
}  # fmt: skip
_BETAS = {"adam": [0.9, 0.999], "adamw": [0.9, 0.999], "lion": [0.9, 0.99], "muon": [0.9, 0.999]}
_MOMENTUM = {"muon": 0.95}


def own_values(config: Config) -> dict[str, Any]:
    """`momentum` and `betas` of a config, with the optimizer's own values where it gives none.

    Raises:
      ConfigError: the optimizer does not have what the config asks of it.
    """
    name = config["optimizer"]
    if name == "adam" and config["weight_decay"]:
        raise ConfigError(f"weight_decay: {config['weight_decay']} with optimizer 'adam', which has none; use 'adamw'")
    if config["nesterov"] and name != "sgd":
        raise ConfigError(f"nesterov: true with optimizer {name!r}; only 'sgd' has the choice")
    if config["betas"] is not None and name not in _BETAS:
        raise ConfigError(f"betas: {config['betas']} with optimizer {name!r}, which has none; {', '.join(_BETAS)} have")
    momentum = _MOMENTUM.get(name, 0.9) if config["momentum"] is None else float(config["momentum"])
    if config["nesterov"] and not momentum:
        raise ConfigError("nesterov: true with momentum 0")
    return {"momentum": momentum, "betas": config["betas"] or _BETAS.get(name)}


def make_optimizer(
    config: Config, total_steps: int, adam: Callable[..., optax.GradientTransformation] | None = None
) -> optax.GradientTransformation:
    """The optimizer that the method wraps; the norm that is clipped is thus that of what is kept.

    Args:
      config: a resolved config.
      total_steps: of the whole run.
      adam: a method's own AdamW, which takes the place of optax's.

    Raises:
      ConfigError: the method has its own AdamW, and the config names another optimizer.
    """
    rate, name = make_schedule(config, total_steps), config["optimizer"]
    which = lambda params: decayed(params, config["decay"])
    if adam is None:
        optimizer = OPTIMIZERS[name](rate, config, which)
    elif name in ("adam", "adamw"):
        b1, b2 = config["betas"]
        optimizer = adam(rate, b1=b1, b2=b2, weight_decay=config["weight_decay"], mask=which)
    else:
        raise ConfigError(f"optimizer: {name!r} with method {config['method']!r}, whose decay is a part of 'adamw'")
    if not config["clip_norm"]:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(config["clip_norm"]), optimizer)


def decayed(params: Any, which: str) -> Any:
    """Which parameters weight decay acts on: a bool for each.

    Args:
      params: a tree of arrays.
      which: "kernels": matrices and filters that are named kernel*, weight* or w; "matrices": embeddings
        and positions too, everything of two axes or more but biases and norms' scales; "all". The array that
        kernels share in a model's roast form counts as a kernel.

    Example:
      >>> decayed({"kernel": jnp.ones((2, 2)), "bias": jnp.ones((2, 2))}, "kernels")
      {'bias': False, 'kernel': True}
    """

    def one(path, leaf):
        name = path_parts(path)[-1]
        if which == "all" or name == "memory":
            return True
        if which == "matrices":
            return leaf.ndim >= 2 and "bias" not in name and "scale" not in name
        return leaf.ndim >= 2 and (name.startswith(("kernel", "weight")) or name == "w")

    return jax.tree_util.tree_map_with_path(one, params)

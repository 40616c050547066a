"""The fields of a config: their defaults, their types, and what is allowed in each, in words and as a test."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from types import NoneType
from typing import Any

from sparsejax.training.errors import ConfigError

# field -> (default, allowed type, what is allowed in words, test)
Rule = tuple[Any, type | tuple[type, ...], str, Callable[[Any], bool]]
_NUMBER = (float, int)
_any = lambda v: True
_share = lambda v: 0 <= v < 1
_amount = lambda v: 0 <= v < float("inf")
_at_least = lambda least: lambda v: v >= least
_one_of = lambda *names: lambda v: v in names

RULES: dict[str, Rule] = {
    "method": ("dense", str, "a method's name", _any),
    "sparsity": (0.9, _NUMBER, "a number in [0, 1)", _share),
    "method_args": ({}, dict, "arguments of the methods", _any),
    "model": ("mlp", str, "a model's name", _any),
    "model_args": ({}, dict, "arguments of the model", _any),
    "dtype": (
        "float32",
        str,
        "'float32', 'bfloat16' or 'float16' (in which the model computes)",
        _one_of("float32", "bfloat16", "float16"),
    ),
    "init": (
        "default",
        str,
        "'default', 'density' (fan-in corrected by density), 'kaiming_normal' or 'signed_constant' (of masked layers)",
        _one_of("default", "density", "kaiming_normal", "signed_constant"),
    ),
    "init_from": ("", str, "a run directory whose final params training starts from ('': its own)", _any),
    "dataset": ("digits", str, "a data set's name", _any),
    "data_dir": ("", str, "a directory", _any),
    "data": ({}, dict, "arguments of the data set", _any),
    "augment": ("", str, "augmentations of training images, as sparsejax.data.augment reads them", _any),
    "mixup": (0.0, _NUMBER, "a number >= 0 (alpha of mixup; 0: none)", _amount),
    "cutmix": (0.0, _NUMBER, "a number >= 0 (alpha of cutmix; 0: none)", _amount),
    "label_smoothing": (0.0, _NUMBER, "a number in [0, 1)", _share),
    "distill": ({}, dict, "workdir, alpha, temperature of a teacher", _any),
    "optimizer": ("adamw", str, "an optimizer's name", _any),
    "learning_rate": (1e-3, _NUMBER, "a number > 0", lambda v: 0 < v < float("inf")),
    "weight_decay": (0.0, _NUMBER, "a number >= 0", _amount),
    "decay": ("kernels", str, "'kernels', 'matrices' or 'all'", _one_of("kernels", "matrices", "all")),
    "momentum": (
        None,
        (*_NUMBER, NoneType),
        "a number in [0, 1), or null for the optimizer's own",
        lambda v: v is None or _share(v),
    ),
    "nesterov": (False, bool, "true or false", _any),
    "betas": (
        None,
        (list, NoneType),
        "two numbers in [0, 1), or null for the optimizer's own",
        lambda v: v is None or (len(v) == 2 and all(type(b) in _NUMBER and _share(b) for b in v)),
    ),
    "clip_norm": (0.0, _NUMBER, "a number >= 0 (largest global norm of a gradient; 0: any)", _amount),
    "accumulate": (1, int, "an integer >= 1 (parts in which a batch is computed)", _at_least(1)),
    "schedule": ("constant", str, "a schedule's name", _any),
    "schedule_args": ({}, dict, "arguments of the schedules", _any),
    "warmup_steps": (0, int, "an integer >= 0", _at_least(0)),
    "ema_decay": (0.0, _NUMBER, "a number in [0, 1) (0: no average of the parameters)", _share),
    "batch_size": (128, int, "an integer >= 1", _at_least(1)),
    "epochs": (10, int, "an integer >= 1", _at_least(1)),
    "epoch_steps": (0, int, "an integer >= 0 (steps of an epoch of text; 0: all its tokens)", _at_least(0)),
    "seeds": (1, (int, list), "an integer n >= 1 (seeds 0..n-1) or different integers in 0..2**31-1", _any),
    "eval_every_epochs": (1, int, "an integer >= 1", _at_least(1)),
    "checkpoint_every_epochs": (0, int, "an integer >= 0 (0: only at the end)", _at_least(0)),
    "keep_checkpoints": (2, int, "an integer >= 1", _at_least(1)),
    "keep_best": (False, bool, "true or false", _any),
    "patience": (0, int, "an integer >= 0 (evaluations without a better one before the end; 0: any)", _at_least(0)),
    "chunk_steps": (100, int, "an integer >= 1 (most training steps in one dispatch)", _at_least(1)),
    "stop_on_nonfinite": (True, bool, "true or false", _any),
    "mesh": ({}, dict, "devices along 'data' and 'fsdp'; -1: all that are left", _any),
    "log_topology": (False, bool, "true or false (log the share of weights on a path, at evaluations)", _any),
    "log": ([], list, "a list of 'tensorboard', 'wandb'", lambda v: set(map(str, v)) <= {"tensorboard", "wandb"}),
}  # fmt: skip


def checked(field: str, value: Any, rule: Rule) -> Any:
    """The value, an integer as a float where a number is asked for; ConfigError where it is not allowed."""
    _, kind, words, test = rule
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds) or not test(value):
        raise ConfigError(f"{field}: {value!r} is not {words}")
    return float(value) if isinstance(value, int) and float in kinds else value


def unknown(field: str, value: object, known: Iterable[str]) -> str:
    """The sentence "field: unknown 'rigel'; did you mean 'rigl'? one of dense, gmp, ..."."""
    names = sorted(known)
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" did you mean {near[0]!r}?" if near else ""
    return f"{field}: unknown {value!r};{hint} one of {', '.join(names) or '(nothing)'}"


def check_names(field: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises ConfigError for the first name that is not known."""
    known = set(known)
    for name in given:
        if name not in known:
            raise ConfigError(unknown(field, name, known))


def checked_group(field: str, given: Mapping[str, Any], rules: Mapping[str, Rule]) -> dict[str, Any]:
    """A dict of fields with rules of their own: every one present, or all absent; the rest as `checked` does."""
    if not given:
        return {}
    check_names(field, given, rules)
    return {name: checked(f"{field}.{name}", given.get(name, rule[0]), rule) for name, rule in rules.items()}


DISTILL: dict[str, Rule] = {
    "workdir": ("", str, "the run directory of the teacher", lambda v: bool(v)),
    "alpha": (0.5, _NUMBER, "a number in [0, 1] (the teacher's share of the loss)", lambda v: 0 <= v <= 1),
    "temperature": (2.0, _NUMBER, "a number > 0", lambda v: 0 < v < float("inf")),
}
MESH: dict[str, Rule] = {
    name: (1, int, "an integer >= 1, or -1 for all devices that are left", lambda v: v == -1 or v >= 1)
    for name in ("data", "fsdp")
}

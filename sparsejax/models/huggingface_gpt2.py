"""GPT-2 from and to a local folder in Hugging Face's format. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sparsejax.models.gpt import GPT
from sparsejax.models.gpt_block import ACTIVATIONS
from sparsejax.models.safetensors_folder import CONFIG, TENSORS, check_all_taken, read_folder, take, write_folder
from sparsejax.models.scanned import stack_blocks, unstack_blocks

# field of config.json -> the only value that GPT computes; a field that is missing has it
_FIXED = {
    "model_type": "gpt2",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "quantization_config": None,
}
# attribute of GPT -> (field of config.json, its value where it is missing)
_SIZES: dict[str, tuple[str, int | None]] = {
    "vocab": ("vocab_size", 50_257),
    "layers": ("n_layer", 12),
    "width": ("n_embd", 768),
    "heads": ("n_head", 12),
    "mlp_width": ("n_inner", None),
    "context": ("n_positions", 1024),
}
_RATES = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
_ACTIVATIONS = {name: name for name in ACTIVATIONS} | {"gelu_pytorch_tanh": "gelu_new"}
_OPTIONS = ("attention", "dtype", "remat", "scan")
_PREFIX, _HEAD = "transformer.", "lm_head.weight"


def gpt2_from(folder: str | Path, *, dropout: float | None = None, **options: Any) -> tuple[GPT, dict[str, Any]]:
    """A GPT-2 saved by Hugging Face's `transformers`: the module, and its params in float32.

    Args:
      folder: holds config.json and model.safetensors; the tensors are named as in the bare model or as in the one with
        a language-model head, which is the embeddings.
      dropout: rate in training; None is the config's, whose three rates must then be equal.
      **options: attributes of `GPT` that change no weight: attention, dtype, remat, scan.

    Raises:
      ValueError: one line that names the file and the field (not supported, or out of range) or the tensor (missing,
        unknown, of another shape or type); or the option.

    Example:
      >>> from sparsejax.models import GPT
      >>> model = GPT(vocab=5, layers=1, width=4, heads=2, context=8)
      >>> params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
      >>> gpt2_to("gpt2", model, params)
      >>> loaded, same = gpt2_from("gpt2")
      >>> loaded == model, bool((same["final_norm"]["scale"] == params["final_norm"]["scale"]).all())
      (True, True)
    """
    for name in options:
        if name not in _OPTIONS:
            raise ValueError(f"{name}: is no option of gpt2_from; one of dropout, {', '.join(_OPTIONS)}")
    config, tensors = read_folder(folder)
    fields = _fields(Path(folder) / CONFIG, config)
    rates = set(fields.pop("dropout"))
    if dropout is None and len(rates) > 1:
        words = ", ".join(f"{field}={config.get(field, 0.1)}" for field in _RATES)
        raise ValueError(f"{Path(folder) / CONFIG}: {words} differ, which is not supported; pass dropout=...")
    model = GPT(**fields, dropout=rates.pop() if dropout is None else dropout, **options)
    params = _params(Path(folder) / TENSORS, model, tensors)
    return model, stack_blocks(params) if model.scan else params


def gpt2_to(folder: str | Path, model: GPT, params: Mapping[str, Any]) -> None:
    """Writes a GPT to a folder that `gpt2_from`, and Hugging Face's `transformers`, read as a GPT-2.

    Weights are written as they are, in float32, zeros of a sparse model included; rows that pad the embeddings are left
    out. Tensors that were loaded from such a folder are written back exactly.

    Args:
      folder: made if need be; config.json and model.safetensors in it are replaced.
      model: the module; it says what no shape says, as the number of heads.
      params: its params, with scan or without.

    Raises:
      ValueError: GPT-2's format has no place for an attribute of the module, or the params are not the module's.
    """
    for name, allowed in {
        "positions": ("learned",),
        "bias": (True,),
        "tied": (True,),
        "kv_heads": (None, model.heads),
    }.items():
        if getattr(model, name) not in allowed:
            raise ValueError(f"{name}: {getattr(model, name)!r} has no place in GPT-2's format; {allowed[0]!r} has")
    leaves = flatten_dict(unstack_blocks(params) if "blocks" in params else params, sep="/")
    tensors = {}
    for name, shape, paths in _tensors(model):
        try:
            parts = [np.asarray(leaves.pop(path), np.float32) for path in paths]
        except KeyError as error:
            raise ValueError(f"params: no leaf {error.args[0]!r}") from error
        tensor = np.concatenate(parts, axis=-1)
        if name == "wte.weight":
            tensor = tensor[: model.vocab]
        if tensor.shape != shape:
            raise ValueError(f"params: {', '.join(paths)} make {name!r} of shape {tensor.shape}, expected {shape}")
        tensors[_PREFIX + name] = tensor
    if leaves:
        raise ValueError(f"params: GPT-2's format has no place for leaf {min(leaves)!r}")
    sizes = {field: getattr(model, attribute) for attribute, (field, _) in _SIZES.items()}
    other = {
        "activation_function": model.activation,
        "architectures": ["GPT2LMHeadModel"],
        "layer_norm_epsilon": model.norm_epsilon,
    }
    fixed = {field: value for field, value in _FIXED.items() if value is not None}
    write_folder(folder, fixed | sizes | dict.fromkeys(_RATES, model.dropout) | other, tensors)


def _tensors(model: GPT) -> Iterator[tuple[str, tuple[int, ...], list[str]]]:
    """Name and shape of each tensor of the format, and the paths of the leaves that it joins along its last axis."""
    width, hidden = model.width, model.mlp_width or 4 * model.width
    yield "wte.weight", (model.vocab, width), ["token_embed/embedding"]
    yield "wpe.weight", (model.context, width), ["position_embed/embedding"]
    norms = {"ln_f": "final_norm"}
    for layer in range(model.layers):
        theirs, ours = f"h.{layer}", f"block_{layer}"
        norms |= {f"{theirs}.ln_1": f"{ours}/attention_norm", f"{theirs}.ln_2": f"{ours}/mlp_norm"}
        for name, shape, modules in (
            ("attn.c_attn", (width, 3 * width), ["attention/query", "attention/key", "attention/value"]),
            ("attn.c_proj", (width, width), ["attention/out"]),
            ("mlp.c_fc", (width, hidden), ["mlp/up"]),
            ("mlp.c_proj", (hidden, width), ["mlp/down"]),
        ):
            yield f"{theirs}.{name}.weight", shape, [f"{ours}/{module}/kernel" for module in modules]
            yield f"{theirs}.{name}.bias", shape[1:], [f"{ours}/{module}/bias" for module in modules]
    for name, module in norms.items():
        yield f"{name}.weight", (width,), [f"{module}/scale"]
        yield f"{name}.bias", (width,), [f"{module}/bias"]


def _fields(file: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of GPT that config.json tells, checked; `dropout` is all three rates."""

    def number(field: str, default: float, most: float) -> float:
        value = config.get(field, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < most:
            raise ValueError(f"{file}: {field}={value!r} is not a number in [0, {most})")
        return float(value)

    for field, value in _FIXED.items():
        if config.get(field, value) != value:
            raise ValueError(f"{file}: {field}={config[field]!r} is not supported; only {value!r} is")
    out: dict[str, Any] = {}
    for attribute, (field, default) in _SIZES.items():
        size = config.get(field, default)
        if not (size is None and default is None) and (type(size) is not int or size < 1):
            raise ValueError(f"{file}: {field}={size!r} is not an integer >= 1")
        out[attribute] = size
    if out["width"] % out["heads"]:
        raise ValueError(f"{file}: n_head={out['heads']} does not divide n_embd={out['width']}")
    activation = config.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise ValueError(f"{file}: activation_function={activation!r} is not supported; only {', '.join(_ACTIVATIONS)}")
    out["dropout"] = [number(field, 0.1, 1) for field in _RATES]
    return out | {
        "activation": _ACTIVATIONS[activation],
        "norm_epsilon": number("layer_norm_epsilon", 1e-5, 1),
    }


def _params(file: Path, model: GPT, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """The params without scan; every tensor of the file is used, or known to be of no use."""
    prefix = _PREFIX if any(name.startswith(_PREFIX) for name in tensors) else ""
    leaves: dict[str, np.ndarray] = {}
    for name, shape, paths in _tensors(model):
        tensor = take(tensors, prefix + name, shape, file)
        leaves |= zip(paths, np.split(tensor, len(paths), axis=-1))
    for layer in range(model.layers):  # causal masks, which old files hold
        for buffer in ("bias", "masked_bias"):
            tensors.pop(f"{prefix}h.{layer}.attn.{buffer}", None)
    if _HEAD in tensors:
        head = take(tensors, _HEAD, (model.vocab, model.width), file)
        if not np.array_equal(head, leaves["token_embed/embedding"]):
            raise ValueError(f"{file}: tensor {_HEAD!r} differs from the embeddings; only a tied head is supported")
    check_all_taken(tensors, file)
    return unflatten_dict({path: jnp.asarray(leaf) for path, leaf in leaves.items()}, sep="/")

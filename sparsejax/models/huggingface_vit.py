"""Pretrained vision transformers from a local Hugging Face folder."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.models.huggingface_fields import Fields
from sparsejax.models.safetensors_folder import CONFIG, TENSORS, check_all_taken, read_folder, take
from sparsejax.models.scanned import stack_blocks
from sparsejax.models.vit import ViT

_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}


def load_vit(
    folder: str | Path, *, classes: int | None = None, scan: bool = False, remat: bool = False, dtype: Any = "float32"
) -> tuple[ViT, dict[str, Any]]:
    """A ViT and its pretrained variables from a folder with config.json and model.safetensors.

    `model.apply(variables, x)` gives the logits of `transformers`' ViTForImageClassification for images (B, H, W, C) of
    the folder's size, normalised as its preprocessor_config.json says (as a rule (x / 255 - 0.5) / 0.5).

    Args:
      folder: path of a folder that `save_pretrained` of ViTForImageClassification or ViTModel wrote. A pooler and a
        mask token are left unread.
      classes: None keeps the folder's head; a number puts a new head there, which starts at 0, as the paper fine-tunes
        (magnitudes say nothing about it: keep it dense).
      scan, remat, dtype: see `ViT`; with scan the blocks are stacked.

    Returns:
      the model, and {"params": ...} of float32.

    Raises:
      ValueError: a file is missing or damaged, a field or a tensor is not as it must be, or there is no head and
        classes is None. One line names the file and the field or tensor.

    Source: Dosovitskiy et al., An Image is Worth 16x16 Words (2021); names of `transformers`.
    """
    values, tensors = read_folder(folder)
    config, file, names = Fields(Path(folder) / CONFIG, values), Path(folder) / TENSORS, list(tensors)
    config.get("model_type", "vit", ("vit",))
    prefix = "vit." if any(name.startswith("vit.") for name in names) else ""
    has_head = any(name.startswith("classifier.") for name in names)
    if classes is None and not has_head:
        raise ValueError(f"{folder}: no 'classifier.weight' in model.safetensors; pass classes= for a new head")
    model = _model(config, names, classes, scan=scan, remat=remat, dtype=dtype)
    shapes = _shapes(config, model, prefix, has_head and classes is None)
    ignored = (f"{prefix}pooler.dense.*", f"{prefix}embeddings.mask_token", *(("classifier.*",) if classes else ()))
    taken = {name: take(tensors, name, shape, file) for name, shape in shapes.items()}
    check_all_taken(tensors, file, ignored)
    params = _params(taken, model, prefix)
    return model, {"params": stack_blocks(params) if scan else params}


def _model(config: Fields, names: list[str], classes: int | None, **options: Any) -> ViT:
    """The module that a config.json describes."""
    config.get("attention_probs_dropout_prob", 0.0, (0.0, 0))
    width, heads = config.size("hidden_size", 768), config.size("num_attention_heads", 12)
    if width % heads:
        raise ValueError(f"{config.file}: num_attention_heads: {heads} do not divide hidden_size {width}")
    depth = config.size("num_hidden_layers", 12)
    if depth > len(names):  # before a list of the tensors of a billion layers is made
        raise ValueError(
            f"{config.file}: num_hidden_layers: {depth} is more than the {len(names)} tensors that are there"
        )
    return ViT(
        _classes(config) if classes is None else classes,
        width,
        depth,
        heads,
        config.size("intermediate_size", 3072),
        config.size("patch_size", 16),
        dropout=float(config.get("hidden_dropout_prob", 0.0)),
        activation=_ACTIVATIONS[config.get("hidden_act", "gelu", tuple(_ACTIVATIONS))],
        qkv_bias=config.get("qkv_bias", True),
        norm_epsilon=float(config.get("layer_norm_eps", 1e-12)),
        **options,
    )


def _classes(config: Fields) -> int:
    """Number of labels: `id2label`'s, as `transformers` writes it, or `num_labels`, or its default 2."""
    labels = config.get("id2label", {})
    return len(labels) or config.size("num_labels", 2)


def _shapes(config: Fields, model: ViT, prefix: str, with_head: bool) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each tensor of the checkpoint."""
    width, hidden, patch = model.width, model.mlp_width or 4 * model.width, model.patch
    side, channels = config.size("image_size", 224), config.size("num_channels", 3)
    if side % patch:
        raise ValueError(f"{config.file}: patch_size: {patch} does not divide image_size {side}")
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}embeddings.cls_token": (1, 1, width),
        f"{prefix}embeddings.position_embeddings": (1, (side // patch) ** 2 + 1, width),
        f"{prefix}embeddings.patch_embeddings.projection.weight": (width, channels, patch, patch),
        f"{prefix}embeddings.patch_embeddings.projection.bias": (width,),
    }

    def layer(name: str, *sizes: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = sizes
        if bias:
            shapes[f"{name}.bias"] = sizes[:1]

    for index in range(model.depth):
        names = _layer_names(f"{prefix}encoder.layer.{index}")
        for ours, theirs in names.items():
            projects = ours in ("attention/query", "attention/key", "attention/value")
            inputs = () if "norm" in ours else (hidden if ours == "mlp_out" else width,)
            layer(theirs, hidden if ours == "mlp_in" else width, *inputs, bias=model.qkv_bias or not projects)
    layer(f"{prefix}layernorm", width)
    if with_head:
        layer("classifier", model.classes, width)
    return shapes


def _layer_names(layer: str) -> dict[str, str]:
    """Our module in a block -> the checkpoint's."""
    return {
        "norm1": f"{layer}.layernorm_before",
        "attention/query": f"{layer}.attention.attention.query",
        "attention/key": f"{layer}.attention.attention.key",
        "attention/value": f"{layer}.attention.attention.value",
        "attention/out": f"{layer}.attention.output.dense",
        "norm2": f"{layer}.layernorm_after",
        "mlp_in": f"{layer}.intermediate.dense",
        "mlp_out": f"{layer}.output.dense",
    }


def _params(tensors: dict[str, np.ndarray], model: ViT, prefix: str) -> dict[str, Any]:
    """The checkpoint's tensors as the params of a ViT without scan."""

    def layer(name: str) -> dict[str, jax.Array]:
        weight, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
        # PyTorch has (out, in) or (out, in, height, width), Flax (in, out) or (height, width, in, out); norms (D,).
        kernel = np.transpose(weight, (2, 3, 1, 0)) if weight.ndim == 4 else weight.T
        made = {"scale" if weight.ndim == 1 else "kernel": jnp.asarray(kernel)}
        return made | ({} if bias is None else {"bias": jnp.asarray(bias)})

    def block(index: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for path, name in _layer_names(f"{prefix}encoder.layer.{index}").items():
            *parents, last = path.split("/")
            inner = made
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[last] = layer(name)
        return made

    new_head = {"kernel": jnp.zeros((model.width, model.classes)), "bias": jnp.zeros(model.classes)}
    return {
        "cls_token": jnp.asarray(tensors[f"{prefix}embeddings.cls_token"]),
        "pos_embed": jnp.asarray(tensors[f"{prefix}embeddings.position_embeddings"]),
        "patch_embed": layer(f"{prefix}embeddings.patch_embeddings.projection"),
        **{f"block_{index}": block(index) for index in range(model.depth)},
        "final_norm": layer(f"{prefix}layernorm"),
        "head": layer("classifier") if "classifier.weight" in tensors else new_head,
    }

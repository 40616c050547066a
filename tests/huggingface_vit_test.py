"""Vision transformers from a Hugging Face folder: the folder is written here, the forward pass is plain NumPy."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import network_oracles
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sparsejax.models import load_vit

CONFIG = {
    "model_type": "vit", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
    "image_size": 8, "patch_size": 4, "num_channels": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "qkv_bias": True,
    "id2label": {"0": "cat", "1": "dog", "2": "fish"}, "architectures": ["ViTForImageClassification"],
}  # fmt: skip
IMAGES = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32)


def checkpoint(prefix="vit.", head=True, qkv_bias=True):
    """Random tensors with the names and shapes that ViTForImageClassification saves for CONFIG."""
    layer = {
        "attention.attention.query": (8, 8), "attention.attention.key": (8, 8), "attention.attention.value": (8, 8),
        "attention.output.dense": (8, 8), "intermediate.dense": (12, 8), "output.dense": (8, 12),
        "layernorm_before": (8,), "layernorm_after": (8,),
    }  # fmt: skip
    weights = {f"{prefix}encoder.layer.{i}.{name}": shape for i in range(2) for name, shape in layer.items()}
    weights |= {f"{prefix}embeddings.patch_embeddings.projection": (8, 3, 4, 4), f"{prefix}layernorm": (8,)}
    weights |= {"classifier": (3, 8)} if head else {}
    shapes = {f"{name}.weight": shape for name, shape in weights.items()}
    shapes |= {
        f"{name}.bias": shape[:1]
        for name, shape in weights.items()
        if qkv_bias or not name.endswith(("query", "key", "value"))
    }
    shapes |= {f"{prefix}embeddings.cls_token": (1, 1, 8), f"{prefix}embeddings.position_embeddings": (1, 5, 8)}
    rng = np.random.default_rng(0)
    draw = lambda name, shape: rng.normal("layernorm" in name and "weight" in name, 8**-0.5, shape)
    return {name: draw(name, shape).astype(np.float32) for name, shape in sorted(shapes.items())}


@pytest.fixture
def write(tmp_path):
    """Writes a folder and returns it."""

    def folder(tensors, **changes):
        save_file(tensors, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(CONFIG | changes))
        return tmp_path

    return folder


def oracle(tensors, epsilon=1e-12):
    exact = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    return network_oracles.vit(exact, IMAGES.astype(np.float64), 2, epsilon)


@pytest.mark.parametrize("scan", [False, True])
def test_logits_are_those_of_the_checkpoint(write, scan):
    tensors = checkpoint()
    model, variables = load_vit(write(tensors), scan=scan)
    logits = jax.jit(model.apply)(variables, IMAGES)
    np.testing.assert_allclose(logits, oracle(tensors), rtol=1e-4, atol=1e-5)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(IMAGES))
    assert jax.eval_shape(lambda: variables) == shapes, "the tree of init, so that training goes on from it"


def test_every_field_reaches_the_model(write):
    tensors = checkpoint(qkv_bias=False)
    folder = write(tensors, qkv_bias=False, layer_norm_eps=0.5, hidden_dropout_prob=0.25, hidden_act="gelu_new")
    model, variables = load_vit(folder, remat=True, dtype="bfloat16")
    assert (model.qkv_bias, model.dropout, model.activation, model.remat) == (False, 0.25, "gelu_tanh", True)
    assert model.dtype == "bfloat16" and variables["params"]["head"]["kernel"].dtype == jnp.float32
    assert "bias" not in variables["params"]["block_0"]["attention"]["query"]
    model = model.clone(dtype="float32", activation="gelu")
    np.testing.assert_allclose(model.apply(variables, IMAGES), oracle(tensors, epsilon=0.5), rtol=1e-4, atol=1e-5)


def test_a_folder_of_vit_model_gets_a_new_head(write):
    tensors = checkpoint(prefix="", head=False)
    tensors |= {"pooler.dense.weight": np.ones((8, 8), np.float32), "pooler.dense.bias": np.ones(8, np.float32)}
    folder = write(tensors)
    with pytest.raises(ValueError, match=r"no 'classifier.weight' in model.safetensors; pass classes= for a new head"):
        load_vit(folder)
    model, variables = load_vit(folder, classes=7)
    head = variables["params"]["head"]
    assert model.classes == 7 and head["kernel"].shape == (8, 7) and not head["kernel"].any() and not head["bias"].any()
    np.testing.assert_array_equal(variables["params"]["final_norm"]["scale"], tensors["layernorm.weight"])
    # A folder that has a head is read the same way.
    model, variables = load_vit(write(checkpoint()), classes=4)
    assert model.classes == 4 and variables["params"]["head"]["kernel"].shape == (8, 4)


def test_half_precision_tensors_become_float32(write):
    tensors = checkpoint()
    half = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}
    half["classifier.weight"] = tensors["classifier.weight"].astype(np.float16)
    _, variables = load_vit(write(half))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {"float32"}
    query = variables["params"]["block_1"]["attention"]["query"]["kernel"]
    np.testing.assert_array_equal(query, half["vit.encoder.layer.1.attention.attention.query.weight"].T.astype("f4"))


def changed(**changes):
    """The checkpoint's tensors with some replaced, added, or left out (None); `__` stands for a dot."""
    tensors = checkpoint() | {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in tensors.items() if value is not None}


ONES = np.ones((2, 2), np.float32)
BAD_TENSORS = [
    ({"vit__layernorm__weight": None}, "has no tensor 'vit.layernorm.weight'"),
    ({"vit__layernorm__gamma": ONES}, "unknown tensor 'vit.layernorm.gamma'"),
    (
        {"vit__encoder__layer__2__output__dense__weight": ONES},
        "unknown tensor 'vit.encoder.layer.2.output.dense.weight'",
    ),
    ({"classifier__weight": np.ones((8, 3), np.float32)}, r"'classifier.weight' has shape \[8, 3\], expected \[3, 8\]"),
    ({"classifier__bias": np.ones(3, np.int64)}, "'classifier.bias' holds int64, expected floats"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_TENSORS)
def test_bad_tensors_are_one_line_with_file_and_name(write, changes, message):
    folder = write(changed(**changes))
    with pytest.raises(ValueError, match=message) as error:
        load_vit(folder)
    assert str(error.value).startswith(f"{folder / 'model.safetensors'}: ")
    assert "\n" not in str(error.value)


BAD_FIELDS = [
    ({"model_type": "bert"}, "model_type: 'bert' is not 'vit'"),
    ({"hidden_size": "8"}, "hidden_size: '8' is not a value like 768"),
    ({"hidden_size": True}, "hidden_size: True is not a value like 768"),
    ({"num_hidden_layers": 0}, "num_hidden_layers: 0 is not at least 1"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers: 1000000000 is more than the 40 tensors that are there"),
    ({"num_attention_heads": 3}, "num_attention_heads: 3 do not divide hidden_size 8"),
    ({"hidden_act": "silu"}, "hidden_act: 'silu' is not 'gelu' or 'gelu_new'"),
    ({"attention_probs_dropout_prob": 0.1}, "attention_probs_dropout_prob: 0.1 is not 0.0"),
    ({"layer_norm_eps": -1.0}, "layer_norm_eps: -1.0 is not a number >= 0"),
    ({"patch_size": 3}, "patch_size: 3 does not divide image_size 8"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_FIELDS)
def test_bad_fields_are_one_line_with_file_and_field(write, changes, message):
    folder = write(checkpoint(), **changes)
    with pytest.raises(ValueError, match=message) as error:
        load_vit(folder)
    assert str(error.value).startswith(f"{folder / 'config.json'}: ")


def test_another_image_size_does_not_fit_the_positions(write):
    folder = write(checkpoint(), image_size=16)
    with pytest.raises(ValueError, match=r"position_embeddings' has shape \[1, 5, 8\], expected \[1, 17, 8\]"):
        load_vit(folder)


def test_missing_and_damaged_files(write, tmp_path):
    with pytest.raises(ValueError, match=r": has no config.json"):
        load_vit(tmp_path)
    folder = write(checkpoint())
    whole = (folder / "model.safetensors").read_bytes()
    for damaged in (b"", whole[:100], whole[:-1], b"\xff" * 8 + whole[8:], b"{" + whole[1:]):
        (folder / "model.safetensors").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model.safetensors: cannot be read as safetensors: "):
            load_vit(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r": has no model.safetensors$"):
        load_vit(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"has no model.safetensors; pickles and shards \(pytorch_model.bin\) are"):
        load_vit(folder)
    (folder / "model.safetensors").write_bytes(whole)
    for text, message in (("{", "as JSON"), ("[" * 10**5, "as JSON"), ("[1]", "holds list, expected an object")):
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_vit(folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_logits_are_those_of_transformers(tmp_path, qkv_bias):
    torch = pytest.importorskip("torch", reason="torch is not installed (extra: huggingface)")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: huggingface)")
    torch.manual_seed(0)
    kept = {name: CONFIG[name] for name in CONFIG if name not in ("model_type", "architectures", "id2label")}
    config = transformers.ViTConfig(**kept | {"qkv_bias": qkv_bias, "num_labels": 3, "initializer_range": 0.3})
    theirs = transformers.ViTForImageClassification(config).eval()
    theirs.save_pretrained(tmp_path, safe_serialization=True)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())).logits.numpy()
    model, variables = load_vit(tmp_path)
    np.testing.assert_allclose(model.apply(variables, IMAGES), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(oracle(load_file(tmp_path / "model.safetensors")), expected, rtol=1e-4, atol=1e-5)

"""GPT-2's folders: logits against GPT-2 written out in NumPy, the round trip, and what wrong folders lead to."""

import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_models import drawn, logits_of, texts

from sparsejax.models.gpt import GPT
from sparsejax.models.huggingface_gpt2 import gpt2_from, gpt2_to
from sparsejax.models.safetensors_folder import read_folder
from sparsejax.models.scanned import stack_blocks

CONFIG = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.2,
    "embd_pdrop": 0.2,
    "layer_norm_epsilon": 1e-4,
    "model_type": "gpt2",
    "n_embd": 12,
    "n_head": 3,
    "n_inner": 20,
    "n_layer": 2,
    "n_positions": 9,
    "resid_pdrop": 0.2,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "summary_type": "cls_index",
    "tie_word_embeddings": True,
    "vocab_size": 17,
}


def random_tensors(seed=0):
    """The tensors of CONFIG's model, named as its library names them."""
    rng = np.random.default_rng(seed)
    shapes = {"wte.weight": (17, 12), "wpe.weight": (9, 12), "ln_f.weight": (12,), "ln_f.bias": (12,)}
    for layer in range(2):
        for name, shape in (
            *(("ln_1", (12,)), ("ln_2", (12,)), ("attn.c_attn", (12, 36)), ("attn.c_proj", (12, 12))),
            *(("mlp.c_fc", (12, 20)), ("mlp.c_proj", (20, 12))),
        ):
            shapes[f"h.{layer}.{name}.weight"], shapes[f"h.{layer}.{name}.bias"] = shape, shape[-1:]
    return {f"transformer.{name}": rng.normal(size=shape).astype(np.float32) * 0.4 for name, shape in shapes.items()}


def write(folder, config=CONFIG, tensors=None):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(random_tensors() if tensors is None else tensors, folder / "model.safetensors")
    return folder


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def by_hand(tensors, tokens, heads=3, epsilon=1e-4):
    """Logits of one text by the published description of GPT-2, in float64."""
    t = {name.removeprefix("transformer."): tensor.astype(np.float64) for name, tensor in tensors.items()}

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
        return scaled * t[f"{name}.weight"] + t[f"{name}.bias"]

    def linear(x, name):
        return x @ t[f"{name}.weight"] + t[f"{name}.bias"]

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    x = t["wte.weight"][tokens] + t["wpe.weight"][: len(tokens)]
    for layer in range(2):
        block = f"h.{layer}"
        fused = np.split(linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn"), 3, axis=-1)
        mixed = []
        for q, k, v in zip(*(np.split(part, heads, axis=-1) for part in fused), strict=True):
            future = np.triu(np.full((len(tokens), len(tokens)), -np.inf), 1)
            mixed.append(softmax(q @ k.T / np.sqrt(q.shape[-1]) + future) @ v)
        x = x + linear(np.concatenate(mixed, axis=-1), f"{block}.attn.c_proj")
        hidden = gelu(linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc"))
        x = x + linear(hidden, f"{block}.mlp.c_proj")
    return norm(x, "ln_f") @ t["wte.weight"].T


def test_logits_are_gpt2s(tmp_path):
    model, params = gpt2_from(write(tmp_path / "gpt2"))
    assert (model.dropout, model.context, model.vocab, model.attention) == (0.2, 9, 17, "dense")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    tokens = texts(length=9, vocab=17)
    for row, text in zip(np.asarray(logits_of(model, params, tokens)), np.asarray(tokens), strict=True):
        np.testing.assert_allclose(row, by_hand(random_tensors(), text), rtol=1e-4, atol=1e-5)


def test_options_and_stacked_layers(tmp_path):
    folder = write(tmp_path / "gpt2")
    plain, params = gpt2_from(folder)
    model, stacked = gpt2_from(folder, scan=True, remat=True, dtype="bfloat16", dropout=0.0)
    assert model == plain.clone(scan=True, remat=True, dtype="bfloat16", dropout=0.0)
    jax.tree.map(np.testing.assert_array_equal, stacked, stack_blocks(params))
    with pytest.raises(ValueError, match=r"^width: is no option of gpt2_from; one of dropout, attention, dtype, remat"):
        gpt2_from(folder, width=4)
    with pytest.raises(ValueError, match=r"^dtype: unknown 'int8'"):
        gpt2_from(folder, dtype="int8")


@pytest.mark.parametrize("scan", [False, True])
def test_the_round_trip_is_exact(tmp_path, scan):
    model, params = gpt2_from(write(tmp_path / "old"), scan=scan)
    gpt2_to(tmp_path / "new", model, params)
    config, tensors = read_folder(tmp_path / "new")
    old = random_tensors()
    assert tensors.keys() == old.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, old[name], err_msg=name)
    assert config == {name: value for name, value in CONFIG.items() if name != "summary_type"} | {
        "add_cross_attention": False
    }
    again, same = gpt2_from(tmp_path / "new", scan=scan)
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, same, params)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"config.json", "model.safetensors"}


def test_padding_stays_here_and_zeros_are_kept(tmp_path):
    model = GPT(vocab=5, layers=1, width=4, heads=2, context=3, vocab_multiple=8)
    params = drawn(model)
    params["block_0"]["mlp"]["up"]["kernel"] = params["block_0"]["mlp"]["up"]["kernel"].at[1].set(0.0)
    gpt2_to(tmp_path, model, params)
    loaded, same = gpt2_from(tmp_path)
    assert loaded == model.clone(vocab_multiple=1)
    np.testing.assert_array_equal(same["token_embed"]["embedding"], params["token_embed"]["embedding"][:5])
    assert not np.asarray(same["block_0"]["mlp"]["up"]["kernel"][1]).any()


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("positions: 'rotary' has no place in GPT-2's format; 'learned' has", dict(positions="rotary")),
        ("kv_heads: 1 has no place", dict(kv_heads=1)),
        ("bias: False has no place", dict(bias=False)),
        ("tied: False has no place", dict(tied=False)),
        ("params: no leaf 'block_1/", dict(layers=2)),
        ("params: position_embed/embedding make 'wpe.weight' of shape .3, 4., expected .4, 4.", dict(context=4)),
    ],
)
def test_what_the_format_cannot_hold(tmp_path, words, options):
    model = GPT(vocab=5, layers=1, width=4, heads=2, context=3)
    params = drawn(model)
    with pytest.raises(ValueError, match=f"^{words}"):
        gpt2_to(tmp_path / "new", model.clone(**options), params)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match=r"^params: GPT-2's format has no place for leaf 'extra/x'"):
        gpt2_to(tmp_path / "new", model, params | {"extra": {"x": jnp.ones(1)}})
    assert not (tmp_path / "new").exists()


def test_other_names_for_the_same_tensors(tmp_path):
    """The bare model's names, an old file's causal masks, a copy of the tied head, and half precision."""
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in random_tensors().items()}
    buffers = {"h.0.attn.bias": np.ones((1, 1, 9, 9), np.uint8), "h.1.attn.masked_bias": np.full((), -1e4, np.float32)}
    head = {"lm_head.weight": tensors["wte.weight"].copy()}
    _, expected = gpt2_from(write(tmp_path / "whole"))
    _, params = gpt2_from(write(tmp_path / "bare", tensors=tensors | buffers | head))
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    for dtype in (np.float16, jnp.bfloat16):
        _, params = gpt2_from(write(tmp_path / "half", tensors={k: v.astype(dtype) for k, v in tensors.items()}))
        rounded = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype).astype(np.float32), expected)
        jax.tree.map(np.testing.assert_array_equal, params, rounded)


def changed(**fields):
    return {"config": CONFIG | fields}


def edited(name, change):
    tensors = random_tensors()
    value = change(tensors.pop(f"transformer.{name}", None))
    return {"tensors": tensors if value is None else tensors | {f"transformer.{name}": value}}


WRONG = {
    "config.json: model_type='bert' is not supported; only 'gpt2' is": changed(model_type="bert"),
    "config.json: scale_attn_weights=False is not supported": changed(scale_attn_weights=False),
    "config.json: scale_attn_by_inverse_layer_idx=True is not": changed(scale_attn_by_inverse_layer_idx=True),
    "config.json: add_cross_attention=True is not supported": changed(add_cross_attention=True),
    "config.json: tie_word_embeddings=False is not supported": changed(tie_word_embeddings=False),
    "config.json: activation_function='swish' is not supported; only gelu": changed(activation_function="swish"),
    r"config.json: activation_function=\['relu'\] is not supported": changed(activation_function=["relu"]),
    "config.json: n_layer='2' is not an integer >= 1": changed(n_layer="2"),
    "config.json: n_inner=0 is not an integer >= 1": changed(n_inner=0),
    "config.json: n_head=5 does not divide n_embd=12": changed(n_head=5),
    r"config.json: attn_pdrop=1 is not a number in \[0, 1\)": changed(attn_pdrop=1),
    "config.json: layer_norm_epsilon=None is not a number": changed(layer_norm_epsilon=None),
    "config.json: resid_pdrop=0.2, embd_pdrop=0.0, attn_pdrop=0.2 differ": changed(embd_pdrop=0.0),
    r"model.safetensors: tensor 'transformer.wte.weight' has shape \[17, 12\], expected \[18, 12\]": changed(
        vocab_size=18
    ),
    "model.safetensors: has no tensor 'transformer.h.2.attn.c_attn.weight'": changed(n_layer=3),
    "model.safetensors: unknown tensor 'transformer.h.1.attn.c_attn.bias' and 11 more": changed(n_layer=1),
    "model.safetensors: has no tensor 'transformer.ln_f.bias'": edited("ln_f.bias", lambda tensor: None),
    "model.safetensors: unknown tensor 'transformer.extra'$": edited("extra", lambda _: np.zeros(1, np.float32)),
    "model.safetensors: tensor 'transformer.ln_f.bias' holds int32, expected floats": edited(
        "ln_f.bias", lambda tensor: tensor.astype(np.int32)
    ),
    "model.safetensors: tensor 'lm_head.weight' differs from the embeddings": {
        "tensors": random_tensors() | {"lm_head.weight": np.zeros((17, 12), np.float32)}
    },
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_folders_are_one_line_that_names_the_file(tmp_path, words):
    folder = write(tmp_path / "gpt2", **WRONG[words])
    with pytest.raises(ValueError, match=f"/{words}") as caught:
        gpt2_from(folder)
    assert str(caught.value).startswith(str(folder)) and "\n" not in str(caught.value)


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(ValueError, match=r"none: is not a directory; it needs to hold config.json and"):
        read_folder(tmp_path / "none")
    folder = write(tmp_path / "gpt2")
    for text, words in (("{", "cannot be read as JSON"), ("[]", "holds list, expected an object"), ("\xff", "cannot")):
        (folder / "config.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=f"config.json: {words}"):
            read_folder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"gpt2: has no config.json"):
        read_folder(folder)
    write(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"gpt2: has no model.safetensors"):
        read_folder(folder)


def test_fuzzed_tensors_give_tensors_or_one_line(tmp_path):
    """Cuts and flips, most in the header: what comes back is a dict of arrays, or a ValueError that names the file."""
    folder = write(tmp_path / "gpt2")
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    rng, raised = np.random.default_rng(0), 0
    for round_ in range(300):
        data = bytearray(whole)
        place = int(rng.integers(len(whole) if round_ % 4 == 0 else header))
        if round_ % 3:
            data[place] ^= 1 << rng.integers(8)
        else:
            del data[place : place + int(rng.integers(1, 50))]
        path.write_bytes(data)
        try:
            _, tensors = read_folder(folder)
        except ValueError as error:
            raised += 1
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            assert all(isinstance(tensor, np.ndarray) for tensor in tensors.values())
    assert raised > 150


def test_logits_equal_those_of_transformers(tmp_path):
    torch = pytest.importorskip("torch", reason="torch, of the extra huggingface, is not installed")
    transformers = pytest.importorskip(
        "transformers", reason="transformers, of the extra huggingface, is not installed"
    )
    fields = {name: value for name, value in CONFIG.items() if name not in ("architectures", "model_type")}
    torch.manual_seed(0)
    peer = transformers.GPT2LMHeadModel(transformers.GPT2Config(**fields)).eval()
    peer.save_pretrained(tmp_path / "theirs")
    tokens = texts(length=9, vocab=17)
    with torch.no_grad():
        expected = peer(torch.tensor(np.asarray(tokens), dtype=torch.long)).logits.numpy()
    model, params = gpt2_from(tmp_path / "theirs")
    np.testing.assert_allclose(logits_of(model, params, tokens), expected, rtol=1e-4, atol=1e-5)
    gpt2_to(tmp_path / "ours", model, params)
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours")
    for name, tensor in peer.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name].numpy(), tensor.numpy(), err_msg=name)
    assert (
        load_file(tmp_path / "ours/model.safetensors").keys() == load_file(tmp_path / "theirs/model.safetensors").keys()
    )

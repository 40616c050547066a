"""Texts as integers: by character, byte, BPE, from token files; windows over them; what damaged files lead to."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer

from sparsejax.data import bpe, stdlib, text, tokens
from sparsejax.data.bpe import from_bpe, pieces
from sparsejax.data.corpus import from_characters
from sparsejax.data.stdlib import source_files, source_text
from sparsejax.data.windows import covering_windows, cut_windows, window_starts, windows_per_epoch

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("SPARSEJAX_DATA", ROOT.parent / "shared" / "data"))
VERSE = "Ein Möwchen ruft: «Füße!» – und\nschweigt, 𝄞 tagelang.\n" * 4


def test_characters_are_numbered_by_code_point(tmp_path):
    (tmp_path / "verse.txt").write_text(VERSE, encoding="utf-8")
    corpus = text(str(tmp_path))
    known = sorted(set(VERSE))
    whole = [known.index(char) for char in VERSE]
    size = len(VERSE) * 9 // 10
    assert corpus.vocab == len(known) and corpus.unit == "character" and corpus.skipped == 0
    assert corpus.train.tolist() == whole[:size] and corpus.test.tolist() == whole[size:]
    assert corpus.decode(corpus.encode("Füße 𝄞")) == "Füße 𝄞" and corpus.encode("Füße").dtype == np.int32
    assert corpus.decode(corpus.train) == VERSE[:size]


def test_unknown_characters_and_tokens_are_named(tmp_path):
    path = tmp_path / "verse.txt"
    path.write_text(VERSE, encoding="utf-8")
    corpus = text(str(path))
    with pytest.raises(
        ValueError, match=rf"character 'X' \(U\+0058\) at 2 is not among the {corpus.vocab} of .*verse.t"
    ):
        corpus.encode("EiXX")
    with pytest.raises(ValueError, match=r"character .* \(U\+DCFF\) at 0 is not among"):
        corpus.encode("\udcff")  # how an argument that is not UTF-8 arrives
    for wrong in (-1, corpus.vocab):
        with pytest.raises(ValueError, match=rf"token {wrong} at 1 is not in 0..{corpus.vocab - 1}"):
            corpus.decode([0, wrong])


def test_bytes_take_any_file(tmp_path):
    data = bytes(range(256)) * 2
    (tmp_path / "any").write_bytes(data)
    corpus = text(str(tmp_path / "any"), unit="byte", split=0.5)
    assert corpus.vocab == 256 and corpus.train.tobytes() == data[:256] and corpus.test.tobytes() == data[256:]
    assert corpus.encode("é!").tolist() == [0xC3, 0xA9, 33] and corpus.decode([0xC3, 0xA9, 0xFF]) == "é�"
    assert text(str(tmp_path / "any"), unit="byte", limit=20).train.tobytes() == data[:18]
    with pytest.raises(ValueError, match=r"any: byte 128 \(0x80\) is not UTF-8"):
        text(str(tmp_path / "any"))
    skipped = text(str(tmp_path / "any"), on_error="skip")
    assert skipped.skipped == 256 and skipped.vocab == 128


def test_tinyshakespeare():
    path = SHARED / "tinyshakespeare.txt"
    if not path.is_file():
        pytest.skip(f"no tinyshakespeare.txt in {SHARED} (set SPARSEJAX_DATA)")
    corpus = text(str(path))
    assert (corpus.vocab, len(corpus.train), len(corpus.test)) == (65, 1003854, 111540)
    assert corpus.train.dtype == np.uint8 and corpus.decode(corpus.train[:14]) == "First Citizen:"


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda f: text(""), "^data_dir: is empty; text needs"),
        (lambda f: bpe(str(f / "none")), "^data_dir: .* is neither a file nor a directory; bpe needs"),
        (lambda f: text(str(f)), r"has 0 \*.txt files"),
        (lambda f: text(str(f / "one"), unit="word"), "unit: 'word' is not one of character, byte"),
        (lambda f: text(str(f / "one"), split=1), r"split: 1 is not a number in \(0, 1\)"),
        (lambda f: text(str(f / "one")), "one: has 1 characters, too few to split at 0.9"),
        (lambda f: text(str(f / "one"), limit=2), r"limit: 2 is not in 0\.\.1"),
        (lambda f: bpe(str(f / "one"), vocab=255), r"vocab: 255 is not in 256\.\."),
        (lambda f: stdlib(unit="character"), "unit: 'character' is not one of byte, bpe"),
    ],
)
def test_wrong_options_are_named(tmp_path, make, words):
    (tmp_path / "one").write_text("x")
    with pytest.raises(ValueError, match=words):
        make(tmp_path)


RHYME = "the cat sat on the mat, the hat\n\n  and   the bat 𝄞 ate that\tmouse's house; it'll do\n" * 30


def test_bpe_gives_the_text_back_and_knows_every_text(tmp_path):
    path = tmp_path / "rhyme.txt"
    path.write_text(RHYME, encoding="utf-8")
    corpus = bpe(str(path), vocab=290)
    assert corpus.vocab == 290 and corpus.unit == "bpe" and corpus.train.max() < 290
    size = int(len(RHYME) * 0.9)
    assert corpus.decode(corpus.train) == RHYME[:size] and corpus.decode(corpus.test) == RHYME[size:]
    assert len(corpus.train) < size / 2
    for other in ("zebra Ünïcode 漢字", "", "  \n "):
        assert corpus.decode(corpus.encode(other)) == other
    again = Tokenizer.from_str(corpus.tokenizer)
    assert again.encode(RHYME[:200]).ids == corpus.encode(RHYME[:200]).tolist()
    with pytest.raises(ValueError, match="token 290 at 0 is not in"):
        corpus.decode([290])


def test_bpe_is_trained_on_the_training_part_alone():
    tail = "q" * 3 + "zx" * 100
    a, b = (from_bpe(RHYME + tail[:n] + "." * (200 - n), "rhyme", 400, 0.9) for n in (0, 200))
    assert a.tokenizer == b.tokenizer and not np.array_equal(a.test[-50:], b.test[-50:])


def test_a_text_with_few_pairs_has_fewer_tokens():
    corpus = from_bpe("aaaa" * 20, "short", 4096)
    assert 256 < corpus.vocab < 270 and corpus.decode(corpus.encode("aaab")) == "aaab"


def test_pieces_encode_to_what_the_whole_encodes_to():
    rng = np.random.default_rng(0)
    letters = list("ab \n\t'x1!é𝄞  ")
    whole = from_bpe("".join(rng.choice(letters, 3000)), "noise", 280)
    tokenizer = Tokenizer.from_str(whole.tokenizer)
    for size in (1, 7, 100):
        some = "".join(rng.choice(letters, 500))
        parts = pieces(some, size)
        assert "".join(parts) == some and len(parts) > 3
        assert [i for part in parts for i in tokenizer.encode(part).ids] == tokenizer.encode(some).ids


DIGEST = """
import hashlib
from sparsejax.data.bpe import from_bpe
from sparsejax.data.stdlib import source_text
corpus = from_bpe(source_text()[0][:200_000], "stdlib", 700)
print(hashlib.sha256(corpus.tokenizer.encode() + corpus.train.tobytes() + corpus.test.tobytes()).hexdigest())
"""


def test_bpe_and_stdlib_are_the_same_in_another_process():
    corpus = stdlib(unit="bpe", limit=200_000, vocab=700)
    here = hashlib.sha256(corpus.tokenizer.encode() + corpus.train.tobytes() + corpus.test.tobytes()).hexdigest()
    environment = os.environ | {"PYTHONHASHSEED": "77", "RAYON_NUM_THREADS": "3", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    assert run.stdout.strip() == here


def test_stdlib_is_the_source_without_tests():
    corpus = stdlib()
    content, skipped = source_text()
    assert corpus.vocab == 256 and len(corpus.train) > 3_000_000 and skipped == corpus.skipped
    whole = np.concatenate([corpus.train, corpus.test]).tobytes()
    assert whole == content.encode() and len(corpus.train) == len(whole) * 9 // 10
    assert b"class JSONDecoder" in whole and Path(json.__file__).read_bytes() in whole
    root = Path(os.__file__).parent
    names = [path.relative_to(root).as_posix() for path in source_files(root)]
    assert "os.py" in names and len(set(names)) == len(names) and names != sorted(names)
    assert not any("site-packages" in name or name.startswith("test/") for name in names)


def write_tokens(folder, train, test, kind="<u2", **meta):
    np.asarray(train, kind).tofile(folder / "train.bin")
    np.asarray(test, kind).tofile(folder / "val.bin")
    if meta:
        (folder / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_token_files_are_mapped(tmp_path, dtype):
    train, test = np.arange(50) * 7 % 40, np.arange(9)
    write_tokens(tmp_path, train, test, "<u2" if dtype == "uint16" else "<u4")
    corpus = tokens(str(tmp_path), dtype=dtype)
    assert isinstance(corpus.train, np.memmap) and corpus.train.dtype.name == dtype
    assert corpus.train.tolist() == train.tolist() and corpus.test.tolist() == test.tolist()
    assert corpus.vocab == 40 and corpus.unit == "token"
    assert corpus.decode(corpus.encode(" 3 39\n0")) == "3 39 0"
    for wrong in ("3 x", "40", "-1", "9" * 30):
        with pytest.raises(ValueError, match=r"without tokenizer\.json, text is tokens written as numbers: "):
            corpus.encode(wrong)


def test_meta_and_tokenizer_beside_the_files(tmp_path):
    write_tokens(tmp_path, [1, 2, 3], [4], "<u4", vocab_size=500, dtype="uint32", other=[1])
    assert tokens(str(tmp_path)).vocab == 500 and tokens(str(tmp_path), vocab=9).vocab == 9
    trained = from_bpe(RHYME, "rhyme", 290)
    (tmp_path / "tokenizer.json").write_text(trained.tokenizer)
    corpus = tokens(str(tmp_path))
    assert corpus.vocab == 500 and corpus.unit == "bpe" and corpus.train.tolist() == [1, 2, 3]
    assert corpus.decode(corpus.encode("the cat")) == "the cat"
    (tmp_path / "meta.json").write_text('{"dtype": "uint32"}')
    assert tokens(str(tmp_path)).vocab == 290


put = lambda name, data: lambda folder: (folder / name).write_bytes(data)
DAMAGED = {
    "above": (
        "train.bin",
        lambda folder: write_tokens(folder, [1, 2, 9, 3], [1], vocab_size=9),
        r"token 2 \(byte 4\): 9 is not in 0\.\.8",
    ),
    "half": ("val.bin", put("val.bin", b"\1\0\2"), r"token 1 \(byte 2\): the file ends after 1 of its 2 bytes"),
    "empty": ("val.bin", put("val.bin", b""), "holds no tokens"),
    "meta": ("meta.json", put("meta.json", b"{"), "cannot be read as JSON"),
    "list": ("meta.json", put("meta.json", b"[1]"), "is not an object with vocab_size"),
    "size": ("meta.json", put("meta.json", b'{"vocab_size": "x"}'), "vocab_size: 'x' is not an integer"),
    "kind": ("meta.json", put("meta.json", b'{"dtype": "int8"}'), "dtype: 'int8' is not one of"),
    "deep": ("meta.json", put("meta.json", b"[" * 100_000), "cannot be read as JSON"),
    "words": ("tokenizer.json", put("tokenizer.json", b"{}"), "is not a tokenizer"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_token_files_are_one_line_that_names_the_file(tmp_path, case):
    name, change, words = DAMAGED[case]
    write_tokens(tmp_path, [1, 2, 3], [1, 2])
    change(tmp_path)
    with pytest.raises(ValueError, match=words) as caught:
        tokens(str(tmp_path))
    assert str(caught.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(caught.value)


def test_missing_token_files_and_wrong_options_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"^data_dir: is empty; tokens needs"):
        tokens("")
    with pytest.raises(ValueError, match=r"^data_dir: '.*' has no train.bin"):
        tokens(str(tmp_path))
    with pytest.raises(ValueError, match="dtype: 'float' is not one of uint16, uint32"):
        tokens(str(tmp_path), dtype="float")


def test_random_windows_are_a_function_of_seed_and_epoch():
    starts = window_starts([5, 6], 2, 1000, 16, 4)
    assert starts.shape == (2, 15, 4) and starts.dtype == np.int32
    np.testing.assert_array_equal(starts[1], window_starts([6], 2, 1000, 16, 4)[0])
    assert (starts[0] != starts[1]).any() and (starts != window_starts([5, 6], 3, 1000, 16, 4)).any()
    # published runs depend on these numbers
    assert window_starts([0], 0, 1000, 16, 4)[0, 0].tolist() == FIRST_WINDOWS
    assert starts.min() >= 0 and starts.max() <= 1000 - 17
    many = window_starts([0], 0, 40, 3, 1)
    assert set(np.unique([window_starts([s], 0, 40, 3, 1) for s in range(100)])) == set(range(37)) and many.size == 13


FIRST_WINDOWS = [34, 11, 602, 237]


@pytest.mark.parametrize("length, context", [(101, 10), (100, 10), (7, 6), (64, 1)])
def test_consecutive_windows_predict_no_token_twice(length, context):
    offsets = set()
    for epoch in range(20):
        starts = window_starts([3], epoch, length, context, 1, order="consecutive").ravel()
        assert len(starts) == (length - 1) // context and starts.min() >= 0 and starts.max() + context < length
        targets = (starts[:, None] + 1 + np.arange(context)).ravel()
        assert len(set(targets.tolist())) == targets.size
        offsets.add(int(starts.min()))
    assert offsets == set(range((length - 1) % context + 1)) or len(offsets) > 3


@pytest.mark.parametrize("length, context, batch", [(8, 3, 2), (7, 3, 2), (7, 6, 4), (100, 7, 3), (101, 1, 100)])
def test_covering_windows_predict_every_token_once(length, context, batch):
    text = np.arange(length)
    starts, real = covering_windows(length, context, batch)
    assert starts.shape == real.shape[:2] and starts.shape[1] == batch and real.shape[2] == context
    x, y = cut_windows(text, starts, context)
    assert sorted(y[real].tolist()) == list(range(1, length))
    assert (y == x + 1).all()


def test_windows_are_cut_alike_on_the_device():
    text = np.random.default_rng(0).integers(0, 60, 50).astype(np.uint8)
    starts = window_starts([0, 1], 0, 50, 6, 2)
    for got, expected in zip(cut_windows(jnp.asarray(text), jnp.asarray(starts), 6), cut_windows(text, starts, 6)):
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == np.uint8
    x, y = cut_windows(text, starts, 6)
    assert x[1, 2, 1].tolist() == text[starts[1, 2, 1] :][:6].tolist() and y[0, 0, 0, -1] == text[starts[0, 0, 0] + 6]


def test_windows_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="context: 10 is not below the 10 tokens of the text"):
        windows_per_epoch(10, 10)
    with pytest.raises(ValueError, match=r"batch_size: 4 is not in 1\.\.3"):
        window_starts([0], 0, 10, 3, 4)
    with pytest.raises(ValueError, match="windows: 'all' is not one of random, consecutive"):
        window_starts([0], 0, 10, 3, 1, order="all")


def test_a_text_of_one_character():
    corpus = from_characters("aaaa", "a", 0.5)
    assert corpus.vocab == 1 and corpus.train.tolist() == [0, 0]

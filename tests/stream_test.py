"""Streams: the batches after a restore are those that followed the state, here and in a fresh process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import data_files
import numpy as np
import pytest

from sparsejax.data import Batches, image_folder, token_stream, tokens
from sparsejax.data.corpus import Corpus
from sparsejax.data.windows import cut_windows, window_starts

ROOT = Path(__file__).resolve().parent.parent


def write_tokens(folder, train=997, test=50, above=None):
    rng = np.random.default_rng(0)
    for name, length in (("train", train), ("val", test)):
        part = rng.integers(0, 300, length).astype("<u2")
        if above is not None:
            part[above] = 300
        part.tofile(folder / f"{name}.bin")
    (folder / "meta.json").write_text('{"vocab_size": 300}')


def stream_of(kind, folder):
    """A stream of images or of tokens, with one batch size and seed."""
    if kind == "images":
        return image_folder(str(folder), image_size=6, workers=0).train(3, 5)
    return token_stream(tokens(str(folder)), 16, order=kind).train(4, 5)


def write(kind, folder):
    if kind == "images":
        rng = np.random.default_rng(0)
        for part in ("train", "val"):
            for path in data_files.write_images(folder / part, count=5, size=(9, 9)):
                pixels = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
                data_files.Image.fromarray(pixels).save(folder / part / path)
    else:
        write_tokens(folder)


def equal(batches, others):
    assert len(batches) == len(others)
    for one, other in zip(batches, others):
        for a, b in zip(one, other):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", ["images", "random", "consecutive"])
def test_a_position_is_taken_up_exactly(tmp_path, kind):
    write(kind, tmp_path)
    batches = stream_of(kind, tmp_path)
    first = [next(batches) for _ in range(4)]
    state = json.loads(json.dumps(batches.state()))
    rest = [next(batches) for _ in range(20)]  # over the ends of epochs
    again = stream_of(kind, tmp_path)
    again.restore(state)
    assert again.position == 4
    equal([next(again) for _ in range(20)], rest)
    batches.restore(state)  # back, in the same iterator
    equal([next(batches) for _ in range(2)], rest[:2])
    batches.restore(stream_of(kind, tmp_path).state())
    equal([next(batches) for _ in range(4)], first)
    batches.close()
    again.close()


FRESH = """
import json, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from stream_test import stream_of

if __name__ == "__main__":
    batches = stream_of(sys.argv[2], sys.argv[3])
    batches.restore(json.loads(sys.argv[4]))
    np.savez(sys.argv[5], *[array for _ in range(3) for array in next(batches)])
    batches.close()
"""


@pytest.mark.parametrize("kind", ["images", "random"])
def test_a_position_is_taken_up_in_a_fresh_process(tmp_path, kind):
    write(kind, tmp_path)
    batches = stream_of(kind, tmp_path)
    for _ in range(4):
        next(batches)
    state = json.dumps(batches.state())
    expected = [array for _ in range(3) for array in next(batches)]
    batches.close()
    command = [sys.executable, "-c", FRESH, str(ROOT / "tests"), kind, str(tmp_path), state, str(tmp_path / "got.npz")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    with np.load(tmp_path / "got.npz") as got:
        equal([[got[f"arr_{i}"] for i in range(6)]], [expected])


def test_a_state_of_something_else_is_refused(tmp_path):
    write("random", tmp_path)
    stream = token_stream(tokens(str(tmp_path)), 16)
    batches = stream.train(4, 5)
    for other, words in [
        (stream.train(4, 6), "state: seed was 6 there and is 5 here"),
        (stream.train(5, 5), "state: batch_size was 5 there and is 4 here"),
        (token_stream(tokens(str(tmp_path)), 15).train(4, 5), "state: context was 15 there and is 16 here"),
        (stream.test(4), "state: order was None there and is 0 here"),
    ]:
        with pytest.raises(ValueError, match=words):
            batches.restore(other.state())
    for state in ({}, None, {"position": -1, "skipped": 0, "named": {}}, {"position": "1", "skipped": 0, "named": {}}):
        with pytest.raises(ValueError, match="state"):
            batches.restore(state)
    assert batches.position == 0


@pytest.mark.parametrize("order", ["random", "consecutive"])
def test_token_batches_are_the_windows(tmp_path, order):
    write("random", tmp_path)
    corpus = tokens(str(tmp_path))
    stream = token_stream(corpus, 16, order=order)
    assert (stream.train_size, stream.test_size, stream.classes) == (62, 49, 300) and stream.example.shape == (16,)
    batches = stream.train(4, 9)
    for epoch in range(2):
        for starts in window_starts([9], epoch, 997, 16, 4, order=order)[0]:
            x, y = next(batches)
            expected_x, expected_y = cut_windows(np.asarray(corpus.train), starts, 16)
            np.testing.assert_array_equal(x, expected_x)
            np.testing.assert_array_equal(y, expected_y)
            assert x.dtype == y.dtype == np.int32 and type(x) is np.ndarray
    batches.close()


def test_token_evaluation_covers_every_token_once(tmp_path):
    write("random", tmp_path)
    stream = token_stream(tokens(str(tmp_path)), 16)
    seen = np.concatenate([y[real] for _, y, real in stream.test(3)])
    expected = np.fromfile(tmp_path / "val.bin", "<u2")[1:]
    assert len(seen) == stream.test_size == len(expected)
    np.testing.assert_array_equal(np.sort(seen), np.sort(expected))


def test_a_token_above_the_vocabulary_in_a_file_too_large_to_look_through(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["sparsejax.data.tokens"], "_SCANNED", 10)
    write_tokens(tmp_path, above=20)
    stream = token_stream(tokens(str(tmp_path)), 16)
    batches = stream.train(40, 0)
    with pytest.raises(ValueError, match=r"train.bin: token 20 \(byte 40\): 300 is not in 0\.\.299"):
        for _ in range(100):
            next(batches)
    with pytest.raises(ValueError, match=r"val.bin: token 20 \(byte 40\): 300 is not in 0\.\.299"):
        list(stream.test(2))
    (tmp_path / "meta.json").unlink()
    with pytest.raises(ValueError, match=r"vocab: is not given, .* has no meta.json, and the files are too large"):
        tokens(str(tmp_path))


def test_a_stream_of_a_text_in_memory():
    corpus = Corpus(np.arange(90, dtype=np.uint8), np.arange(30, dtype=np.uint8), 90, None, None, "byte")
    batches = token_stream(corpus, 8).train(2, 0)
    x, y = next(batches)
    np.testing.assert_array_equal(y, x + 1)
    batches.close()
    bad = token_stream(corpus._replace(vocab=9), 8).test(2)
    with pytest.raises(ValueError, match=r"tokens: token 9 \(byte 9\): 9 is not in 0\.\.8"):
        list(bad)


def test_batches_end_and_close():
    batches = Batches(lambda number: ((number,), number % 2), named={"size": 3}, count=3)
    assert list(batches) == [(0,), (1,), (2,)] and batches.skipped == 1 and batches.position == 3
    assert list(batches) == []
    batches.restore({"position": 1, "skipped": 0, "named": {"size": 3}})
    batches.close()
    assert list(batches) == [(1,), (2,)] and batches.skipped == 1
    with pytest.raises(ValueError, match=r"state.position: 4 is not in 0\.\.3"):
        batches.restore({"position": 4, "skipped": 0, "named": {"size": 3}})

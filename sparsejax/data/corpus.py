"""What a text is to a language model: one row of integers to train on, one to test on, and the way back to text."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sparsejax.data.checks import check_fraction


class Corpus(NamedTuple):
    """A text as integers.

    Attributes:
      train: unsigned integers (N,) in [0, vocab), in memory or memory-mapped.
      test: the same, (M,).
      vocab: how many different tokens there are.
      encode: text -> int32 (length,); ValueError that names the first character which has no token.
      decode: integers -> text.
      unit: what a token is: "character", "byte", "bpe" or "token" (of a file whose tokenizer is not known).
      tokenizer: of bpe the trained tokenizer as JSON, in the format of `tokenizers`; else empty.
      skipped: damaged bytes or files that were left out under on_error="skip".
      streamed: training reads windows where the text lies, rather than putting all of it on the device.
    """

    train: np.ndarray
    test: np.ndarray
    vocab: int
    encode: Callable[[str], np.ndarray]
    decode: Callable[[Sequence[int]], str]
    unit: str = "token"
    tokenizer: str = ""
    skipped: int = 0
    streamed: bool = False


def from_characters(text: str, name: str, fraction: float = 0.9) -> Corpus:
    """The corpus of a text by character; the vocabulary is what occurs in it, sorted by code point.

    Args:
      text: training part, then test part.
      name: of the text, for messages.
      fraction: share of the characters to train on.

    Example:
      >>> corpus = from_characters("hello world", "greeting", 0.5)
      >>> corpus.vocab, corpus.train.tolist(), corpus.decode(corpus.encode("lol"))
      (8, [3, 2, 4, 4, 5], 'lol')
    """
    points = _points(text)
    known = np.unique(points)
    tokens: np.ndarray = np.searchsorted(known, points).astype(_smallest(len(known)))

    def encode(text: str) -> np.ndarray:
        given = _points(text)
        found = np.minimum(np.searchsorted(known, given), len(known) - 1)
        missing = np.flatnonzero(known[found] != given)
        if len(missing):
            at = int(missing[0])
            point = int(given[at])
            raise ValueError(
                f"character {chr(point)!r} (U+{point:04X}) at {at} is not among the {len(known)} of {name}"
            )
        return found.astype(np.int32)

    def decode(tokens: Sequence[int]) -> str:
        return "".join(map(chr, known[check_tokens(tokens, len(known))]))

    train, test = cut(tokens, fraction, name)
    return Corpus(train, test, len(known), encode, decode, "character")


def from_bytes(data: bytes, name: str, fraction: float = 0.9) -> Corpus:
    """The corpus of a text by byte: 256 tokens, whatever the text.

    Example:
      >>> corpus = from_bytes(b"hello world", "greeting")
      >>> corpus.vocab, corpus.encode("é").tolist(), corpus.decode([195, 169])
      (256, [195, 169], 'é')
    """
    encode = lambda text: np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8).astype(np.int32)
    decode = lambda tokens: check_tokens(tokens, 256).astype(np.uint8).tobytes().decode("utf-8", "replace")
    train, test = cut(np.frombuffer(data, np.uint8), fraction, name)
    return Corpus(train, test, 256, encode, decode, "byte")


def cut(tokens, fraction: float, name: str) -> tuple:
    """The first `fraction` of a sequence, rounded down, and the rest; ValueError if one of them is empty."""
    size = int(len(tokens) * check_fraction("split", fraction))
    if not 0 < size < len(tokens):
        raise ValueError(f"{name}: has {len(tokens)} characters, too few to split at {fraction}")
    return tokens[:size], tokens[size:]


def check_tokens(tokens: Sequence[int], vocab: int) -> np.ndarray:
    """int64 (length,), if all are in the vocabulary; ValueError that names the first which is not."""
    array = np.asarray(tokens, np.int64).reshape(-1)
    wrong = np.flatnonzero((array < 0) | (array >= vocab))
    if len(wrong):
        raise ValueError(f"token {array[wrong[0]]} at {wrong[0]} is not in 0..{vocab - 1}")
    return array


def _points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _smallest(values: int) -> type:
    return np.uint8 if values <= 1 << 8 else np.uint16 if values <= 1 << 16 else np.uint32

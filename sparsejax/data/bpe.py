"""Byte-pair encoding trained on the text at hand: byte-level, so that every text has tokens."""

import functools
import re
from typing import Any

import numpy as np

from sparsejax.data.checks import check_integer
from sparsejax.data.corpus import Corpus, check_tokens, cut


def from_bpe(text: str, name: str, vocab: int, fraction: float = 0.9) -> Corpus:
    """The corpus of a text by a byte-level BPE that is trained on its training part alone.

    The same text and vocabulary give the same tokenizer, wherever it is trained.

    Args:
      text: training part, then test part.
      name: of the text, for messages.
      vocab: tokens: the 256 bytes and the merges; fewer, where the text has no more pairs to merge.
      fraction: share of the characters to train on.

    Example:
      >>> corpus = from_bpe("the cat and the hat and the bat, " * 9, "rhyme", 262)
      >>> corpus.vocab, corpus.decode(corpus.encode("the hut")), len(corpus.encode("the"))
      (262, 'the hut', 1)
    """
    check_integer("vocab", vocab, 256, 1 << 20)
    train_text, test_text = cut(text, fraction, name)
    trained, train, test = _tokens(train_text, test_text, vocab)
    return from_tokenizer(_load(trained))._replace(train=train, test=test)


def from_tokenizer(tokenizer: Any) -> Corpus:
    """A corpus without text: the vocabulary, encode and decode of a tokenizer of `tokenizers`."""
    vocab = tokenizer.get_vocab_size()
    encode = lambda text: np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
    decode = lambda tokens: tokenizer.decode(check_tokens(tokens, vocab).tolist(), skip_special_tokens=False)
    empty = np.zeros(0, np.uint16)
    return Corpus(empty, empty, vocab, encode, decode, "bpe", tokenizer.to_str())


@functools.lru_cache(maxsize=2)
def _tokens(train_text: str, test_text: str, vocab: int) -> tuple[str, np.ndarray, np.ndarray]:
    """The trained tokenizer and both parts in its tokens; kept, since every trial of a sweep asks for the same."""
    trained = _trained(train_text, vocab)
    train, test = (_encode(_load(trained), part) for part in (train_text, test_text))
    train.flags.writeable = test.flags.writeable = False
    return trained, train, test


def _trained(text: str, vocab: int) -> str:
    """A tokenizer trained on the text, as JSON."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(pieces(text), trainer)
    return tokenizer.to_str()


def _load(text: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(text)


def _encode(tokenizer: Any, text: str) -> np.ndarray:
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32
    return np.concatenate([np.asarray(piece.ids, dtype) for piece in tokenizer.encode_batch(pieces(text))])


def pieces(text: str, size: int = 1 << 16) -> list[str]:
    """The text in pieces that encode to what the whole encodes to, so that its parts are encoded side by side.

    No token of a byte-level BPE has a blank after something else, so a cut between the two parts nothing.

    Example:
      >>> pieces("one two three", 2)
      ['one', ' two', ' three']
    """
    out, start = [], 0
    boundary = re.compile(r"\S(?=\s)")
    while start < len(text):
        found = boundary.search(text, start + size)
        stop = found.end() if found else len(text)
        out.append(text[start:stop])
        start = stop
    return out

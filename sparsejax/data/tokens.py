"""Files of tokens, memory-mapped: train.bin and val.bin, uint16 or uint32, as nanoGPT writes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from sparsejax.data.bpe import from_tokenizer
from sparsejax.data.checks import check_choice, check_folder, check_integer
from sparsejax.data.corpus import Corpus, check_tokens

# Files up to this size are looked through when they are opened; of larger ones each batch is, see `token_stream`.
_SCANNED = 1 << 28
_PIECE = 1 << 24
_MOST = (1 << 31) - 1


def tokens(data_dir: str = "", *, dtype: str = "", vocab: int = 0, stream: bool = False) -> Corpus:
    """Token files train.bin and val.bin, uint16 or uint32, memory-mapped, as nanoGPT writes them (data_dir: theirs).

    Beside them may lie meta.json, {"vocab_size": 50257, "dtype": "uint16"}, and tokenizer.json of `tokenizers`, which
    gives text its tokens and tokens their text; without it, text is tokens written as numbers.

    Args:
      data_dir: the directory.
      dtype: "uint16" or "uint32", little-endian; empty: what meta.json says, or uint16.
      vocab: tokens; 0: what meta.json says, or tokenizer.json, or the largest token and one (files up to 256 MB).
      stream: training reads the windows of each step from the files, which then need not fit on the device; they are
        the same windows.

    Raises:
      ValueError: one line that names the field, or the file and the byte: no tokens, a part of a token at the end, a
        token above the vocabulary (in files up to 256 MB; a stream of batches finds it in larger ones).
    """
    if dtype:
        check_choice("dtype", dtype, ("uint16", "uint32"))
    check_integer("vocab", vocab, 0, _MOST)
    if not isinstance(stream, bool):
        raise ValueError(f"stream: {stream!r} is not true or false")
    folder = check_folder(data_dir, "tokens needs the directory of train.bin and val.bin")
    meta = _meta(folder / "meta.json")
    kind = np.dtype(dtype or meta.get("dtype", "uint16")).newbyteorder("<")
    paths = (folder / "train.bin", folder / "val.bin")
    train, test = (_mapped(path, kind) for path in paths)
    words = _words(folder / "tokenizer.json")
    vocab = vocab or meta.get("vocab_size", 0) or (words.vocab if words else 0)
    largest = [_largest(path, part, vocab or _MOST) for path, part in zip(paths, (train, test))]
    if not vocab and None in largest:
        raise ValueError(f"vocab: is not given, {folder} has no meta.json, and the files are too large to look through")
    vocab = vocab or 1 + max(value for value in largest if value is not None)
    if words:
        return words._replace(train=train, test=test, vocab=vocab, streamed=stream)
    encode = lambda text: _numbers(text, vocab)
    return Corpus(train, test, vocab, encode, _as_numbers, "token", streamed=stream)


def check_range(path: str | Path, values: np.ndarray, first: int, vocab: int) -> None:
    """ValueError that names file, token and byte, if one of `values`, read from token `first` on, is too large."""
    if len(values) and int(values.max()) >= vocab:
        at = int((values >= vocab).argmax())
        byte = (first + at) * values.dtype.itemsize
        raise ValueError(f"{path}: token {first + at} (byte {byte}): {values[at]} is not in 0..{vocab - 1}")


def _mapped(path: Path, kind: np.dtype) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"data_dir: {str(path.parent)!r} has no {path.name}")
    try:
        whole, rest = divmod(path.stat().st_size, kind.itemsize)
        if rest:
            raise ValueError(
                f"{path}: token {whole} (byte {whole * kind.itemsize}): the file ends after {rest} of its "
                f"{kind.itemsize} bytes"
            )
        if not whole:
            raise ValueError(f"{path}: holds no tokens")
        return np.memmap(path, kind, "r")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def _largest(path: Path, values: np.ndarray, vocab: int) -> int | None:
    """The largest token, all of them below `vocab`; None of a file too large to look through."""
    if values.nbytes > _SCANNED:
        return None
    largest = 0
    for first in range(0, len(values), _PIECE):
        piece = np.asarray(values[first : first + _PIECE])
        check_range(path, piece, first, vocab)
        largest = max(largest, int(piece.max()))
    return largest


def _meta(path: Path) -> dict[str, Any]:
    """vocab_size and dtype, as far as the file is there and says them."""
    if not path.is_file():
        return {}
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as JSON: {' '.join(str(error).split())}") from error
    if not isinstance(meta, dict):
        raise ValueError(f"{path}: is not an object with vocab_size")
    try:
        known: dict[str, Any] = {}
        if "vocab_size" in meta:
            known["vocab_size"] = check_integer("vocab_size", meta["vocab_size"], 1, _MOST)
        if "dtype" in meta:
            known["dtype"] = check_choice("dtype", meta["dtype"], ("uint16", "uint32"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return known


def _words(path: Path) -> Corpus | None:
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        return from_tokenizer(Tokenizer.from_str(path.read_text(encoding="utf-8")))
    except Exception as error:  # `tokenizers` raises Exception itself
        raise ValueError(f"{path}: is not a tokenizer: {' '.join(str(error).split())}") from error


def _numbers(text: str, vocab: int) -> np.ndarray:
    try:
        return check_tokens([int(word) for word in text.split()], vocab).astype(np.int32)
    except (ValueError, OverflowError) as error:
        words = "without tokenizer.json, text is tokens written as numbers"
        raise ValueError(f"{words}: {error}") from error


def _as_numbers(values) -> str:
    return " ".join(str(int(value)) for value in values)

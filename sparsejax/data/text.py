"""Plain text files, by character, by byte, or by a BPE trained on them."""

from pathlib import Path

from sparsejax.data.bpe import from_bpe
from sparsejax.data.checks import check_choice, check_fraction, check_integer, check_on_error
from sparsejax.data.corpus import Corpus, from_bytes, from_characters


def text(
    data_dir: str = "", *, unit: str = "character", split: float = 0.9, limit: int = 0, on_error: str = "raise"
) -> Corpus:
    """A plain text file by character or by byte, first 90 % to train on, the rest to test on (data_dir: the file).

    Args:
      data_dir: a file in UTF-8, or a directory with one *.txt file.
      unit: "character" (the vocabulary is what occurs in the file) or "byte" (256 tokens, any file).
      split: share to train on.
      limit: characters or bytes to use, from the start; 0: all.
      on_error: "raise", or "skip": leave out and count bytes that are not UTF-8.

    Raises:
      ValueError: one line that names the field, or the file and the byte.
    """
    check_choice("unit", unit, ("character", "byte"))
    check_fraction("split", split)
    path = _path(data_dir, "text")
    if unit == "byte":
        return from_bytes(_limited(_read(path), limit), str(path), split)
    content, skipped = _decoded(path, check_on_error(on_error))
    return from_characters(_limited(content, limit), str(path), split)._replace(skipped=skipped)


def bpe(
    data_dir: str = "", *, vocab: int = 1024, split: float = 0.9, limit: int = 0, on_error: str = "raise"
) -> Corpus:
    """A plain text file by a byte-level BPE trained on its first 90 % (data_dir: the file).

    Args:
      data_dir: a file in UTF-8, or a directory with one *.txt file.
      vocab: tokens, 256 bytes included; fewer, where the text has no more pairs to merge.
      split: share of the characters to train on.
      limit: characters to use, from the start; 0: all.
      on_error: "raise", or "skip": leave out and count bytes that are not UTF-8.

    Raises:
      ValueError: one line that names the field, or the file and the byte.

    Source: R. Sennrich, B. Haddow, A. Birch, Neural machine translation of rare words with subword units, 2016.
    """
    check_integer("vocab", vocab, 256, 1 << 20)
    check_fraction("split", split)
    path = _path(data_dir, "bpe")
    content, skipped = _decoded(path, check_on_error(on_error))
    return from_bpe(_limited(content, limit), str(path), vocab, split)._replace(skipped=skipped)


def _path(data_dir: str, name: str) -> Path:
    if not data_dir:
        raise ValueError(f"data_dir: is empty; {name} needs a text file, or a directory with one *.txt file")
    path = Path(data_dir)
    if path.is_dir():
        found = sorted(path.glob("*.txt"))
        if len(found) != 1:
            raise ValueError(f"data_dir: {str(data_dir)!r} has {len(found)} *.txt files; name the file itself")
        path = found[0]
    if not path.is_file():
        raise ValueError(f"data_dir: {str(path)!r} is neither a file nor a directory; {name} needs a text file")
    return path


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def _decoded(path: Path, skip: bool) -> tuple[str, int]:
    """The text of a file, and how many of its bytes were left out."""
    data = _read(path)
    try:
        return data.decode("utf-8"), 0
    except UnicodeDecodeError as error:
        if not skip:
            raise ValueError(f"{path}: byte {error.start} (0x{data[error.start]:02x}) is not UTF-8") from None
        content = data.decode("utf-8", "ignore")
        return content, len(data) - len(content.encode("utf-8"))


def _limited(content, limit: int):
    check_integer("limit", limit, 0, len(content))
    return content[:limit] if limit else content

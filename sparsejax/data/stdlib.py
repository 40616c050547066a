"""The source of Python's standard library: a text that is there wherever Python is."""

import functools
import hashlib
import sysconfig
from pathlib import Path

from sparsejax.data.bpe import from_bpe
from sparsejax.data.checks import check_choice, check_fraction, check_integer
from sparsejax.data.corpus import Corpus, from_bytes

_LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "lib2to3"}


def stdlib(data_dir: str = "", *, unit: str = "byte", vocab: int = 1024, split: float = 0.9, limit: int = 0) -> Corpus:
    """The source of Python's standard library, about 11 MB, by byte or BPE (nothing to download).

    Its files come in an order by a hash of their names, which is the same everywhere and mixes the packages, so that
    the last part is like the first. Another Python has other files.

    Args:
      data_dir: unused, the files are those of the Python that runs this.
      unit: "byte" (256 tokens) or "bpe" (trained on the training part).
      vocab: tokens of "bpe".
      split: share to train on.
      limit: characters to use, from the start; 0: all.

    Raises:
      ValueError: if a number is out of range, or this Python came without its source.
    """
    del data_dir
    check_choice("unit", unit, ("byte", "bpe"))
    check_integer("vocab", vocab, 256, 1 << 20)
    check_fraction("split", split)
    content, skipped = source_text()
    check_integer("limit", limit, 0, len(content))
    content = content[:limit] if limit else content
    if unit == "bpe":
        return from_bpe(content, "stdlib", vocab, split)._replace(skipped=skipped)
    return from_bytes(content.encode("utf-8"), "stdlib", split)._replace(skipped=skipped)


@functools.lru_cache(maxsize=1)
def source_text() -> tuple[str, int]:
    """All source files one after the other, and how many were left out because they are not UTF-8."""
    root = Path(sysconfig.get_paths()["stdlib"])
    parts, skipped = [], 0
    for path in source_files(root):
        try:
            parts.append(path.read_bytes().decode("utf-8"))
        except (OSError, UnicodeDecodeError):
            skipped += 1
    if not parts:
        raise ValueError(f"{root}: has no source of the standard library")
    return "".join(parts), skipped


def source_files(root: Path) -> list[Path]:
    """The *.py files under `root` but for tests and installed packages, by the SHA-256 of their names."""
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    names = [name for name in found if not _LEFT_OUT & set(name.split("/"))]
    return [found[name] for name in sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())]

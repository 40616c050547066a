"""Reader of IDX files (the format of MNIST), gzipped or not, that trusts nothing in them."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

# A header may promise any size; nothing is allocated by its word. What a gzip unpacks to is bounded by what was
# promised.
_UBYTE = 0x08


def read_idx(path: str | Path, ndim: int) -> np.ndarray:
    """The array of unsigned bytes in an IDX file, gzipped or not.

    Layout: two zero bytes, the type code (8: unsigned byte), the number of dimensions, one big-endian uint32 for each
    dimension, then the bytes in C order and nothing else.

    Args:
      path: the file; gzip is recognised by its first two bytes, not by the name.
      ndim: the number of dimensions that is expected: 3 for images, 1 for labels.

    Returns:
      uint8 array.

    Raises:
      ValueError: one line that names the file, for a wrong magic number, a short file, bytes left over, broken gzip.

    Source: Y. LeCun, C. Cortes, C. Burges, The MNIST database.
    """
    path = Path(path)
    try:
        with open(path, "rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if zipped else open(path, "rb") as file:
            return _parse(file, path, ndim)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def _parse(file, path: Path, ndim: int) -> np.ndarray:
    header = file.read(4 + 4 * ndim)
    magic = bytes((0, 0, _UBYTE, ndim))
    if header[:4] != magic:
        raise ValueError(f"{path}: magic number is 0x{header[:4].hex()}, expected 0x{magic.hex()}")
    if len(header) < 4 + 4 * ndim:
        raise ValueError(f"{path}: the file ends inside its header")
    shape = struct.unpack(f">{ndim}I", header[4:])
    size = math.prod(shape)
    data = _read_up_to(file, size + 1)
    if len(data) != size:
        found = "more" if len(data) > size else str(len(data))
        raise ValueError(f"{path}: the header promises {size} bytes for shape {shape}, the file has {found}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _read_up_to(file, size: int) -> bytes:
    """Reads in pieces: `file.read(size)` would first allocate what a damaged header promises."""
    pieces: list[bytes] = []
    while size > 0 and (piece := file.read(min(size, 1 << 24))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)

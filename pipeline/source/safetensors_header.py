"""The header of a safetensors file, held against the file's size, without NumPy.

The format: https://github.com/huggingface/safetensors#format. Eight bytes of header length, a JSON
header, then the tensors without gaps.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.reading.files import open_regular
from pipeline.reading.json_text import JsonError, parse_json

# The limit of the reference implementation; a larger header is a corrupt length.
MAX_HEADER_BYTES = 100_000_000
# torch has tensors of 64 dimensions at most, and no model has one of half as many.
MAX_DIMENSIONS = 64

DTYPE_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 1),
}

_LONGEST_NAME = 200


class BrokenHeaderError(ValueError):
    """The file is not complete; the text is the reason, a sentence."""


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies in its file.

    Attributes:
        dtype: Its name in the header, such as ``BF16``.
        start: Offset of its first byte in the file.
        size: Bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Lists what a safetensors file holds, by name.

    Raises:
        OSError: The file cannot be read.
        BrokenHeaderError: It is truncated, has bytes left over, or is no safetensors file.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size < 8:
            raise BrokenHeaderError(f"It has {size} bytes, too few for a header")
        length = int.from_bytes(file.read(8), "little")
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise BrokenHeaderError(f"Its header claims {length} bytes, the file has {size}")
        text = file.read(length)
    try:
        header = parse_json(text.decode("utf-8"), pairs=_once)
    except ValueError as error:
        raise BrokenHeaderError(f"Its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise BrokenHeaderError("Its header is not a JSON object")
    header.pop("__metadata__", None)
    tensors = {name: _tensor(name, entry, 8 + length, size) for name, entry in header.items()}
    _check_extent(tensors, 8 + length, size)
    return tensors


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are different: of two the libraries would take one or the other."""
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(
            name for name, count in Counter(name for name, _ in pairs).items() if count > 1
        )
        raise JsonError(f"It names {_shown(twice)} twice")
    return made


def _tensor(name: str, entry: Any, base: int, size: int) -> StoredTensor:
    try:
        dtype, item = entry["dtype"], DTYPE_BYTES[entry["dtype"]]
        shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenHeaderError(
            f"The header entry of {_shown(name)} is malformed: {_shown(entry)}"
        ) from error
    # Before anything is computed with them: their product may have millions of digits.
    if len(shape) > MAX_DIMENSIONS:
        raise BrokenHeaderError(f"Tensor {_shown(name)} has {len(shape)} dimensions")
    for number in (*shape, start, end):
        if type(number) is not int:
            raise BrokenHeaderError(
                f"Tensor {_shown(name)} has {_shown(number)} for a size or an offset"
            )
        if number < 0:
            raise BrokenHeaderError(f"Tensor {_shown(name)} has a negative size or offset")
    if end > size:
        raise BrokenHeaderError(f"Tensor {_shown(name)} ends beyond the file's {size} bytes")
    if end - start != math.prod(shape) * item:
        raise BrokenHeaderError(
            f"Tensor {_shown(name)} has {end - start} bytes, its shape {_shown(shape)} needs "
            "another"
        )
    return StoredTensor(dtype, shape, base + start, end - start)


def _check_extent(tensors: dict[str, StoredTensor], base: int, size: int) -> None:
    position = base
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size)):
        if tensor.start != position:
            raise BrokenHeaderError(
                f"Tensor {_shown(name)} overlaps another tensor or leaves a gap before it"
            )
        position += tensor.size
    if position != size:
        raise BrokenHeaderError(f"Its tensors end at byte {position}, the file has {size}")


def _shown(value: object) -> str:
    """A name as it is, and whatever else shortened, so that a message stays one paragraph."""
    plain = isinstance(value, str) and len(value) <= _LONGEST_NAME and value.isprintable()
    return str(value) if plain else reprlib.repr(value)

"""A safetensors file whose tensors are written in any order, each at its final place.

The bytes are those of the safetensors library, which wants all tensors in memory at once: tensors
lie in the order of :data:`ORDER`, then of their names, behind a header of compact JSON that blanks
fill up to a multiple of eight (``serialize`` in safetensors/src/tensor.rs).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.checkpoint.layout import Array
from pipeline.checkpoint.reader import DTYPE_NAMES
from pipeline.reading.closing import Closing
from pipeline.source.safetensors_header import DTYPE_BYTES

ORDER = (
    *("I64", "F64", "F32", "I32", "BF16", "F16", "I16"),
    *("F8_E4M3", "I8", "U8", "BOOL"),
)
"""Dtypes as the library orders them in a file."""
_NAMES = {name: stored for stored, name in DTYPE_NAMES.items()}
# As the safetensors library leaves its files.
_MODE = 0o600
_PIECE = 16 << 20


@dataclass(frozen=True)
class Described:
    """What a tensor will be.

    Attributes:
        dtype: NumPy's name, or ``bfloat16`` or ``float8_e4m3fn``.
        shape: Its shape.
    """

    dtype: str
    shape: tuple[int, ...]


class RankFile(Closing):
    """One file, open for writing.

    Args:
        path: The file. One that is there is written into if ``keep`` is set.
        tensors: What it is to hold, by name; what nobody writes reads as zeros.
        keep: Goes on with a file that was begun with the same tensors, whose values stay.
        metadata: Words for readers of the file.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, Described],
        *,
        keep: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        stored = {name: _NAMES[tensor.dtype] for name, tensor in tensors.items()}
        header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        self._places: dict[str, tuple[int, int]] = {}
        end = 0
        for name in sorted(tensors, key=lambda name: (ORDER.index(stored[name]), name)):
            shape, start = tensors[name].shape, end
            end += math.prod(shape) * DTYPE_BYTES[stored[name]]
            header[name] = {
                "dtype": stored[name],
                "shape": list(shape),
                "data_offsets": [start, end],
            }
            self._places[name] = (start, end - start)
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._base = 8 + len(text)
        how = os.O_RDWR | os.O_CREAT | (0 if keep else os.O_TRUNC)
        self._file = os.open(path, how, _MODE)
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            self._put(len(text).to_bytes(8, "little") + text, 0)
            os.ftruncate(self._file, self._base + end)
            stack.pop_all()

    def write(self, name: str, array: Array, at: int = 0) -> None:
        """Writes a tensor, or a piece of one.

        Args:
            name: One of the tensors.
            array: Its values, of its dtype; bytes count, the shape does not.
            at: Bytes of the tensor that lie before the piece.

        Raises:
            ValueError: The piece does not fit into the tensor.
            OSError: The disk is full.
        """
        start, size = self._places[name]
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        if at + flat.size > size:
            raise ValueError(f"{name} has {size} bytes, and {at} + {flat.size} were written")
        self._put(flat.data, self._base + start + at)

    def digest(self, names: Iterable[str]) -> bytes:
        """Returns the SHA-256 of what the file holds of tensors, one behind the other.

        Args:
            names: Some of the tensors.

        Raises:
            OSError: The disk cannot read it.
        """
        found = hashlib.sha256()
        for name in names:
            start, size = self._places[name]
            for at in range(0, size, _PIECE):
                count = min(_PIECE, size - at)
                found.update(os.pread(self._file, count, self._base + start + at))
        return found.digest()

    def sync(self) -> None:
        """Waits until what was written is on the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def _put(self, data: bytes | memoryview, place: int) -> None:
        view = memoryview(data)
        while view:
            count = os.pwrite(self._file, view, place)
            view, place = view[count:], place + count

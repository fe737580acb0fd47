"""Reads safetensors files into NumPy, bfloat16 and float8 included, without torch.

The format: https://github.com/huggingface/safetensors#format. Eight bytes of header length, a JSON
header, then the tensors without gaps.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.checkpoint.layout import Array
from pipeline.errors import CheckpointError

# The limit of the reference implementation; a larger header is a corrupt length.
MAX_HEADER_BYTES = 100_000_000

DTYPE_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


@cache
def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of ``float16``, ``bfloat16``, ``float8_e4m3fn``, ``int8``, ..."""
    if name in ("bfloat16", "float8_e4m3fn"):
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))
    return np.dtype(name)


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies in its file.

    Attributes:
        dtype: Its NumPy name, such as ``bfloat16``.
        start: Offset of its first byte in the file.
        size: Bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


class TensorFile:
    """One safetensors file, its header checked, its tensors read on demand.

    Args:
        path: The file.

    Attributes:
        tensors: What the header lists, by name.

    Raises:
        CheckpointError: The file is missing, truncated or not safetensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        except OSError as error:
            raise CheckpointError(
                "the file cannot be read", where=str(path), why=error.strerror
            ) from error
        self.tensors = self._header(size)

    def read(self, name: str) -> Array:
        """A read-only view of one tensor; it stays valid as long as the array lives."""
        tensor = self.tensors[name]
        flat = np.frombuffer(self._map, dtype=np.uint8, count=tensor.size, offset=tensor.start)
        return flat.view(numpy_dtype(tensor.dtype)).reshape(tensor.shape)

    def _header(self, size: int) -> dict[str, StoredTensor]:
        if size < 8:
            raise self._broken(f"It has {size} bytes, too few for a header")
        (length,) = struct.unpack("<Q", self._map[:8])
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise self._broken(f"Its header claims {length} bytes, the file has {size}")
        try:
            header = json.loads(self._map[8 : 8 + length].decode("utf-8"))
        except ValueError as error:
            raise self._broken(f"Its header is not JSON: {error}") from error
        if not isinstance(header, dict):
            raise self._broken("Its header is not a JSON object")
        header.pop("__metadata__", None)
        tensors = {name: self._tensor(name, entry, 8 + length) for name, entry in header.items()}
        self._check_extent(tensors, 8 + length, size)
        return tensors

    def _tensor(self, name: str, entry: Any, base: int) -> StoredTensor:
        try:
            dtype = DTYPE_NAMES[entry["dtype"]]
            shape = tuple(int(length) for length in entry["shape"])
            start, end = (int(offset) for offset in entry["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._broken(f"The header entry of {name} is malformed: {error!r}") from error
        if min(shape, default=0) < 0 or start < 0:
            raise self._broken(f"Tensor {name} has a negative size or offset")
        if end - start != math.prod(shape) * numpy_dtype(dtype).itemsize:
            raise self._broken(
                f"Tensor {name} has {end - start} bytes, its shape {shape} needs another"
            )
        return StoredTensor(dtype, shape, base + start, end - start)

    def _check_extent(self, tensors: dict[str, StoredTensor], base: int, size: int) -> None:
        position = base
        for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size)):
            if tensor.start != position:
                raise self._broken(
                    f"Tensor {name} overlaps another tensor or leaves a gap before it"
                )
            position += tensor.size
        if position != size:
            raise self._broken(f"Its tensors end at byte {position}, the file has {size}")

    def _broken(self, why: str) -> CheckpointError:
        return CheckpointError(
            "this is not a complete safetensors file",
            where=str(self.path),
            why=why,
            fix="Delete the directory it is in and produce it again",
        )

"""Reads safetensors files into NumPy, bfloat16 and float8 included, without torch."""

from __future__ import annotations

import mmap
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.checkpoint.layout import Array
from pipeline.errors import CheckpointError
from pipeline.source.safetensors_header import BrokenHeaderError, read_header

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
    """Returns the NumPy dtype of a name such as ``float16`` or ``int8``.

    ``bfloat16`` and ``float8_e4m3fn`` are those of ``ml_dtypes``, which is imported for them alone.

    Raises:
        TypeError: NumPy knows no dtype of that name.
    """
    if name in ("bfloat16", "float8_e4m3fn"):
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))
    return np.dtype(name)


class TensorFile:
    """One safetensors file, its header checked, its tensors read on demand.

    Args:
        path: The file.

    Attributes:
        tensors: What the header lists, by name; dtypes by their NumPy names.

    Raises:
        CheckpointError: The file is missing, truncated or not safetensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            header = read_header(path)
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise CheckpointError(
                "the file cannot be read", where=str(path), why=error.strerror
            ) from error
        except BrokenHeaderError as error:
            raise CheckpointError(
                "this is not a complete safetensors file",
                where=str(path),
                why=str(error),
                fix="Delete the directory it is in and produce it again",
            ) from error
        self.tensors = {
            name: replace(tensor, dtype=DTYPE_NAMES.get(tensor.dtype, tensor.dtype))
            for name, tensor in header.items()
        }

    def read(self, name: str) -> Array:
        """Returns a read-only view of one tensor; it stays valid as long as the array lives.

        Raises:
            KeyError: The file has no tensor of that name.
        """
        tensor = self.tensors[name]
        flat = np.frombuffer(self._map, dtype=np.uint8, count=tensor.size, offset=tensor.start)
        return flat.view(numpy_dtype(tensor.dtype)).reshape(tensor.shape)

    def release(self) -> None:
        """Lets go of the pages that were read: they no longer count as memory of the process.

        Views stay valid; what is looked at again is read again.
        """
        self._map.madvise(mmap.MADV_DONTNEED)

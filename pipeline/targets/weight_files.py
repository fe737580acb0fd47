"""Weights of a Hugging Face folder: one file, or several and the index of them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np

from pipeline.checkpoint.layout import Array
from pipeline.checkpoint.rank_file import Described, RankFile
from pipeline.checkpoint.reader import numpy_dtype
from pipeline.source.snapshot import COMPANIONS, INDEX, SINGLE

# Of a tensor, moved at a time.
_PIECE = 1 << 24
_NOT_COPIED = frozenset({"config.json", INDEX})


class WeightFiles:
    """Weight files that are written one after another, so that memory holds one tensor at a time.

    A file begins with a list of its tensors, so these lie in a file of their own until the list is
    complete, which takes the disk as much room again as one file.

    Args:
        directory: Where they go.
        most: The bytes of one, unless a tensor is larger.
    """

    def __init__(self, directory: Path, most: int) -> None:
        self._directory, self._most = directory, most
        self._held: dict[str, Described] = {}
        self._held_bytes = 0
        self._written: list[list[str]] = []
        self._size = 0

    @property
    def count(self) -> int:
        """How many files have been written."""
        return len(self._written)

    def add(self, name: str, tensor: Array) -> None:
        """Takes a tensor, and writes those before it where there is no room for one more.

        Raises:
            OSError: They could not be written.
        """
        if self._held and self._held_bytes + tensor.nbytes > self._most:
            self._write()
        # A transposed view would be written in the order of its memory, with the right shape.
        flat = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
        with self._waiting.open("ab" if self._held else "wb") as file:
            file.write(flat.data)
        self._held[name] = Described(tensor.dtype.name, tensor.shape)
        self._held_bytes += tensor.nbytes

    def close(self) -> int:
        """Writes the rest and gives the files their names; returns the bytes of all tensors.

        Raises:
            OSError: They could not be written.
        """
        self._write()
        count = len(self._written)
        if count == 1:
            self._place(0).rename(self._directory / SINGLE)
            return self._size
        files = [f"model-{index + 1:05}-of-{count:05}.safetensors" for index in range(count)]
        for index, file in enumerate(files):
            self._place(index).rename(self._directory / file)
        index_of = {
            name: file for file, names in zip(files, self._written, strict=True) for name in names
        }
        content = {"metadata": {"total_size": self._size}, "weight_map": index_of}
        text = json.dumps(content, indent=2, sort_keys=True)
        (self._directory / INDEX).write_text(f"{text}\n", encoding="utf-8")
        return self._size

    def _place(self, index: int) -> Path:
        return self._directory / f".part-{index}"

    @property
    def _waiting(self) -> Path:
        return self._directory / ".waiting"

    def _write(self) -> None:
        place = self._place(len(self._written))
        # Readers of PyTorch's files look for this word.
        with RankFile(place, self._held, metadata={"format": "pt"}) as written:
            if self._held:
                self._move_into(written)
        self._written.append(list(self._held))
        self._size += self._held_bytes
        self._held, self._held_bytes = {}, 0

    def _move_into(self, written: RankFile) -> None:
        with self._waiting.open("rb") as file:
            for name, tensor in self._held.items():
                size = math.prod(tensor.shape) * numpy_dtype(tensor.dtype).itemsize
                for start in range(0, size, _PIECE):
                    piece = file.read(min(size - start, _PIECE))
                    written.write(name, np.frombuffer(piece, np.uint8), start)
        self._waiting.unlink()


def copy_companions(source: Path, output: Path) -> None:
    """Copies what stands beside the weights of a snapshot: tokenizer, generation, licence.

    ``config.json`` and the index are of the weights, and left to whoever writes those.

    Raises:
        OSError: A file cannot be copied.
    """
    for pattern in COMPANIONS:
        for path in sorted(source.glob(pattern)):
            if path.is_file() and path.name not in _NOT_COPIED:
                shutil.copyfile(path, output / path.name)

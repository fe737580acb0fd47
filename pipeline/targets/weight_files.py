"""Weights of a Hugging Face folder: one file, or several and the index of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from pipeline.checkpoint.layout import Array
from pipeline.source.snapshot import COMPANIONS, INDEX, SINGLE

_NOT_COPIED = frozenset({"config.json", INDEX})


class WeightFiles:
    """Weight files that are written one after another, so that memory holds one at a time.

    Args:
        directory: Where they go.
        most: The bytes of one, unless a tensor is larger.
    """

    def __init__(self, directory: Path, most: int) -> None:
        self._directory, self._most = directory, most
        self._held: dict[str, Array] = {}
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
        self._held[name] = np.ascontiguousarray(tensor).reshape(tensor.shape)
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

    def _write(self) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        place = self._place(len(self._written))
        try:
            # Readers of PyTorch's files look for this word.
            save_file(self._held, place, {"format": "pt"})
        except SafetensorError as error:
            raise OSError(0, str(error)) from error
        self._written.append(list(self._held))
        self._size += self._held_bytes
        self._held, self._held_bytes = {}, 0


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

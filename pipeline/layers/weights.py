"""The tensors of a snapshot, read one by one."""

from __future__ import annotations

import math
import mmap
import os
from contextlib import ExitStack
from pathlib import Path

import torch

from pipeline.errors import SourceError
from pipeline.reading.closing import Closing
from pipeline.source.safetensors_header import StoredTensor
from pipeline.source.snapshot import read_weights, weight_files

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U8": torch.uint8,
}


# MADV_POPULATE_READ of Linux 5.14 (include/uapi/asm-generic/mman-common.h), which Python has no
# name for; other systems refuse it.
_POPULATE_READ = 22


class SnapshotWeights(Closing):
    """The tensors of a Hugging Face snapshot by name; the files are open until :meth:`close`.

    No file stays mapped: its pages would count as memory of the process for as long as nobody else
    wants them.

    Args:
        directory: With safetensors in floating point.

    Raises:
        SourceError: A file is damaged, or cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._places: dict[str, tuple[int, StoredTensor]] = {}
        self._files: list[int] = []
        with ExitStack() as stack:
            stack.callback(self.close)
            for path in weight_files(directory):
                stored = read_weights(path, str(path))
                try:
                    file = os.open(path, os.O_RDONLY)
                except OSError as error:
                    raise _unreadable(path, error) from error
                self._files.append(file)
                self._places |= {name: (file, tensor) for name, tensor in stored.items()}
            stack.pop_all()

    def __contains__(self, name: str) -> bool:
        """Says whether the snapshot has a tensor of that name."""
        return name in self._places

    def names(self, prefix: str = "") -> list[str]:
        """Lists the tensors whose names begin with a prefix."""
        return [name for name in self._places if name.startswith(prefix)]

    def close(self) -> None:
        """Closes the files; tensors that were read stay."""
        while self._files:
            os.close(self._files.pop())

    def rows(self, name: str) -> int:
        """Returns the length of a tensor's first axis."""
        return self._places[name][1].shape[0]

    def __call__(self, name: str, rows: slice = slice(None)) -> torch.Tensor:
        """Reads a tensor, or some of its rows, in the dtype of the file.

        Args:
            name: As in the files.
            rows: Consecutive ones of the first axis.

        Raises:
            SourceError: There is no such tensor, or the file cannot be read or ended too soon.
        """
        file, dtype, shape, begin = self._place(name, rows)
        found = torch.empty(shape, dtype=dtype)
        view = found.view(-1).view(torch.uint8).numpy().data
        while view:
            try:
                count = os.preadv(file, [view], begin)
            except OSError as error:
                raise _unreadable(self._directory, error) from error
            if not count:
                raise SourceError(
                    f"the file of {name} ended too soon",
                    where=str(self._directory),
                    why="It was written to or cut while it was read",
                    fix="Let nothing write into the model's folder during a run, and run again",
                )
            view, begin = view[count:], begin + count
        return found

    def into(self, out: torch.Tensor, name: str, rows: slice = slice(None)) -> None:
        """Reads a tensor, or some of its rows, into memory that is there, of any dtype.

        It takes half the time of reading it into memory of its own and copying it from there: the
        file's pages are mapped for as long, and torch's threads turn them into what is wanted.

        Args:
            out: Of the shape of these rows.
            name: As in the files.
            rows: Consecutive ones of the first axis.

        Raises:
            SourceError: As for a call.
        """
        file, dtype, shape, begin = self._place(name, rows)
        count, before = math.prod(shape), begin % mmap.ALLOCATIONGRANULARITY
        pages = None
        if count and begin % dtype.itemsize == 0:
            pages = _pages(file, begin - before, before + count * dtype.itemsize)
        if pages is None:
            # Reading does without a map, or tells what is wrong.
            out.copy_(self(name, rows))
        else:
            found = torch.frombuffer(pages, dtype=dtype, count=count, offset=before)
            out.copy_(found.view(shape))

    def _place(self, name: str, rows: slice) -> tuple[int, torch.dtype, tuple[int, ...], int]:
        """The file of some rows of a tensor, their dtype and shape, and where they begin."""
        if name not in self._places:
            raise SourceError(f"there is no tensor {name}", where=str(self._directory))
        file, stored = self._places[name]
        first, last, _ = rows.indices(stored.shape[0])
        line = stored.size // max(stored.shape[0], 1)
        shape = last - first, *stored.shape[1:]
        return file, DTYPES[stored.dtype], shape, stored.start + first * line


def _pages(file: int, begin: int, size: int) -> mmap.mmap | None:
    """Maps a piece of a file that begins with a page; None where it cannot be mapped or read."""
    try:
        # A private map, since torch warns of memory that it must not write to.
        pages = mmap.mmap(file, size, access=mmap.ACCESS_COPY, offset=begin)
        # A page that cannot be read would end the process later.
        pages.madvise(_POPULATE_READ)
    except (OSError, ValueError):
        return None
    return pages


def _unreadable(place: Path, error: OSError) -> SourceError:
    return SourceError(
        "the weights cannot be read",
        where=str(place),
        why=error.strerror or str(error),
        fix="Look at the disk and at the permissions, and run again",
    )

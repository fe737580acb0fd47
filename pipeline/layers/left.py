"""How far the walks of a run had come when it ended, read from their states without torch."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.reading.files import open_regular
from pipeline.source.safetensors_header import read_header

FINISHED = "finished"
"""The tensor of a state that counts the layers whose work is done, an int64."""


@dataclass(frozen=True)
class WalkLeft:
    """What one walk left.

    Attributes:
        finished: Layers whose work is done.
        bytes: Of the hidden states behind them, and of little else.
    """

    finished: int
    bytes: int


def walks_left(folder: Path) -> list[WalkLeft]:
    """Reads the headers of the states in a folder; what is no state, or damaged, is left out.

    Whether a state is whole, and of use to whoever goes on, only loading it tells.

    Args:
        folder: The unfinished work of a stage, which need not be there. Folders in it are other
            walks' and not looked into.
    """
    found = []
    for path in sorted(folder.glob("*")):
        if path.suffix == ".part":  # a save that was not finished, beside the one before it
            continue
        with suppress(OSError, ValueError, KeyError):
            header = read_header(path)
            stored = header[FINISHED]
            with open_regular(path) as file:
                file.seek(stored.start)
                finished = int.from_bytes(file.read(stored.size), "little")
            found.append(WalkLeft(finished, sum(one.size for one in header.values())))
    return found

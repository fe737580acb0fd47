"""Where a server writes what it says."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.errors import ServerError

RECENT_BYTES = 1 << 20
"""How much of the end of a log is searched for the reason of a failure."""


@dataclass(frozen=True)
class OpenLog:
    """A log that somebody else keeps.

    Attributes:
        file: Open for reading and appending.
        place: Where people find what is in it; None where that is no file.
    """

    file: IO[bytes]
    place: Path | None


LogPlace = Path | OpenLog | None
"""A file that is appended to; one that is open; or None for one that goes with the server."""


def open_log(log: LogPlace) -> IO[bytes]:
    """Opens a log for reading and appending; whoever calls closes it.

    Raises:
        ServerError: The file cannot be written.
    """
    if log is None:
        return tempfile.TemporaryFile()
    if isinstance(log, OpenLog):
        return os.fdopen(os.dup(log.file.fileno()), "r+b", buffering=0)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return open(log, "a+b", opener=_private)
    except OSError as error:
        raise ServerError(
            "the server's log cannot be written",
            where=str(log),
            why=error.strerror or str(error),
            fix="Give another place with --log, or let this user write to that one",
        ) from error


def _private(path: str, flags: int) -> int:
    # Whoever reads a log learns who asked for what; a file that is there keeps its mode.
    return os.open(path, flags, 0o600)


def place_of(log: LogPlace) -> Path | None:
    """Returns where people find a log; None where that is no file."""
    return log.place if isinstance(log, OpenLog) else log


def written_since(log: IO[bytes], offset: int) -> bytes:
    """Reads what was written from a place on, the end of it where that is a lot.

    The server writes through the same open file, whose position stays where it is.
    """
    return _read(log, offset)[1]


def lines_since(log: IO[bytes], offset: int) -> tuple[bytes, int]:
    """Reads the whole lines that were written from a place on, and says where they end.

    A log that was cut in the meantime, as logrotate's ``copytruncate`` does, is read from its
    beginning.
    """
    start, written = _read(log, offset)
    lines = written[: written.rfind(b"\n") + 1]
    return lines, start + len(lines)


def _read(log: IO[bytes], offset: int) -> tuple[int, bytes]:
    number = log.fileno()
    size = os.fstat(number).st_size
    start = max(offset if offset <= size else 0, size - RECENT_BYTES)
    return start, os.pread(number, size - start, start)

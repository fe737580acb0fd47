"""Standard output and standard error whose failures can be told from all others."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

from pipeline.errors import PipelineError


class OutputLostError(PipelineError):
    """What was printed cannot be written.

    Attributes:
        reader_gone: Whether its reader ended, as ``head`` does; nothing is wrong then.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__("the output cannot be written", why=error.strerror)
        self.reader_gone = isinstance(error, BrokenPipeError)


class _Guarded(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise OutputLostError(error) from error


def guard_streams() -> None:
    """Makes both streams raise :class:`OutputLostError`, and opens what was closed.

    Characters that the encoding of standard output does not have become question marks.
    """
    # The next file that is opened would get the number of a stream that was closed.
    for number in range(3):
        if not _is_open(number):
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = _guarded(1, sys.stdout, "replace")
    sys.stderr = _guarded(2, sys.stderr, "backslashreplace")


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _guarded(number: int, before: Any, errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(_Guarded(number, "w", closefd=False)),
        encoding=before.encoding if before else None,
        errors=errors,
        line_buffering=number == 2 or os.isatty(number),
    )


def discard_unwritten() -> None:
    """Drops what could not be written; Python would complain about it once more at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OutputLostError:  # noqa: PERF203
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

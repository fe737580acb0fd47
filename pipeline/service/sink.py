"""Where lines of a log go: a stream of this process, a file, or a FIFO."""

from __future__ import annotations

import errno
import os
import select
from pathlib import Path

from pipeline.errors import UsageError

# A pipe that can be written takes so much without waiting.
CHUNK = select.PIPE_BUF
STREAMS = {
    **dict.fromkeys(("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"), 1),
    **dict.fromkeys(("/dev/stderr", "/dev/fd/2", "/proc/self/fd/2"), 2),
}
_REASONS = {
    errno.ENXIO: "It is a FIFO that nobody reads, or a socket",
    errno.EACCES: "This user may not write there",
    errno.EPERM: "This user may not write there",
    errno.EROFS: "The file system is read-only",
}


class Sink:
    """Takes lines and writes them in order, and never waits for a slow reader.

    What cannot be written is dropped, and a line says so as soon as there is room again.

    Args:
        number: An open file descriptor.
        path: The file that it belongs to; None for a stream of this process.
        limit: Size in bytes from which the file is put aside as ``NAME.1``; None for no limit.
    """

    def __init__(self, number: int, path: Path | None = None, limit: int | None = None) -> None:
        self.path = path
        self._number, self._limit = number, limit
        self._waiting = b""
        self._lost = 0
        self._why = ""
        # What was written last may be half a line, where the disk was full within it.
        self._at_line_start = True

    @classmethod
    def open(cls, path: Path, limit: int | None = None) -> Sink:
        """Opens a file to append to, or a FIFO that somebody reads.

        Raises:
            UsageError: It cannot be written.
        """
        try:
            number = _opened(path)
        except OSError as error:
            raise UsageError(
                "the log cannot be written",
                where=f"--log {path}",
                why=_REASONS.get(error.errno or 0, error.strerror),
                fix="Name a file in a folder that can be written, or - for standard output",
            ) from error
        return cls(number, path, limit)

    @property
    def is_idle(self) -> bool:
        """Whether everything that it was given has been dealt with."""
        return not self._waiting

    def write(self, lines: bytes) -> None:
        """Takes whole lines, and writes what can be written now."""
        self._waiting += lines
        self.push()

    def push(self) -> None:
        """Writes what waits, as far as that is possible without waiting."""
        ready = select.poll()
        ready.register(self._number, select.POLLOUT)
        try:
            while self._waiting and ready.poll(0):
                self._admit_losses()
                written = os.write(self._number, self._waiting[:CHUNK])
                self._at_line_start = self._waiting[:written].endswith(b"\n")
                self._waiting = self._waiting[written:]
        except BlockingIOError:
            return
        except OSError as error:
            # A full disk or a reader that left is no reason to stop serving.
            self._lost += self._waiting.count(b"\n")
            self._why = error.strerror or str(error)
            self._waiting = b""
            return
        if self._limit is not None and not self._waiting:
            self._put_aside()

    def reopen(self) -> None:
        """Opens the file anew, after something moved it away; a stream stays as it is."""
        if self.path is None:
            return
        try:
            self._open_anew(self.path)
        except OSError as error:
            self.write(f"the log cannot be opened anew: {error.strerror}\n".encode())

    def close(self) -> None:
        """Closes a file; a stream of this process stays open."""
        if self.path is not None:
            os.close(self._number)

    def _admit_losses(self) -> None:
        if self._lost:
            note = f"{self._lost} lines of the log could not be written: {self._why}\n"
            os.write(self._number, (note if self._at_line_start else f"\n{note}").encode())
            self._lost = 0

    def _put_aside(self) -> None:
        if self.path is None or os.fstat(self._number).st_size <= (self._limit or 0):
            return
        try:
            # Another server with the same log may have done it, or somebody removed the file.
            if _is_at(self.path, self._number):
                self.path.replace(self.path.with_name(f"{self.path.name}.1"))
            self._open_anew(self.path)
        except OSError as error:
            self._limit = None
            self.write(f"the log cannot be put aside: {error.strerror}\n".encode())

    def _open_anew(self, path: Path) -> None:
        fresh = _opened(path)
        os.dup2(fresh, self._number, inheritable=False)
        os.close(fresh)


def _is_at(path: Path, number: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(number))
    except FileNotFoundError:
        return False


def _opened(path: Path) -> int:
    # Without waiting for a FIFO's reader; for a file it means nothing.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
    return os.open(path, flags, 0o600)

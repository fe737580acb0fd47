"""Hands a server's log on line by line, among lines of our own."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType

from pipeline.service.sink import Sink
from pipeline.triton.log import RECENT_BYTES, OpenLog

INTERVAL_S = 0.1
BLOCK = 1 << 16
MOST_BEHIND = 16 * RECENT_BYTES
"""Bytes that a reader may be behind; what is older is left out."""
LAST_WORDS_S = 2.0
"""Seconds that a slow reader gets for what was said last."""

# <linux/falloc.h>
_KEEP_SIZE, _PUNCH_HOLE = 1, 2


class Relay:
    """Carries what a server writes to where it is wanted, while a ``with`` block lasts.

    The server writes into memory, so that neither a slow reader nor a full disk holds it up, and
    whoever looks for the reason of a failure finds the end of it there. What has been handed on is
    given back to the system, but for twice :data:`RECENT_BYTES`.

    Args:
        log: Where the server's lines go.
        voice: Where ours go; the same sink, or another.
    """

    def __init__(self, log: Sink, voice: Sink) -> None:
        self._log, self._voice = log, voice
        self._memory = os.fdopen(os.memfd_create("triton.log"), "r+b", buffering=0)
        self._read, self._freed = 0, 0
        self._said: deque[bytes] = deque()
        self._ending = threading.Event()
        self._reopen = False
        self._thread = threading.Thread(target=self._run, name="log-relay", daemon=True)

    @property
    def log(self) -> OpenLog:
        """What the server writes to."""
        return OpenLog(self._memory, self._log.path)

    def say(self, text: str) -> None:
        """Adds lines of our own, whole, which are written soon; from a signal handler, too."""
        self._said.append(f"{text}\n".encode(errors="replace"))

    def reopen(self) -> None:
        """Opens the log's file anew, soon; from a signal handler, too."""
        self._reopen = True

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ending.set()
        self._thread.join()
        self._memory.close()
        for sink in self._sinks():
            sink.close()

    def _sinks(self) -> Iterable[Sink]:
        return {self._log, self._voice}

    def _run(self) -> None:
        while not self._ending.wait(INTERVAL_S):
            if self._reopen:
                self._reopen = False
                self._log.reopen()
            self._pass_on()
        deadline = time.monotonic() + LAST_WORDS_S
        self._pass_on(last=True)
        while not all(sink.is_idle for sink in self._sinks()) and time.monotonic() < deadline:
            time.sleep(INTERVAL_S)
            self._pass_on(last=True)

    def _pass_on(self, *, last: bool = False) -> None:
        for sink in self._sinks():
            sink.push()
        size = os.fstat(self._memory.fileno()).st_size
        # What a slow reader cannot take yet stays where it is.
        while self._read < size and self._log.is_idle:
            block = os.pread(self._memory.fileno(), BLOCK, self._read)
            lines = block[: block.rfind(b"\n") + 1]
            if not lines and len(block) == BLOCK:
                lines = block
            elif not lines and last:
                lines, self._read = block + b"\n", self._read - 1
            if not lines:
                break
            self._log.write(lines)
            self._read += len(lines)
        if size - self._read > MOST_BEHIND:
            left_out = self._line_start(size) - self._read
            self._log.write(f"{left_out} bytes of the log were left out\n".encode())
            self._read += left_out
        while self._said and self._voice.is_idle:
            self._voice.write(self._said.popleft())
        self._give_back()

    def _line_start(self, size: int) -> int:
        """Where the last line begins that was written up to a size."""
        end = os.pread(self._memory.fileno(), BLOCK, size - BLOCK)
        return size - len(end) + end.rfind(b"\n") + 1 if b"\n" in end else size

    def _give_back(self) -> None:
        until = self._read - RECENT_BYTES
        if until - self._freed > RECENT_BYTES:
            punch = ctypes.CDLL(None, use_errno=True).fallocate64
            punch.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
            if punch(self._memory.fileno(), _KEEP_SIZE | _PUNCH_HOLE, 0, until):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            self._freed = until


@contextmanager
def reopening(relay: Relay, *, wanted: bool) -> Iterator[None]:
    """Lets SIGHUP open the log's file anew, unless it means something else here.

    Args:
        relay: Whose log.
        wanted: Whether a file was asked for. On a terminal the signal says that the terminal is
            gone, and under nohup it is ignored.
    """
    before = signal.getsignal(signal.SIGHUP)
    if not wanted or before is not signal.SIG_DFL or os.isatty(1):
        yield
        return
    signal.signal(signal.SIGHUP, lambda *_: relay.reopen())
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)

"""The end of the lane to the engine at which tokens arrive (lane_frames.py)."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .lane_frames import PROCESSES, Frame, Reader, addresses, is_sibling

SEARCH_PERIOD_S = 1.0
"""Seconds between two searches for an engine that has no lanes, as TensorRT-LLM's has none."""

HELLO_S = 1.0
"""Seconds within which an engine has to let this process in; calls wait for that."""

CHUNK = 1 << 18
"""Bytes read at a time."""


class Lost:
    """Says that the lane has ended, and nothing else comes over it."""


class LaneCall:
    """A call whose outputs come over the lane.

    Attributes:
        ticket: The parameter by which the engine knows it.
    """

    def __init__(self, number: int, ticket: str, end: Callable[[int], None]) -> None:
        self.ticket = ticket
        self._number, self._end = number, end
        self._arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._over = False

    def get(self, timeout: float | None = None) -> Any:
        """Waits for what comes next: a :class:`Frame`, :class:`Lost` or what else was handed in.

        Args:
            timeout: Seconds after which it is :class:`Lost`.
        """
        try:
            return self._arrived.get(timeout=timeout)
        except queue.Empty:
            return Lost()

    def hand_in(self, arrived: Any) -> bool:
        """Adds what comes next; returns False where nobody takes it any more."""
        with self._lock:
            if not self._over:
                self._arrived.put(arrived)
            return not self._over

    def end(self) -> list[Any]:
        """Ends it: nobody takes what comes. Returns what has come and was not taken."""
        with self._lock:
            self._over = True
        self._end(self._number)
        return [self._arrived.get() for _ in range(self._arrived.qsize())]


class Lane:
    """The lane to one engine, which is looked for when it is needed and not there.

    Args:
        model: The engine's name among the models.
        log: Takes a line about a lane that has ended as it should not.
        server: Process id of the server; the engine is a process that it started.
        processes: Where the kernel lists processes and sockets.
    """

    def __init__(
        self,
        model: str,
        log: Callable[[str], None],
        *,
        server: int | None = None,
        processes: Path = PROCESSES,
    ) -> None:
        self._model, self._log = model, log
        self._server = os.getppid() if server is None else server
        self._processes = processes
        self._lock = threading.Lock()
        self._end: _End | None = None
        self._search_at = 0.0
        self._closed = False

    def begin(self) -> LaneCall | None:
        """Begins a call; None where the engine has no lanes."""
        with self._lock:
            end = self._end
            if end is None or end.lost:
                end = self._end = self._connected()
            return None if end is None else end.begin()

    def close(self) -> None:
        """Ends it, and with it the calls that are on it."""
        with self._lock:
            self._closed = True
            if self._end is not None:
                self._end.close()

    def _connected(self) -> _End | None:
        now = time.monotonic()
        if self._closed or now < self._search_at:
            return None
        for address in addresses(self._model, server=self._server, processes=self._processes):
            # Another server's engine, or one that is ending.
            with contextlib.suppress(OSError):
                return self._connect(address)
        self._search_at = now + SEARCH_PERIOD_S
        return None

    def _connect(self, address: str) -> _End:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Where it cannot take another connection now, waiting is not worth it.
            connection.setblocking(False)
            connection.connect(address)
            connection.settimeout(HELLO_S)
            if not is_sibling(connection, server=self._server, processes=self._processes):
                raise OSError("a process of somebody else")
            reader = Reader()
            while True:
                data = connection.recv(1024)
                if not data:
                    raise OSError("it does not let this process in")
                for number in reader.feed(data):
                    if not isinstance(number, bytes):
                        raise OSError("it does not begin as a lane")
                    connection.settimeout(None)
                    return _End(connection, reader, number.hex(), self._log)
        except ValueError as error:
            connection.close()
            raise OSError(str(error)) from error
        except OSError:
            connection.close()
            raise


class _End:
    """One connection, with a thread that reads it."""

    def __init__(
        self,
        connection: socket.socket,
        reader: Reader,
        number: str,
        log: Callable[[str], None],
    ) -> None:
        self._connection, self._reader, self._number = connection, reader, number
        self._log = log
        self._lock = threading.Lock()
        self._calls: dict[int, LaneCall] = {}
        self._numbers = itertools.count(1)
        self.lost = False
        threading.Thread(target=self._run, name="lane", daemon=True).start()

    def begin(self) -> LaneCall | None:
        number = next(self._numbers)
        call = LaneCall(number, f"{self._number}-{number}", self._forget)
        with self._lock:
            if self.lost:
                return None
            self._calls[number] = call
        return call

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the engine was faster
            self._connection.shutdown(socket.SHUT_RDWR)

    def _forget(self, number: int) -> None:
        with self._lock:
            self._calls.pop(number, None)

    def _run(self) -> None:
        try:
            # One buffer: an allocation of this size for each message would leave gaps in the heap.
            buffer = memoryview(bytearray(CHUNK))
            while count := self._connection.recv_into(buffer):
                for frame in self._reader.feed(buffer[:count]):
                    if isinstance(frame, Frame) and (call := self._calls.get(frame.call)):
                        call.hand_in(frame)
        except (OSError, ValueError) as error:
            self._log(f"the lane to the engine ends: {error!r}")
        finally:
            with self._lock:
                self.lost = True
                calls, self._calls = self._calls, {}
            self._connection.close()
            for call in calls.values():
                call.hand_in(Lost())

"""The engine's ends of the lanes to the models that call it (lane_frames.py).

The responder's thread puts frames on them; a thread of this module lets models in and notices when
they are gone. A model that does not read holds up nobody: what the kernel takes no more of stays
here, at most one round of it, and its streams keep their tokens until there is room again.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .lane_frames import (
    END,
    NUMBER_BYTES,
    TOKENS,
    encoded,
    hello,
    is_sibling,
    new_address,
)

Array = npt.NDArray[np.generic]

MOST = 64
"""Lanes at a time; a server has one or two models that call the engine."""

ACCEPT_PAUSE_S = 0.1
"""Seconds until a model that could not be let in is tried again."""


class Lane:
    """A connected model.

    Attributes:
        number: Random; who knows it may have answers put here.
        lost: Whether nobody is at the other end any more.
        behind: Whether the other end has not yet read what it was sent.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.number = secrets.token_bytes(NUMBER_BYTES)
        self.lost = self.behind = False
        self._connection = connection
        self._lock = threading.Lock()
        self._calls: set[int] = set()
        self._left = bytearray(hello(self.number))

    def open(self, call: int) -> LaneCall | None:
        """Begins a call; None if there is one of that number, or nobody to answer."""
        with self._lock:
            if self.lost or call in self._calls:
                return None
            self._calls.add(call)
        return LaneCall(self, call)

    def end(self, call: int) -> None:
        """Ends a call; harmless when it is over."""
        with self._lock:
            self._calls.discard(call)

    def put(self, frame: bytes) -> None:
        """Adds to what :meth:`flush` sends."""
        with self._lock:
            if not self.lost:
                self._left += frame

    def flush(self) -> None:
        """Sends as much as the other end takes now."""
        with self._lock:
            try:
                while self._left and not self.lost:
                    del self._left[: self._connection.send(self._left)]
            except BlockingIOError:
                pass
            except OSError:
                self._lose()
            self.behind = bool(self._left)

    def lose(self) -> None:
        """Gives it up: nothing else goes over it."""
        with self._lock:
            self._lose()

    def close(self) -> None:
        """Gives it up and closes it; for the thread that lets models in."""
        with self._lock:
            self._lose()
            self._connection.close()

    def _lose(self) -> None:
        self.lost, self.behind = True, False
        self._left.clear()
        # The thread that lets models in sees that and closes it.
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)


class LaneCall:
    """A call whose outputs go over a lane; responder's thread only."""

    def __init__(self, lane: Lane, number: int) -> None:
        self.lane, self._number = lane, number

    @property
    def lost(self) -> bool:
        """Whether the model that called is gone."""
        return self.lane.lost

    def put(self, outputs: Mapping[str, Array], *, last: bool) -> None:
        """Puts a response's outputs on the lane; those of the last one may be none."""
        self.lane.put(encoded(self._number, END if last else TOKENS, outputs))
        if last:
            self.end()

    def end(self) -> None:
        """Ends it; another call may have its number."""
        self.lane.end(self._number)


class Lanes:
    """Lets models in.

    Args:
        model: The engine's name among the models.
        server: Process id of the server; only processes that it started are let in.

    Raises:
        OSError: There are no such sockets here.
    """

    def __init__(self, model: str, *, server: int | None = None) -> None:
        self._server = os.getppid() if server is None else server
        self._lanes: dict[str, Lane] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            address = new_address(model, server=self._server, number=secrets.token_hex(8))
            self._listener.bind(address)
            self._listener.listen(MOST)
            self._listener.setblocking(False)
        except OSError:
            self._listener.close()
            raise
        self._waker, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="lanes", daemon=True)
        self._thread.start()

    def find(self, ticket: Any) -> LaneCall | None:
        """Begins the call of a request that has :data:`lane_frames.PARAMETER`.

        Args:
            ticket: The parameter's value, which may be anything.

        Returns:
            None for what is no call of a lane.
        """
        if not isinstance(ticket, str):
            return None
        number, _, call = ticket.partition("-")
        lane = self._lanes.get(number)
        if lane is None or not (call.isascii() and call.isdecimal() and len(call) < 19):
            return None
        return lane.open(int(call))

    def close(self) -> None:
        """Ends every lane."""
        self._waker.close()
        self._thread.join()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector, self._woken, self._listener:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._woken:
                        for lane in list(self._lanes.values()):
                            lane.close()
                        self._lanes.clear()
                        return
                    if key.fileobj is self._listener:
                        self._let_in(selector)
                    else:
                        # A model sends nothing, so this is its end.
                        selector.unregister(key.fileobj)
                        del self._lanes[key.data.number.hex()]
                        key.data.close()

    def _let_in(self, selector: selectors.BaseSelector) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            time.sleep(ACCEPT_PAUSE_S)  # too many open files, which does not change at once
            return
        if len(self._lanes) >= MOST or not is_sibling(connection, server=self._server):
            connection.close()
            return
        lane = Lane(connection)
        self._lanes[lane.number.hex()] = lane
        selector.register(connection, selectors.EVENT_READ, lane)
        lane.flush()

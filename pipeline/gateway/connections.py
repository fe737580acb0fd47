"""Connections of clients: what each may send before its request is complete, and for how long.

uvicorn bounds none of it. A key is asked for once a request's headers are there, so whoever can
connect could else fill the memory with a header that never ends, and keep every connection and
every place of a request by sending and reading nothing.
"""

from __future__ import annotations

import asyncio
import resource

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEAD_BYTES = 65_536
"""Of a request's line and headers, as h11 has it; other servers take 8 to 32 KiB."""
HEAD_S = 30.0
"""Seconds from a connection, or a request's first byte, to the end of its headers."""
STALL_S = 60.0
"""Seconds that a client may leave unread what is sent to it."""
MOST_CONNECTIONS = 10_000
"""That are open at a time, where the process may open as many files."""
MOST_AT_ONCE = 32
"""Connections that are taken in one round of the loop, those that are closed at once among them."""
_OWN_FILES = 100 + 6 * MOST_AT_ONCE
"""Open files that are kept for what else the process opens, and for those: what was taken in one
round of the loop is closed some rounds later."""

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
)


class Connection(HttpToolsProtocol):
    """One connection; uvicorn makes it.

    Attributes:
        most: Connections that may be open; those beyond it are closed at once.
        head_s: See :data:`HEAD_S`.
        stall_s: See :data:`STALL_S`.
    """

    most = MOST_CONNECTIONS
    head_s = HEAD_S
    stall_s = STALL_S

    _in_head = True
    _head_bytes = 0
    _head_alarm: asyncio.TimerHandle | None = None
    _stall_alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for a request."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
            return
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends what was waited for."""
        self._end_head()
        self._end_stall()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes what has come."""
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > MOST_HEAD_BYTES:
            words = b"A request's headers may have at most %d bytes." % MOST_HEAD_BYTES
            self.transport.write(_TOO_LARGE % (len(words), words))
            self.transport.close()
        elif self._head_alarm is None:
            self._wait_for_head()

    def on_message_begin(self) -> None:
        """Notes that a request has begun."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Notes that its headers are there."""
        self._in_head = False
        self._end_head()
        super().on_headers_complete()

    def pause_writing(self) -> None:
        """Begins to wait for a client that does not read."""
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        """Notes that it reads."""
        self._end_stall()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Closes a connection that is not used, and does not wait for ever for its client."""
        super().timeout_keep_alive_handler()
        self._wait_for_reader()

    def _wait_for_head(self) -> None:
        self._head_alarm = self.loop.call_later(self.head_s, self._give_up)

    def _end_head(self) -> None:
        if self._head_alarm is not None:
            self._head_alarm.cancel()
            self._head_alarm = None

    def _wait_for_reader(self) -> None:
        if self._stall_alarm is None:
            self._stall_alarm = self.loop.call_later(self.stall_s, self._give_up)

    def _end_stall(self) -> None:
        if self._stall_alarm is not None:
            self._stall_alarm.cancel()
            self._stall_alarm = None

    def _give_up(self) -> None:
        # Whoever works for it sees that its client has gone.
        self.transport.abort()


def bounded() -> type[Connection]:
    """Returns the connections of a gateway: as many as leave files for what else it opens."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    left = MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else max(16, soft - _OWN_FILES)

    class Bounded(Connection):
        most = min(MOST_CONNECTIONS, left)

    return Bounded

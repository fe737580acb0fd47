"""Ends synchronous streams that wait too long for their next response.

gRPC's deadline covers a whole call. A Triton model process that was killed leaves its requests
without any answer while the server stays ready, so the silence itself needs a limit.
"""

from __future__ import annotations

import threading
import time
import weakref
from typing import Protocol

_LONGEST_TICK_S = 1.0


class Watched(Protocol):
    """Something that may wait too long.

    Attributes:
        give_up_at: When its wait has been too long, in ``time.monotonic`` seconds; None while it
            does not wait. A stream sets it for each response, so a token costs an assignment.
    """

    give_up_at: float | None

    def give_up(self) -> None:
        """Ends the wait; called from the timer's thread."""


class StallTimer:
    """One thread for all streams of a client; it lives while there are any."""

    def __init__(self) -> None:
        self._streams: weakref.WeakSet[Watched] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._running = False
        self._tick = _LONGEST_TICK_S

    def watch(self, stream: Watched, within: float) -> None:
        """Looks after a stream whose waits may last ``within`` seconds."""
        with self._lock:
            self._streams.add(stream)
            self._tick = min(self._tick, within / 4)
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="client-stall-timer", daemon=True).start()

    def release(self, stream: Watched) -> None:
        """Stops looking after a stream."""
        with self._lock:
            self._streams.discard(stream)

    def _run(self) -> None:
        while True:
            time.sleep(self._tick)
            with self._lock:
                if not self._streams:
                    self._running = False
                    return
                overdue = self._overdue()
            while overdue:
                overdue.pop().give_up()

    def _overdue(self) -> list[Watched]:
        now = time.monotonic()
        return [s for s in self._streams if s.give_up_at is not None and s.give_up_at <= now]

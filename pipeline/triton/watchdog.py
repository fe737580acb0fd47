"""Notices a server that died or lost a Python stub, and asks for a new one."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

INTERVAL_S = 0.5
CALM_S = 60.0
MOST_PAUSE_S = 30.0


class Backoff:
    """How long to wait before each of several restarts in a row: 0, 1, 2, 4, ... seconds.

    Args:
        most_s: The longest wait.
        calm_s: A server that was ready for so long begins a new row.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        most_s: float = MOST_PAUSE_S,
        calm_s: float = CALM_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most_s, self._calm_s, self._clock = most_s, calm_s, clock
        self._pause_s = 0.0
        self._ready: float | None = None

    def ready(self) -> None:
        """Notes that the server is ready."""
        self._ready = self._clock()

    def pause_s(self) -> float:
        """Returns the seconds to wait before the next restart."""
        if self._ready is not None and self._clock() - self._ready >= self._calm_s:
            self._pause_s = 0.0
        self._ready = None
        pause, self._pause_s = self._pause_s, min(2 * self._pause_s or 1.0, self._most_s)
        return pause


class Watchdog:
    """A thread that looks every half second.

    Args:
        fault: What is wrong with the server now, or None.
        recover: Mends it; called with the fault. Returning False ends the watch.
        broken: Called with an error that neither of them should have raised; it ends the watch.
    """

    def __init__(
        self,
        fault: Callable[[], str | None],
        recover: Callable[[str], bool],
        broken: Callable[[Exception], None],
    ) -> None:
        self._fault, self._recover, self._broken = fault, recover, broken
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="triton-watchdog", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the watch; a recovery in progress is waited for."""
        self._stop.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop.wait(INTERVAL_S):
                fault = self._fault()
                if fault and not self._recover(fault):
                    return
        except Exception as error:  # whoever waits for the server must not wait forever
            logger.exception("the watchdog failed")
            self._broken(error)

"""Notices a server that died or lost a Python stub, and asks for a new one."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

logger = logging.getLogger(__name__)

INTERVAL_S = 0.5
MAX_RESTARTS = 3
WINDOW_S = 60.0


class RestartBudget:
    """At most ``limit`` restarts within ``window_s`` seconds.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        limit: int = MAX_RESTARTS,
        window_s: float = WINDOW_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit, self.window_s = limit, window_s
        self._clock = clock
        self._times: deque[float] = deque()

    def take(self) -> bool:
        """Uses one restart up; False when there is none left."""
        now = self._clock()
        while self._times and now - self._times[0] >= self.window_s:
            self._times.popleft()
        if len(self._times) >= self.limit:
            return False
        self._times.append(now)
        return True


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

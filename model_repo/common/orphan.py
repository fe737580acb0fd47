"""Ends the model's process when the server that started it is gone.

A stub that waits for a server that was killed waits forever: the engine's when it publishes a
metric, any when it sends a response. Only the supervisor would end it, and it may have been killed
as well.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

PERIOD_S = 1.0
EXIT_STATUS = 70
"""``EX_SOFTWARE`` of sysexits.h: an internal error."""


def end_with_parent(
    *,
    parent: Callable[[], int] = os.getppid,
    period_s: float = PERIOD_S,
    leave: Callable[[int], object] = os._exit,
) -> None:
    """Starts a thread that looks whether this process still has the parent it has now.

    Args:
        parent: The parent's process id.
        period_s: Seconds between two looks.
        leave: Ends the process with a status, without cleaning up: there is nobody to talk to.
    """
    server = parent()

    def watch() -> None:
        while parent() == server:
            time.sleep(period_s)
        leave(EXIT_STATUS)

    threading.Thread(target=watch, name="orphan", daemon=True).start()

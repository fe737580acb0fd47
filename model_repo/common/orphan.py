"""Ends the model's process when the server that started it is gone, and shows that it runs.

A stub that waits for a server that was killed waits forever: the engine's when it publishes a
metric, any when it sends a response. Only the supervisor would end it, and it may have been killed
as well.

A supervisor that names a folder in ``TRTLLM_PIPELINE_BEATS`` finds in it, as the time of a file
named by the process id, when this process last ran Python. A process that is stopped, or in which
somebody keeps the interpreter's lock forever, writes no time.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

PERIOD_S = 1.0
BEATS = "TRTLLM_PIPELINE_BEATS"
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
    server, folder = parent(), os.environ.get(BEATS)
    file = Path(folder, str(os.getpid())) if folder else None

    def watch() -> None:
        while parent() == server:
            if file is not None:
                # The folder goes with the supervisor.
                with contextlib.suppress(OSError):
                    file.touch(0o600)
            time.sleep(period_s)
        leave(EXIT_STATUS)

    threading.Thread(target=watch, name="orphan", daemon=True).start()

"""Ends the model's process when its engine is broken beyond repair.

After an exception from the engine nothing is known about its state, and it cannot be thrown away
safely while other threads may still be inside it. A process that stays would refuse every request
while Triton reports the model as ready, so nobody would mend it. One that ends is noticed: the
supervisor starts the server again, and a Triton without a supervisor refuses the model's requests
and, in newer versions, no longer reports it as ready. The cause of the failure is in the log and in
the error of every request that was being served.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import triton_python_backend_utils as pb_utils

EXIT_STATUS = 70
"""``EX_SOFTWARE`` of sysexits.h: an internal error."""

GRACE_S = 1.0
"""Triton has the errors when they are sent; the models that called this one, and the network, still
have to pass them on before a supervisor takes the whole server down."""


def end_process(
    error: Exception,
    send_all: Callable[[], None],
    *,
    grace_s: float = GRACE_S,
    leave: Callable[[int], object] = os._exit,
) -> None:
    """Sends what is left to send, waits a little and ends the process without cleaning up.

    Args:
        error: What the engine failed with.
        send_all: Returns when every pending response is sent.
        grace_s: Seconds between the last response and the end.
        leave: Ends the process with a status.
    """
    try:
        pb_utils.Logger.log_error(f"the engine is broken, this process ends: {error!r}")
        send_all()
        time.sleep(grace_s)
    finally:
        leave(EXIT_STATUS)

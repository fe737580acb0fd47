"""Memory that layers leave behind, given back to the system now and then."""

from __future__ import annotations

import ctypes
import gc
import sys
import time

INTERVAL_S = 20.0
"""Seconds between two returns: what was returned is asked for again, page by page."""


class Heap:
    """The memory of a process that works on one layer after the other.

    glibc keeps what is free between tensors that are not, layer by layer more of it.
    """

    def __init__(self) -> None:
        self._next = time.monotonic() + INTERVAL_S

    def tidy(self) -> None:
        """Collects modules that refer to each other, and returns free memory where it is time."""
        gc.collect()
        now = time.monotonic()
        if now >= self._next:
            self._next = now + INTERVAL_S
            _give_back()


def _give_back() -> None:
    if sys.platform == "linux":
        # Other C libraries have no such function, and musl returns memory by itself.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)

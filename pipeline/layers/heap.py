"""Memory that a layer leaves behind, given back before the next one is read."""

from __future__ import annotations

import ctypes
import gc
import sys


def give_back() -> None:
    """Collects modules that refer to each other, and returns free memory to the system.

    glibc keeps what is free between tensors that are not, layer by layer more of it: of half a
    billion parameters 1.21 GB were there at most, and 1.12 GB with this.
    """
    gc.collect()
    if sys.platform == "linux":
        # Other C libraries have no such function, and musl returns memory by itself.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)

"""What lies free between what does not goes back to the system."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from pipeline.layers.heap import Heap

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not Path("/proc/self/statm").exists(),
    reason="needs Linux and glibc, which keeps it",
)


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text("utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_free_memory_between_pieces_that_stay_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    # Small enough that malloc does not map each by itself.
    pieces = [bytearray(b"x" * 100_000) for _ in range(2_000)]
    stay = pieces[::20]
    del pieces
    heap, before = Heap(), resident()
    heap.tidy()
    assert before - resident() < 50_000_000  # it is too soon
    monkeypatch.setattr(heap, "_next", 0.0)
    heap.tidy()
    assert before - resident() > 100_000_000
    assert all(piece[0] == ord("x") for piece in stay)

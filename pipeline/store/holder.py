"""Who holds a lock: a note beside it, for whoever has to wait."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.store.files import write_atomically


def lock_path(store: Path, name: str) -> Path:
    """Returns the file of a store's lock: ``quantize-KEY``."""
    return store / "locks" / f"{name}.lock"


def is_held(lock: Path) -> bool:
    """Says whether some process holds a lock now."""
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False  # nobody works in a store that can only be read


@contextmanager
def noted(lock: Path, doing: str) -> Iterator[None]:
    """Leaves a note beside a lock that this process holds, for as long as it does.

    Args:
        lock: The lock's file.
        doing: What is done under it: ``quantize of demo``.
    """
    note = _note(lock)
    content = {
        "doing": doing,
        "host": platform.node(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    with suppress(OSError):  # nobody needs it but those who wait, and the lock itself holds
        write_atomically(note, json.dumps(content).encode())
    try:
        yield
    finally:
        with suppress(OSError):
            note.unlink(missing_ok=True)


def waiting_for(lock: Path, doing: str) -> str:
    """Says whom a process waits for that wants a lock which another one holds.

    Args:
        lock: The lock's file.
        doing: What this process wants to do under it, which is told where the holder left no note.
    """
    try:
        note = json.loads(_note(lock).read_text(encoding="utf-8"))
        where = "" if note["host"] == platform.node() else f" on {note['host']}"
        return (
            f"waiting for another process: {note['doing']}, pid {note['pid']}{where}, "
            f"since {note['since']}"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return f"waiting for another process: {doing}"


def _note(lock: Path) -> Path:
    return lock.with_suffix(".holder")

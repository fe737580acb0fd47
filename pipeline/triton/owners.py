"""Which servers of this user have an owner, so that what others left can be told and removed.

A server's owner is whoever holds the lock of its file: the supervisor and its guardian, who has the
same open file. The kernel lets go of it when both are dead, in whatever way. A file without a lock
tells what its server may have left: shared memory and Python processes with a unique prefix in
their names, and a private folder that says the same prefix. Nothing else is ever touched.

The files lie in shared memory, beside what they tell of: both last until the machine is started
anew, and both are seen by the same processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import stat
from pathlib import Path

from pipeline.triton.guardian import SHARED_MEMORY, end_stubs, remove_regions

MARK = "owner"
"""The file in a private folder that names its server's prefix."""

_PREFIX = re.compile(r"trtllm_pipeline_[0-9a-f]{12}_")


def places(shared_memory: Path = SHARED_MEMORY) -> Path | None:
    """Returns this user's folder of owner files; None where there is no safe place for one."""
    folder = shared_memory / f"trtllm-pipeline-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    # Anybody may make a folder of this name first.
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return folder if ours and not found.st_mode & 0o077 else None


class Owner:
    """Owns a server from before it is launched until nothing of it is left.

    Args:
        prefix: Unique beginning of the names of its shared memory.
        runtime: Its private folder.
        folder: From :func:`places`; None owns without telling anybody.
    """

    def __init__(self, prefix: str, runtime: Path, folder: Path | None) -> None:
        (runtime / MARK).write_text(prefix, encoding="ascii")
        self._number: int | None = None
        self._file = folder / f"{prefix}.json" if folder else None
        if self._file is None:
            return
        # Under another name until it is locked, so that nobody sees it without its lock.
        draft = self._file.with_suffix(".new")
        try:
            number = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError:
            self._file = None
            return
        fcntl.flock(number, fcntl.LOCK_EX)
        os.write(number, json.dumps({"prefix": prefix, "runtime": str(runtime)}).encode())
        draft.rename(self._file)
        self._number = number

    @property
    def shared(self) -> tuple[int, ...]:
        """The open files that a co-owner inherits."""
        return () if self._number is None else (self._number,)

    def release(self) -> None:
        """Ends the ownership of a server of which nothing is left."""
        if self._number is not None and self._file is not None:
            self._file.unlink(missing_ok=True)
            os.close(self._number)
            self._number = None


def sweep(folder: Path | None) -> list[str]:
    """Removes what servers left whose owners are dead.

    Args:
        folder: From :func:`places`.

    Returns:
        The prefixes of those servers.
    """
    swept = []
    for file in sorted(folder.glob("*.json")) if folder else ():
        try:
            number = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            prefix = _remove(os.read(number, 1 << 16))
            if prefix:
                swept.append(prefix)
            file.unlink(missing_ok=True)
        except OSError:
            # Its owner lives, or somebody else sweeps, or it is not ours to remove.
            continue
        finally:
            os.close(number)
    return swept


def _remove(text: bytes) -> str | None:
    """Removes one dead owner's things; returns its prefix, or None for a file of another kind."""
    try:
        told = json.loads(text)
        prefix, runtime = str(told["prefix"]), Path(str(told["runtime"]))
    except (ValueError, KeyError, TypeError):
        return None
    if not _PREFIX.fullmatch(prefix):
        return None
    end_stubs(prefix)
    remove_regions(prefix)
    with contextlib.suppress(OSError):
        if (runtime / MARK).read_text(encoding="ascii") == prefix:
            shutil.rmtree(runtime, ignore_errors=True)
    return prefix

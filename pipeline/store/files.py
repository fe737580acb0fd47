"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pipeline.errors import UsageError
from pipeline.reading.files import read_regular

Taken = Literal["cloned", "linked", "copied"]
COPIED_AT_ONCE = 8 << 20
_FICLONE = 0x40049409
"""Linux's _IOW(0x94, 9, int), from include/uapi/linux/fs.h."""


def write_atomically(path: Path, content: bytes, *, synced: bool = False) -> None:
    """Writes a file by rename: a reader finds the old bytes or the new ones, never a part.

    Args:
        path: The file.
        content: Its bytes.
        synced: Waits until the disk has it, so that this holds as well where the power goes.

    Raises:
        OSError: The folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # By process, so that two runs at once do not take each other's file away.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        if synced:
            fsync(temporary)
        temporary.replace(path)
        if synced:
            fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def read_named(path: Path, what: str, fix: str) -> str:
    """Reads a UTF-8 file that the user named on the command line, without a byte order mark.

    Args:
        path: The file.
        what: What it is, as a message calls it: ``the file of prompts``.
        fix: What to name instead of one that cannot be read.

    Raises:
        UsageError: It cannot be read or is not UTF-8.
    """
    try:
        return read_regular(path).decode("utf-8-sig")
    except OSError as error:
        raise UsageError(
            f"{what} cannot be read", where=str(path), why=error.strerror, fix=fix
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{what} is not UTF-8",
            where=str(path),
            why=f"{error.reason} at byte {error.start}",
            fix="Save it as UTF-8",
        ) from error


def link_or_copy(source: Path, target: Path) -> None:
    """Gives ``target`` the bytes of ``source``: a hard link where the file system allows it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def take(
    source: Path,
    target: Path,
    on_bytes: Callable[[int], None] = lambda _count: None,
    *,
    link: bool = False,
    on_refusal: Callable[[OSError], None] = lambda _error: None,
) -> Taken:
    """Gives a new file the bytes of another one that somebody else may write into later.

    Where the file system can, both share their blocks until one of them is written to (a reflink),
    which takes neither time nor space. Otherwise the new file is a copy, unless it may be a link.

    Args:
        source: The file; a symbolic link is followed.
        target: The new file.
        on_bytes: Is told of bytes as they are there.
        link: Takes a hard link for want of a reflink, where both are on one file system. Whoever
            writes into the source later writes into the new file as well, and it is for the caller
            to notice.
        on_refusal: Is told why there is no such link, before the file is copied.

    Returns:
        What was done.

    Raises:
        OSError: The source cannot be read, or the target cannot be written or is there already.
    """
    with source.open("rb") as reading:
        with target.open("xb") as writing:
            if cloned(reading.fileno(), writing.fileno()):
                on_bytes(os.fstat(reading.fileno()).st_size)
                return "cloned"
            if not link:
                buffer = memoryview(bytearray(COPIED_AT_ONCE))
                while count := reading.readinto(buffer):
                    writing.write(buffer[:count])
                    on_bytes(count)
                return "copied"
        target.unlink()
        try:
            os.link(source.resolve(), target)
        except OSError as error:
            # Another mount, a file system without links, or a file of another user.
            on_refusal(error)
            return take(source, target, on_bytes)
        on_bytes(os.fstat(reading.fileno()).st_size)
    return "linked"


def cloned(source: int, target: int) -> bool:
    """Makes a file share the blocks of another one, where the file system can.

    Args:
        source: Descriptor of the one that has the bytes.
        target: Descriptor of an empty one.

    Returns:
        Whether it has the bytes now.
    """
    try:
        import fcntl

        fcntl.ioctl(target, _FICLONE, source)
    except (ImportError, OSError):
        # Another device, or a file system without it; whatever else it is meets the copy too.
        return False
    return True


def fsync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's entries, are on the disk.

    Raises:
        OSError: The disk refuses.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

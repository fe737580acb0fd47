"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.reading.files import read_regular


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file by rename: a reader finds the old bytes or the new ones, never a part.

    Raises:
        OSError: The folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # By process, so that two runs at once do not take each other's file away.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
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

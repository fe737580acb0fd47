"""Regular files, whole: what has no end, waits for a writer or has an impossible name is refused.

A pipe would be waited for, and a device may never end, so that a name of theirs in a recipe or in a
model's folder would hang whoever reads it.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

LARGEST = 1 << 30
"""Bytes of a file that is read at once; weights are not."""


def open_regular(path: Path) -> BinaryIO:
    """Opens a file for reading, at once.

    Args:
        path: The file, or a link to one.

    Returns:
        A binary file; whoever asks closes it.

    Raises:
        OSError: It cannot be opened, is a folder, a pipe or a device, or no file can have its name.
    """
    try:
        # Without O_NONBLOCK a pipe would be waited for here; a regular file does not mind it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except ValueError as error:
        raise OSError(errno.EINVAL, "Its name has a null character", str(path)) from error
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "It is a pipe or a device, not a file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, largest: int = LARGEST) -> bytes:
    """Reads a whole file.

    Args:
        path: See :func:`open_regular`.
        largest: Bytes that it may have.

    Raises:
        OSError: See :func:`open_regular`; it is larger than that, or cannot be read.
    """
    with open_regular(path) as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise OSError(errno.EFBIG, f"It has more than {largest >> 20} MiB", str(path))
    return content


def read_beginning(path: Path, most: int) -> bytes:
    """Reads the lines that a file begins with; all of a file that is no larger.

    Args:
        path: See :func:`open_regular`.
        most: Bytes that are read at most; a line that goes on behind them is left out.

    Raises:
        OSError: See :func:`open_regular`; it cannot be read.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    return content if len(content) <= most else content[: content.rfind(b"\n", 0, most) + 1]


def read_utf8(path: Path, largest: int = LARGEST) -> str:
    """Reads a whole file in UTF-8, with line ends as ``\\n``.

    Raises:
        OSError: See :func:`read_regular`.
        UnicodeDecodeError: It is not UTF-8.
    """
    text = read_regular(path, largest).decode("utf-8")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def is_folder(path: Path | str) -> bool:
    """Tells whether there is such a folder; a name that no file can have is one of none."""
    return os.path.isdir(path)  # noqa: PTH112  Path.is_dir raises for such a name


def impossible(path: Path | str) -> str | None:
    """Says why a path can name neither a file nor a folder, whatever is there; None if it can.

    Args:
        path: It need not exist. A pipe or a device is neither, but for the one that swallows all.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116  a text is not made a path before it is looked at
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None  # whoever opens it says so
    except OSError as error:
        return error.strerror or str(error)
    except ValueError:
        return "Its name has a null character"
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or os.fspath(path) == os.devnull:
        return None
    return "It is a pipe or a device"


def shortened(value: Path | str, longest: int = 200) -> str:
    """Returns a path or a text for a message: whole, unless it would fill the screen."""
    text = str(value)
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]}...{text[-half:]}"


def way_out(path: Path, folder: Path) -> Path | None:
    """Finds where a file of a folder really is, if that is elsewhere.

    The Hub's cache keeps the files of a snapshot as links into the folder of its model
    (``models--OWNER--NAME/snapshots/COMMIT`` and ``blobs``), which counts as one.

    Args:
        path: In the folder; links on its way count as well.
        folder: May be a link itself.

    Returns:
        The file outside; None for one inside, and for a link to nothing.
    """
    home = folder.resolve()
    if home.parent.name == "snapshots" and home.parent.parent.name.startswith("models--"):
        home = home.parent.parent
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError):  # there is no such file, or its links go round in a circle
        return None
    return None if real.is_relative_to(home) else real

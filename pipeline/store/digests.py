"""SHA-256 of files, remembered by their stat so that an unchanged file is read once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.reading.files import open_regular
from pipeline.reading.json_text import read_json
from pipeline.store.files import write_atomically

logger = logging.getLogger(__name__)
CHUNK_BYTES = 1 << 20
WORTH_THREADS = 64 << 20
"""Bytes to read from which on several threads do it."""
MOST_THREADS = 8
"""Files that are read at a time, which is as much as disks gain by."""


def canonical_json(value: object) -> str:
    """Writes JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest_of(value: object) -> str:
    """Computes the SHA-256 of a JSON value's canonical text."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Computes the SHA-256 of a file's bytes.

    Raises:
        OSError: It cannot be read, or is a pipe or a device, which may have no end.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def files_below(directory: Path) -> list[str]:
    """Lists relative POSIX paths of all regular files below a directory, sorted.

    Symbolic links to files count as files; links to directories are not followed.
    """
    found = []
    for folder, _, names in os.walk(directory):
        base = Path(folder)
        found += [(base / name).relative_to(directory).as_posix() for name in names]
    return sorted(found)


def oddities_below(directory: Path) -> Iterator[tuple[str, str]]:
    """Finds what no list of files and digests describes, without following any link.

    Yields:
        The relative POSIX path of a link, a pipe, a device or an empty folder, and what it is.

    Raises:
        OSError: A folder cannot be read.
    """
    yield from _oddities(directory, "")


def _oddities(folder: Path, prefix: str) -> Iterator[tuple[str, str]]:
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        name = f"{prefix}{entry.name}"
        if entry.is_symlink():
            yield name, "a link"
        elif entry.is_dir(follow_symlinks=False):
            below = Path(entry.path)
            if any(below.iterdir()):
                yield from _oddities(below, f"{name}/")
            else:
                yield name, "an empty folder"
        elif not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
            yield name, "a pipe or a device"


def mark_of(path: Path, *, borrowed: bool = False) -> list[int]:
    """Returns what moves when a file is written to: size, modification time (ns) and inode.

    Args:
        path: The file.
        borrowed: Adds the change time (ns), which every write moves and no program can set, and
            every hard link that is made or removed moves as well.

    Raises:
        OSError: There is no such file.
    """
    status = path.stat()
    mark = [status.st_size, status.st_mtime_ns, status.st_ino]
    return [*mark, status.st_ctime_ns] if borrowed else mark


def _same(path: Path, other: str) -> bool:
    # Inodes are numbered anew on each file system.
    try:
        return path.samefile(other)
    except OSError:
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def digests(
    paths: Sequence[Path], digest: Callable[[Path], str] = file_digest
) -> list[str | OSError]:
    """Computes the SHA-256 of files, several at a time where they are large.

    ``hashlib`` computes outside of the interpreter's lock, so threads are enough.

    Args:
        paths: The files.
        digest: Computes one.

    Returns:
        One digest for each file in their order, or why it cannot be read.
    """

    def one(path: Path) -> str | OSError:
        try:
            return digest(path)
        except OSError as error:
            return error

    if len(paths) < 2 or sum(map(_size, paths)) < WORTH_THREADS:
        return [one(path) for path in paths]
    from concurrent.futures import ThreadPoolExecutor

    # Where the system does not say which processors are this process's, they all are.
    own = getattr(os, "sched_getaffinity", None)
    cpus = len(own(0)) if own else os.cpu_count() or 1
    with ThreadPoolExecutor(min(cpus, MOST_THREADS)) as pool:
        return list(pool.map(one, paths))


class DigestMemo:
    """Digests remembered between runs in one JSON file.

    A digest is reused only while size, modification time (ns) and inode stand still. (The change
    time would move with every hard link that a deployment makes.) Of a file that somebody else may
    write into, the change time has to stand still as well: that is the one that no program can set.
    What is known of a file is known of every hard link to it, so one that is deployed, or is part
    of two artifacts, is read once. Losing the memo costs time, never correctness. Threads may share
    it.

    Args:
        path: The JSON file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries = self._stored()
        self._changed = False
        self._lock = threading.Lock()

    def digest(self, path: Path, *, borrowed: bool = False) -> str:
        """Returns the SHA-256 of a file, from memory when its stat has not moved.

        Args:
            path: The file.
            borrowed: Whether it is a hard link of somebody else's file.

        Raises:
            OSError: The file cannot be read.
        """
        mark = mark_of(path, borrowed=borrowed)
        if (known := self._known(path, mark)) is not None:
            return known
        logger.info("reading %s for its SHA-256", path)
        value = file_digest(path)
        with self._lock:
            self._entries[str(path.absolute())] = [*mark, value]
            self._changed = True
        return value

    def digests(
        self, paths: Sequence[Path], borrowed: Collection[Path] = ()
    ) -> list[str | OSError]:
        """Returns the digests of files, or why one cannot be read; large ones are read at once.

        Args:
            paths: The files.
            borrowed: Those that are hard links of somebody else's files.
        """
        found = {path: self._remembered(path, path in borrowed) for path in paths}
        left = [path for path in paths if found[path] is None]
        read = digests(left, lambda path: self.digest(path, borrowed=path in borrowed))
        found |= dict(zip(left, read, strict=True))
        return [digest for path in paths if (digest := found[path]) is not None]

    def moved(self, old: Path, new: Path) -> None:
        """Carries what is known of a file over its renaming."""
        with self._lock:
            entry = self._entries.pop(str(old.absolute()), None)
            if entry is not None:
                self._entries[str(new.absolute())] = entry
                self._changed = True

    def _known(self, path: Path, mark: list[int]) -> str | None:
        name = str(path.absolute())
        entry = self._entries.get(name)
        if isinstance(entry, list) and entry[:-1] == mark:
            return str(entry[-1])
        with self._lock:
            for other, entry in self._entries.items():
                if isinstance(entry, list) and entry[:-1] == mark and _same(path, other):
                    self._entries[name] = entry
                    self._changed = True
                    return str(entry[-1])
        return None

    def _remembered(self, path: Path, borrowed: bool) -> str | OSError | None:
        try:
            return self._known(path, mark_of(path, borrowed=borrowed))
        except OSError as error:
            return error

    def save(self) -> None:
        """Writes what was learnt, if anything was and the directory can be written.

        What other processes wrote meanwhile is kept. Writers at the same moment may lose entries
        but never corrupt the file.
        """
        if not self._changed:
            return
        with self._lock:
            known = {**self._stored(), **self._entries}
            self._changed = False
        alive = {name: entry for name, entry in known.items() if Path(name).exists()}
        try:
            write_atomically(self._path, canonical_json(alive).encode())
        except OSError:
            # Without it the next run reads the files again, which a read-only directory may cost.
            self._changed = True

    def _stored(self) -> dict[str, Any]:
        try:
            entries = read_json(self._path)
        except (OSError, ValueError):
            return {}
        return entries if isinstance(entries, dict) else {}

"""SHA-256 of files, remembered by their stat so that an unchanged file is read once."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import stat
from pathlib import Path
from typing import Any

from pipeline.store.files import write_atomically

logger = logging.getLogger(__name__)
CHUNK_BYTES = 1 << 20


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
    if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
        raise OSError(errno.EINVAL, "It is a pipe or a device, not a file", str(path))
    digest = hashlib.sha256()
    with path.open("rb") as file:
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


class DigestMemo:
    """Digests remembered between runs in one JSON file.

    A digest is reused only while size, modification time (ns) and inode stand still. (The change
    time would move with every hard link that a deployment makes.) Losing the memo costs time,
    never correctness.

    Args:
        path: The JSON file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, Any] = {}
        self._changed = False
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            self._entries = entries if isinstance(entries, dict) else {}
        except (OSError, ValueError):
            self._entries = {}

    def digest(self, path: Path) -> str:
        """Returns the SHA-256 of a file, from memory when its stat has not moved.

        Raises:
            OSError: The file cannot be read.
        """
        stat = path.stat()
        mark = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        name = str(path.absolute())
        entry = self._entries.get(name)
        if isinstance(entry, list) and len(entry) == 4 and entry[:3] == mark:
            return str(entry[3])
        logger.info("reading %s for its SHA-256", path)
        value = file_digest(path)
        self._entries[name] = [*mark, value]
        self._changed = True
        return value

    def moved(self, old: Path, new: Path) -> None:
        """Carries what is known of a file over its renaming."""
        entry = self._entries.pop(str(old.absolute()), None)
        if entry is not None:
            self._entries[str(new.absolute())] = entry
            self._changed = True

    def save(self) -> None:
        """Writes what was learnt, if the directory can be written.

        Concurrent writers may lose entries but never corrupt the file.
        """
        if not self._changed:
            return
        alive = {name: entry for name, entry in self._entries.items() if Path(name).exists()}
        # Without it the next run reads the files again, which a read-only directory may cost.
        with contextlib.suppress(OSError):
            write_atomically(self._path, canonical_json(alive).encode())
            self._changed = False

"""What a stage leaves of work that did not end, for the next run of the same key."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.reading.json_text import read_json
from pipeline.store.digests import files_below, mark_of, oddities_below
from pipeline.store.files import write_atomically
from pipeline.store.holder import is_held, lock_path
from pipeline.tables import count, size

FOLDER = "unfinished"
"""Where they are, below the store."""
OLD_S = 7 * 86_400
"""Age from which on nobody is taken to come back to it: a week without a change."""
_BLOCK = 512
"""Bytes of ``st_blocks``, whatever the file system's own blocks are."""
_MADE_FROM, _RESERVE = ".made-from.json", ".reserve"
_RESERVED = 1 << 20
"""Bytes that are free again, half of the free ones at most, when a stage has filled the disk with
work that stays: the run still has to write down how it ended."""


@dataclass(frozen=True)
class Left:
    """What one stage left.

    Attributes:
        stage: The stage.
        key: The key of what it was making.
        path: The directory.
        bytes: That it takes of the disk; a file that is written in any order has holes.
        changed: When something in it changed last, in seconds since 1970.
        files: How many there are.
    """

    stage: str
    key: str
    path: Path
    bytes: int
    changed: float
    files: int

    @property
    def is_old(self) -> bool:
        """Whether nothing changed in it for :data:`OLD_S`."""
        return time.time() - self.changed > OLD_S


class Unfinished:
    """A directory for each key whose work was begun; whoever uses one holds the key's lock.

    Args:
        store: The store's folder.
    """

    def __init__(self, store: Path) -> None:
        self._store, self._root = store, store / FOLDER

    def path(self, stage: str, key: str) -> Path:
        """Returns where the directory of that key is or would be."""
        return self._root / f"{stage}-{key}"

    @contextmanager
    def begun(
        self,
        stage: str,
        key: str,
        made_from: Mapping[str, list[int]],
        *,
        anew: bool = False,
        note: Callable[[str], None] = lambda _message: None,
    ) -> Iterator[Path]:
        """Gives the directory of a key; it goes with the end of the block, and survives an error.

        Args:
            stage: The stage.
            key: The key.
            made_from: Marks of files that the stage reads and somebody else may write into, from
                :func:`link_mark_of`. What was made from others is not gone on with.
            anew: Begins with nothing.
            note: Is told why something is not gone on with, and that something is kept.

        Yields:
            A directory that nothing leads out of, empty where nothing was left.

        Raises:
            OSError: The store cannot be written.
        """
        path = self.path(stage, key)
        if os.path.lexists(path):
            why = "the stage was forced" if anew else self._unusable(path, made_from)
            if why and _has_files(path):
                note(f"{stage} begins anew, and not with what an earlier run left: {why}")
            if why:
                self.discard(path)
        path.mkdir(parents=True, exist_ok=True)
        _reserve(path)
        if made_from:
            write_atomically(_beside(path, _MADE_FROM), json.dumps(made_from).encode())
        ended = False
        try:
            yield path
            ended = True
        finally:
            with suppress(OSError):
                _beside(path, _RESERVE).unlink(missing_ok=True)
            if ended or not _has_files(path):
                with suppress(OSError):  # a later run finds the artifact, and removes it
                    self.discard(path)
            else:
                kept = size(self.bytes_of(stage, key))
                note(f"{stage}: what it has done is kept ({kept}), and another run goes on with it")

    def discard(self, path: Path) -> None:
        """Removes a directory, out of sight first so that nobody goes on with a part of it.

        Raises:
            OSError: The store cannot be written.
        """
        for suffix in (_MADE_FROM, _RESERVE):
            _beside(path, suffix).unlink(missing_ok=True)
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            path.unlink()
        elif path.exists():
            trash = self._store / "tmp"
            trash.mkdir(parents=True, exist_ok=True)
            doomed = trash / f"removed-{uuid.uuid4().hex[:8]}"
            path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def discard_idle(self, stage: str, key: str) -> bool:
        """Removes the directory of a key unless somebody works in it; returns whether it did."""
        path = self.path(stage, key)
        if not os.path.lexists(path):
            return False
        try:
            with FileLock(lock_path(self._store, path.name), timeout=0):
                self.discard(path)
        except (Timeout, OSError):
            return False
        return True

    def bytes_of(self, stage: str, key: str) -> int:
        """Counts the bytes of the disk that the directory of a key takes; 0 without one."""
        try:
            return _look(self.path(stage, key)).bytes
        except OSError:
            return 0

    def idle(self) -> list[Left]:
        """Lists what was left that nobody works on now."""
        found = []
        for path in sorted(self._root.glob("*-*")):
            if path.is_symlink() or not path.is_dir():
                continue
            if is_held(lock_path(self._store, path.name)):
                continue
            with suppress(FileNotFoundError):  # somebody removed it meanwhile
                found.append(_look(path))
        return found

    def sweep(self) -> None:
        """Removes what holds nothing: somebody was killed before there was anything to keep."""
        for left in self.idle():
            if not left.files:
                self.discard_idle(left.stage, left.key)
            else:
                with suppress(OSError):  # a read-only store is fine where nothing is written
                    _beside(left.path, _RESERVE).unlink(missing_ok=True)

    def held(self) -> str:
        """Says in a sentence what was left and how it is removed; empty where there is nothing."""
        left = self.idle()
        if not left:
            return ""
        return (
            f"{count(len(left), 'stage')} that did not end still "
            f"{'holds' if len(left) == 1 else 'hold'} {size(sum(one.bytes for one in left))}: "
            "trtllm-pipeline store list says which, and store prune --unfinished removes them"
        )

    def _unusable(self, path: Path, made_from: Mapping[str, list[int]]) -> str | None:
        """Says why a stage must not write into a directory that is there."""
        if path.is_symlink() or not path.is_dir():
            return "it is no folder"
        for name, kind in oddities_below(path):
            if kind != "an empty folder":
                return f"{name} is {kind}"
        for name in files_below(path):
            status = (path / name).lstat()
            if status.st_nlink > 1:
                # What is written into it would be written into the other file as well.
                return f"{name} is linked from elsewhere"
            if status.st_uid != os.geteuid():
                return f"{name} belongs to somebody else"
        if _touched(_read(_beside(path, _MADE_FROM)), made_from):
            return "the model's files were touched meanwhile"
        return None


def link_mark_of(path: Path) -> list[int]:
    """Returns what moves when somebody else's file is written to, and its number of links.

    Raises:
        OSError: There is no such file.
    """
    return [*mark_of(path, borrowed=True), path.stat().st_nlink]


def _touched(before: Any, now: Mapping[str, list[int]]) -> bool:
    if not isinstance(before, dict) or before.keys() != now.keys():
        return True
    return any(
        before[name] != mark and not _linked(before[name], mark) for name, mark in now.items()
    )


def _linked(before: Any, now: list[int]) -> bool:
    """Whether a link that was made or removed is why the change time moved, and nothing else did.

    Where links are as many as before, a program wrote and set the other times back.
    """
    *same, _, links = now
    return isinstance(before, list) and before[:-2] == same and before[-1] != links


def _look(path: Path) -> Left:
    stage, _, key = path.name.partition("-")
    stats = [(path / name).lstat() for name in files_below(path)]
    changed = max([path.lstat().st_mtime, *(one.st_mtime for one in stats)])
    taken = sum(one.st_blocks * _BLOCK for one in stats)
    return Left(stage, key, path, taken, changed, len(stats))


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}{suffix}")


def _reserve(path: Path) -> None:
    # Without links: what is planted there is not written into.
    place = _beside(path, _RESERVE)
    place.unlink(missing_ok=True)
    file = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        # Where there is no room for it, the stage will say so.
        with suppress(OSError, AttributeError):
            free = shutil.disk_usage(place.parent).free
            os.posix_fallocate(file, 0, min(_RESERVED, free // 2))
    finally:
        os.close(file)


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        return None


def _has_files(path: Path) -> bool:
    try:
        return bool(os.listdir(path))  # noqa: PTH208  to see if it is empty
    except OSError:
        return False

"""What is in the store and what may leave it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import StoreError
from pipeline.store.artifact import read_manifest
from pipeline.store.build_dir import BuildDir
from pipeline.store.digests import files_below
from pipeline.store.lock import read_lock


@dataclass(frozen=True)
class Pruned:
    """What was removed, or would be.

    Attributes:
        paths: The directories of artifacts.
        unfinished: Those of work that did not end.
        freed: Bytes of the disk that nothing else holds: files that are linked into a deployed
            repository or the Hub's cache stay there.
    """

    paths: tuple[Path, ...]
    unfinished: tuple[Path, ...]
    freed: int


def inventory(build: BuildDir) -> list[dict[str, Any]]:
    """Lists one row per artifact.

    Returns:
        JSON values: ``stage``, ``key``, ``path``, ``created`` (UTC), ``bytes``, ``seconds`` that it
        took, ``used_by``, the output folders whose last run has it, and ``finished``.
    """
    used = _used(build)
    rows = []
    for path in build.store.artifacts():
        stage, key = path.parent.name, path.name
        row = {
            "stage": stage,
            "key": key,
            "path": str(path),
            "used_by": used.get((stage, key), []),
            "finished": True,
        }
        try:
            manifest = read_manifest(path)
        except StoreError as error:
            rows.append(
                {**row, "created": "damaged", "bytes": 0, "seconds": 0.0, "why": str(error)}
            )
            continue
        size = sum(entry["bytes"] for entry in manifest["files"].values())
        seconds = float(manifest["seconds"])
        rows.append({**row, "created": manifest["created"], "bytes": size, "seconds": seconds})
    return rows


def unfinished(build: BuildDir) -> list[dict[str, Any]]:
    """Lists one row per stage that left something and did not end, and that nobody works on.

    Returns:
        JSON values as of :func:`inventory`; ``created`` is when something changed last, and
        ``old`` says whether :func:`prune` removes it.
    """
    return [
        {
            "stage": left.stage,
            "key": left.key,
            "path": str(left.path),
            "used_by": [],
            "finished": False,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(left.changed)),
            "bytes": left.bytes,
            "seconds": 0.0,
            "old": left.is_old,
        }
        for left in build.store.unfinished.idle()
    ]


def prune(build: BuildDir, *, keep: bool, dry_run: bool, unfinished: bool = False) -> Pruned:
    """Removes artifacts that are damaged or that no recipe's last run uses.

    What stages left that did not end is removed where nothing changed in it for a week
    (:data:`pipeline.store.unfinished.OLD_S`) or its artifact is there, unless somebody works on it.

    Args:
        build: The build directory; its recipes' lock files say what is in use.
        keep: False removes everything.
        dry_run: Only returns what would be removed.
        unfinished: Removes what did not end at any age.
    """
    store = build.store
    # In this order, since every byte is read in between: what a run makes or takes up meanwhile is
    # not in the list, or in a lock file.
    there = {path: path.stat().st_ino for path in store.artifacts()}
    damaged = {damage.path for damage in store.verify()}

    def goes(path: Path, used: Collection[tuple[str, str]]) -> bool:
        if not path.is_dir() or path.stat().st_ino != there[path]:
            return False  # another one, in the place of one that was damaged
        return not keep or path in damaged or (path.parent.name, path.name) not in used

    used = _used(build)
    doomed = [path for path in there if goes(path, used)]
    left = [
        one
        for one in store.unfinished.idle()
        if unfinished or not keep or one.is_old or store.path(one.stage, one.key).exists()
    ]
    if not dry_run:
        store.sweep()
        # Looked at again, since a run may have begun meanwhile.
        used = _used(build)
        doomed = [path for path in doomed if goes(path, used)]
    freed = _freed(doomed) + sum(one.bytes for one in left)
    if not dry_run:
        for path in doomed:
            store.remove(path)
        for one in left:
            store.unfinished.discard_idle(one.stage, one.key)
    return Pruned(tuple(doomed), tuple(one.path for one in left), freed)


def _used(build: BuildDir) -> dict[tuple[str, str], list[str]]:
    """The output folders that use an artifact, by its stage and key."""
    used: dict[tuple[str, str], list[str]] = {}
    for lock in sorted(build.root.glob("*/lock.json")):
        for stage, entry in read_lock(lock).items():
            used.setdefault((stage, str(entry["key"])), []).append(lock.parent.name)
    return used


def _freed(folders: Iterable[Path]) -> int:
    """The bytes of files all of whose names are in these folders."""
    seen: Counter[tuple[int, int]] = Counter()
    freed = 0
    for folder in folders:
        for name in files_below(folder):
            stat = (folder / name).lstat()
            inode = (stat.st_dev, stat.st_ino)
            seen[inode] += 1
            if seen[inode] == stat.st_nlink:
                freed += stat.st_size
    return freed

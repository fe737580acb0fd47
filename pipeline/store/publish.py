"""Puts a repository into a folder of repositories, each of which is called by its digest."""

from __future__ import annotations

import errno
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import StoreError
from pipeline.store.artifact import ENVELOPE, MANIFEST, check_files
from pipeline.store.files import fsync

INCOMING = ".incoming-"
ABANDONED_S = 86_400
"""Age from which what somebody was copying counts as left behind; nobody copies for a day."""

_READABLE, _ENTERED = 0o644, 0o755
_THERE = (errno.EEXIST, errno.ENOTEMPTY)


def publish(repository: Path, manifest: Mapping[str, Any], folder: Path) -> tuple[Path, bool]:
    """Copies a repository to ``folder/DIGEST``, by rename: whole and compared, or not at all.

    What is there under that name stays: the same digest is the same bytes.

    Args:
        repository: The repository, which its manifest was compared with.
        manifest: Its manifest.
        folder: Where repositories are kept, such as a volume that several machines have mounted.

    Returns:
        Where it is, and whether it was copied now.

    Raises:
        StoreError: The folder cannot be written, the copy is not what was copied, or what is there
            already is damaged.
    """
    target = folder / str(manifest["digest"])
    if target.exists():
        _compare(target, manifest, "Remove it where nothing serves it, and publish again")
        return target, False
    fresh = folder / f"{INCOMING}{uuid.uuid4().hex[:12]}"
    try:
        _sweep(folder)
        fresh.mkdir()
        names = [*manifest["files"], MANIFEST]
        names += [ENVELOPE] if (repository / ENVELOPE).is_file() else []
        for name in names:
            _copy(repository / name, fresh / name)
        for directory, _, _ in os.walk(fresh):
            Path(directory).chmod(_ENTERED)
            fsync(Path(directory))
        _compare(fresh, manifest, "Publish it again; look at the disk or the network in between")
        fresh.rename(target)
        fsync(folder)
    except OSError as error:
        if error.errno in _THERE and target.is_dir():
            return target, False  # somebody else was faster, with the same bytes
        raise StoreError(
            "the repository cannot be published",
            where=str(error.filename or folder),
            why=error.strerror,
            fix="Free space, or correct the permissions of the folder",
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return target, True


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(_READABLE)
    fsync(target)


def _compare(place: Path, manifest: Mapping[str, Any], fix: str) -> None:
    if problems := check_files(place, manifest, memo=None):
        raise StoreError(
            f"what is there is not the repository: {problems[0]}", where=str(place), fix=fix
        )


def _sweep(folder: Path) -> None:
    """Removes what a killed copy left."""
    for left in folder.glob(f"{INCOMING}*"):
        if time.time() - left.stat().st_mtime > ABANDONED_S:
            shutil.rmtree(left, ignore_errors=True)

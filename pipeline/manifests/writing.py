"""Puts the files of a kind where they were asked for, whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.store.files import fsync

MARK = ".trtllm-pipeline-manifests"
"""A file that says that a folder is one of ours, which may be replaced."""


def write_folder(files: Mapping[str, str], folder: Path) -> None:
    """Makes a folder of files appear at once, in the place of one that was written before.

    Args:
        files: Texts by their relative path.
        folder: Where; it does not exist, is empty, or was written by this function.

    Raises:
        UsageError: It is something else, or cannot be written.
    """
    if (folder.exists() or folder.is_symlink()) and not _ours(folder):
        raise UsageError(
            "there is something else already",
            where=str(folder),
            why="It would be replaced whole, and was not written by this command",
            fix="Name another folder, or remove it",
        )
    suffix = uuid.uuid4().hex[:8]
    fresh = folder.with_name(f".{folder.name}.{suffix}")
    stale = folder.with_name(f".{folder.name}.old-{suffix}")
    try:
        fresh.mkdir(parents=True)
        for name, text in {**files, MARK: ""}.items():
            path = fresh / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            fsync(path)
        if folder.exists():
            folder.rename(stale)
        fresh.rename(folder)
    except OSError as error:
        if stale.exists() and not folder.exists():
            stale.rename(folder)
        raise UsageError(
            "the folder cannot be written",
            where=str(folder),
            why=error.strerror,
            fix="Name another folder, or correct the permissions",
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(stale, ignore_errors=True)


def _ours(folder: Path) -> bool:
    if folder.is_symlink() or not folder.is_dir():
        return False
    return (folder / MARK).is_file() or not os.listdir(folder)  # noqa: PTH208  any entry counts

"""Puts an artifact where people look for it: a checked copy that replaces the old one at once."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.store.artifact import Artifact, check_files, read_manifest
from pipeline.store.digests import files_below
from pipeline.store.files import link_or_copy
from pipeline.store.store import Store


def deploy(artifact: Artifact, target: Path, store: Store) -> bool:
    """Makes ``target`` a copy of an artifact, by rename; hard links where possible.

    Returns:
        False when ``target`` was already that artifact.

    Raises:
        StoreError: The build directory cannot be written.
    """
    if _is_deployed(artifact, target, store):
        return False
    with store.lock("deploy", target.parent.name), store.writing():
        fresh = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        stale = target.with_name(f".{target.name}.old-{uuid.uuid4().hex[:8]}")
        try:
            fresh.mkdir(parents=True)
            for name in files_below(artifact.path):
                link_or_copy(artifact.path / name, fresh / name)
            if target.exists():
                target.rename(stale)
            fresh.rename(target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            shutil.rmtree(stale, ignore_errors=True)
    return True


def _is_deployed(artifact: Artifact, target: Path, store: Store) -> bool:
    try:
        manifest = read_manifest(target)
    except StoreError:
        return False
    return manifest["digest"] == artifact.digest and not check_files(target, manifest, store.memo)

"""Puts an artifact where people look for it: a checked copy that replaces the old one at once."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import Literal

from pipeline.errors import StoreError
from pipeline.reading.json_text import read_json
from pipeline.store.artifact import MANIFEST, WARNING, Artifact, check_files, read_manifest
from pipeline.store.digests import files_below
from pipeline.store.files import link_or_copy
from pipeline.store.store import Store

Aside = Literal["failed", "unverified"]


def deploy(artifact: Artifact, target: Path, store: Store, *, warning: str | None = None) -> bool:
    """Makes ``target`` a copy of an artifact, by rename; hard links where possible.

    Args:
        artifact: What to copy.
        target: The folder; what it held before is removed.
        store: The store of the artifact.
        warning: What whoever uses the copy has to know; it is written into the copy's manifest.

    Returns:
        False when ``target`` was already that artifact.

    Raises:
        StoreError: The build directory cannot be written.
    """
    if _is_deployed(artifact, target, store, warning):
        return False
    with store.lock("deploy", target.parent.name), store.writing():
        fresh = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        stale = target.with_name(f".{target.name}.old-{uuid.uuid4().hex[:8]}")
        try:
            fresh.mkdir(parents=True)
            for name in files_below(artifact.path):
                link_or_copy(artifact.path / name, fresh / name)
            if warning:
                _warn(fresh / MANIFEST, warning)
            if target.exists():
                target.rename(stale)
            fresh.rename(target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            shutil.rmtree(stale, ignore_errors=True)
    return True


def release(artifact: Artifact, target: Path, store: Store) -> Path:
    """Deploys an artifact that passed, and removes what earlier runs put aside; returns the folder.

    Raises:
        StoreError: The build directory cannot be written.
    """
    deploy(artifact, target, store)
    for state in ("failed", "unverified"):
        _remove(aside(target, state), store)
    return target


def set_aside(artifact: Artifact, target: Path, store: Store, state: Aside, why: str) -> Path:
    """Keeps an artifact that did not pass beside ``target``, under a name that says so.

    What an earlier run deployed stays, unless it is this artifact and now fails. An artifact of
    which more is known already is left where it is.

    Args:
        artifact: What was not deployed.
        target: Where it would have been deployed.
        store: The store of the artifact.
        state: Whether it failed or was not tried.
        why: Is written into the copy's manifest, for whoever uses it nevertheless.

    Returns:
        The folder that holds the artifact.

    Raises:
        StoreError: The build directory cannot be written.
    """
    if state == "unverified":
        for known in (target, aside(target, "failed")):
            if _holds(artifact, known, store):
                return known
    elif _holds(artifact, target, store):
        _remove(target, store)
    place = aside(target, state)
    deploy(artifact, place, store, warning=why)
    if state == "failed":
        _remove(aside(target, "unverified"), store)
    return place


def aside(target: Path, state: Aside) -> Path:
    """Names the folder beside ``target`` for artifacts of that state."""
    return target.with_name(f"{target.name}.{state}")


def _remove(folder: Path, store: Store) -> None:
    if not folder.exists():
        return
    with store.lock("deploy", folder.parent.name), store.writing():
        stale = folder.with_name(f".{folder.name}.old-{uuid.uuid4().hex[:8]}")
        folder.rename(stale)
        shutil.rmtree(stale, ignore_errors=True)


def _warn(manifest: Path, warning: str) -> None:
    content = {**read_json(manifest, finite=False), WARNING: warning}
    manifest.unlink()  # the link; the store keeps the artifact's own manifest
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)
    manifest.write_text(f"{text}\n", encoding="utf-8")


def _is_deployed(artifact: Artifact, target: Path, store: Store, warning: str | None) -> bool:
    if not _holds(artifact, target, store):
        return False
    return read_manifest(target).get(WARNING) == warning


def _holds(artifact: Artifact, folder: Path, store: Store) -> bool:
    try:
        manifest = read_manifest(folder)
    except StoreError:
        return False
    return manifest["digest"] == artifact.digest and not check_files(folder, manifest, store.memo)

"""What is in the store and what may leave it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import StoreError
from pipeline.store.artifact import read_manifest
from pipeline.store.build_dir import BuildDir
from pipeline.store.lock import read_lock
from pipeline.store.store import Store


def inventory(store: Store) -> list[dict[str, Any]]:
    """Lists one row per artifact: stage, key, creation time (UTC), bytes, seconds it took."""
    rows = []
    for path in store.artifacts():
        row = {"stage": path.parent.name, "key": path.name, "path": str(path)}
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


def prune(build: BuildDir, *, keep: bool, dry_run: bool) -> list[Path]:
    """Removes artifacts that are damaged or that no recipe's last run uses.

    Args:
        build: The build directory; its recipes' lock files say what is in use.
        keep: False removes everything.
        dry_run: Only returns what would be removed.

    Returns:
        The directories removed.
    """
    store = build.store
    used: set[tuple[str, str]] = set()
    for lock in build.root.glob("*/lock.json"):
        used |= {(stage, str(entry["key"])) for stage, entry in read_lock(lock).items()}
    damaged = {damage.path for damage in store.verify()}
    doomed = [
        path
        for path in store.artifacts()
        if not keep or path in damaged or (path.parent.name, path.name) not in used
    ]
    if not dry_run:
        store.sweep()
        for path in doomed:
            store.remove(path)
    return doomed

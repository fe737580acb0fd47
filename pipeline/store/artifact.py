"""An artifact: a published directory, and the manifest that lists its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import StoreError
from pipeline.reading.json_text import JsonError, read_json
from pipeline.store.digests import (
    DigestMemo,
    digest_of,
    file_digest,
    files_below,
    oddities_below,
)

MANIFEST = "artifact.json"
ENVELOPE = "provenance.dsse.json"
"""A signature that may be put into a deployed copy; what it signs is in the manifest."""
SCHEMA = 1
# A key of a deployed copy's manifest: what whoever uses the copy has to know.
WARNING = "warning"


@dataclass(frozen=True)
class Artifact:
    """A published directory of the store.

    Attributes:
        stage: The stage that made it.
        key: The SHA-256 it is stored under; covers everything that decides its bytes.
        digest: The SHA-256 of its manifest of files; covers the bytes themselves.
        path: The directory.
        facts: What the stage returned: JSON values for later stages and the report.
    """

    stage: str
    key: str
    digest: str
    path: Path
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Damage:
    """What is wrong with a directory that its manifest describes.

    Attributes:
        path: The directory.
        problems: One sentence each.
    """

    path: Path
    problems: tuple[str, ...]


def read_manifest(directory: Path) -> dict[str, Any]:
    """Reads ``artifact.json``.

    Raises:
        StoreError: It is missing or not a manifest.
    """
    path = directory / MANIFEST
    try:
        manifest = read_json(path, finite=False)
        if not _is_manifest(manifest):
            raise ValueError("not a manifest of this version")
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = "it is not JSON" if isinstance(error, JsonError) else "it is no manifest"
        if isinstance(error, OSError):
            why = error.strerror or type(error).__name__
        raise StoreError("there is no readable artifact.json", where=str(path), why=why) from error
    return dict(manifest)


def _is_manifest(content: Any) -> bool:
    kinds: dict[str, Any] = {
        "digest": str,
        "created": str,
        "seconds": int | float,
        "facts": dict,
        "files": dict,
    }
    return (
        content["schema"] == SCHEMA
        and all(isinstance(content[name], kind) for name, kind in kinds.items())
        and all(
            isinstance(entry["sha256"], str) and isinstance(entry["bytes"], int)
            for entry in content["files"].values()
        )
    )


def check_files(directory: Path, manifest: Mapping[str, Any], memo: DigestMemo | None) -> list[str]:
    """Compares a directory with its manifest.

    Args:
        directory: The artifact or a copy of it.
        manifest: From :func:`read_manifest`.
        memo: Remembers digests of unmoved files; None reads every byte.

    Returns:
        One sentence per missing, changed or unlisted file, and per entry that is neither a file
        nor a folder of files: whoever reads the directory would follow a link past this check.
    """
    try:
        odd = dict(oddities_below(directory))
    except OSError as error:
        return [f"{error.filename} cannot be read: {error.strerror}"]
    problems = [
        f"{name} is {kind}, not a file that was built"
        for name, kind in odd.items()
        # What a folder lacks is told below.
        if kind == "a link" or not any(file.startswith(f"{name}/") for file in manifest["files"])
    ]
    present = set(files_below(directory)) - {MANIFEST, ENVELOPE}
    for name, entry in manifest["files"].items():
        path = directory / name
        if name in odd:
            continue
        if name not in present:
            problems.append(f"{name} is missing")
            continue
        try:
            if path.stat().st_size != entry["bytes"]:
                problems.append(f"{name} has {path.stat().st_size} bytes, not {entry['bytes']}")
            elif (memo.digest(path) if memo else file_digest(path)) != entry["sha256"]:
                problems.append(f"{name} was changed: its SHA-256 differs")
        except OSError as error:
            problems.append(f"{name} cannot be read: {error.strerror}")
    problems += [
        f"{name} is not listed" for name in sorted(present - odd.keys() - manifest["files"].keys())
    ]
    content = {"files": manifest["files"], "facts": manifest["facts"]}
    if digest_of(content) != manifest["digest"]:
        problems.append(f"{MANIFEST} itself was changed")
    return problems

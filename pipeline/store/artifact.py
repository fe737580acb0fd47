"""An artifact: a published directory, and the manifest that lists its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import StoreError
from pipeline.reading.json_text import JsonError, read_json
from pipeline.store.digests import (
    DigestMemo,
    digest_of,
    digests,
    files_below,
    oddities_below,
)

MANIFEST = "artifact.json"
ENVELOPE = "provenance.dsse.json"
"""A signature that may be put into a deployed copy; what it signs is in the manifest."""
SCHEMA = 1
# A key of a deployed copy's manifest: what whoever uses the copy has to know.
WARNING = "warning"
BORROWED = "borrowed"
"""A key of a manifest: its files that are hard links of files that others may write into."""


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
        Large files are read several at a time.
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
    found: dict[str, str | None] = {}
    for name, entry in manifest["files"].items():
        if name not in odd:
            found[name] = _first_look(directory / name, entry) if name in present else "is missing"
    found |= _second_look(directory, manifest, [n for n, what in found.items() if not what], memo)
    problems += [f"{name} {what}" for name, what in found.items() if what]
    problems += [
        f"{name} is not listed" for name in sorted(present - odd.keys() - manifest["files"].keys())
    ]
    content = {"files": manifest["files"], "facts": manifest["facts"]}
    if digest_of(content) != manifest["digest"]:
        problems.append(f"{MANIFEST} itself was changed")
    return problems


def changed_meanwhile(artifact: Artifact, memo: DigestMemo) -> list[str]:
    """Looks again at files of an artifact that somebody else may write into, by their stat alone.

    Args:
        artifact: One that was whole.
        memo: Remembers their digests.

    Returns:
        One sentence for each file that is not what it was.
    """
    manifest = read_manifest(artifact.path)
    names = borrowed_files(manifest)
    found = {name: _first_look(artifact.path / name, manifest["files"][name]) for name in names}
    found |= _second_look(
        artifact.path, manifest, [name for name, what in found.items() if not what], memo
    )
    return [f"{name} {what}" for name, what in found.items() if what]


def borrowed_files(manifest: Mapping[str, Any]) -> list[str]:
    """Lists the files of an artifact that are hard links of somebody else's files."""
    names = manifest.get(BORROWED)
    return [n for n in names if n in manifest["files"]] if isinstance(names, list) else []


def _first_look(path: Path, entry: Mapping[str, Any]) -> str | None:
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if size == entry["bytes"] else f"has {size} bytes, not {entry['bytes']}"


def _second_look(
    directory: Path, manifest: Mapping[str, Any], names: Sequence[str], memo: DigestMemo | None
) -> dict[str, str | None]:
    """What is wrong with the bytes of files, by name."""
    borrowed = set(borrowed_files(manifest))
    paths = [directory / name for name in names]
    linked = {directory / name for name in borrowed}
    read = memo.digests(paths, linked) if memo else digests(paths)
    found: dict[str, str | None] = {}
    for name, digest in zip(names, read, strict=True):
        if isinstance(digest, OSError):
            found[name] = f"cannot be read: {digest.strerror}"
        elif digest != manifest["files"][name]["sha256"]:
            why = ", and it is linked to the model's own file" if name in borrowed else ""
            found[name] = f"was changed: its SHA-256 differs{why}"
    return found

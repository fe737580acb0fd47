"""Copies of a repository that are changed and still pass for what was built."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.store.artifact import MANIFEST
from pipeline.store.digests import digest_of, file_digest, files_below

Edit = Callable[[bytes], bytes]


def edited(repository: Path, place: Path, edits: Mapping[str, Edit]) -> Path:
    """Copies a repository, changes files of it and writes its manifest anew.

    Args:
        repository: What is copied; it stays as it is.
        place: The copy, which must not exist.
        edits: What is done to a file, by its path.
    """
    shutil.copytree(repository, place)
    for name, edit in edits.items():
        path = place / name
        content = edit(path.read_bytes())
        path.unlink()  # it may be a hard link into a store
        path.write_bytes(content)
    manifest = json.loads((place / MANIFEST).read_text())
    manifest["files"] = {
        name: {"bytes": (place / name).stat().st_size, "sha256": file_digest(place / name)}
        for name in files_below(place)
        if name != MANIFEST
    }
    content = {"files": manifest["files"], "facts": manifest["facts"]}
    manifest["digest"] = digest_of(content)
    (place / MANIFEST).unlink()
    (place / MANIFEST).write_text(json.dumps(manifest))
    return place


def with_parameters(**values: object) -> Edit:
    """Adds parameters to a config.pbtxt, in place of those that it has."""

    def edit(content: bytes) -> bytes:
        blocks = content.decode().split("parameters {\n")
        kept = [blocks[0]]
        for block in blocks[1:]:
            key = block.partition('key: "')[2].partition('"')[0]
            # What follows the last one's closing brace belongs to no parameter.
            body, end, rest = block.partition("\n}\n")
            kept.append(rest if key in values else f"parameters {{\n{body}{end}{rest}")
        added = "".join(
            f'parameters {{\n  key: "{key}"\n  value {{\n    string_value: "{value}"\n  }}\n}}\n'
            for key, value in values.items()
        )
        return ("".join(kept) + added).encode()

    return edit


def appended(code: str) -> Edit:
    """Adds Python behind a module's own."""
    return lambda content: content + code.encode()

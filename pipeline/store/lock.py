"""What the last run of a recipe used: ``lock.json`` beside its outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.reading.json_text import read_json
from pipeline.store.files import write_atomically


def read_lock(path: Path) -> dict[str, Any]:
    """Reads what the last run of a recipe used, by stage; empty when there was none."""
    try:
        stages = read_json(path, finite=False)["stages"]
        return {name: entry for name, entry in stages.items() if entry["key"] and entry["material"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def write_lock(path: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Records the keys of a run beside its outputs, by rename, when they are others than before.

    Stages that the run did not get to keep what an earlier run recorded: their outputs are still
    deployed.

    Args:
        path: The lock file.
        entries: By stage: ``key``, ``digest`` of the artifact and ``material``, what the key is the
            digest of.

    Raises:
        OSError: The file cannot be written.
    """
    before = read_lock(path)
    stages: dict[str, Any] = {**before, **entries}
    if stages != before:
        text = json.dumps({"schema": 1, "stages": stages}, indent=1, sort_keys=True)
        write_atomically(path, f"{text}\n".encode())

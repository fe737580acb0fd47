"""The capacity of a build that was asked for its report, kept beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.economics.capacity.answer import SCHEMA
from pipeline.reading.json_text import read_json
from pipeline.store.files import write_atomically

NAME = "capacity.json"
_OF = "repository"


def keep_capacity(folder: Path, report: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    """Writes ``capacity.json`` into the folder of a build.

    Args:
        folder: Of the build.
        report: Its ``report.json``.
        document: What was computed.

    Raises:
        OSError: The folder cannot be written.
    """
    kept = {_OF: _digest(report), **document}
    text = json.dumps(kept, indent=1, ensure_ascii=False)
    write_atomically(folder / NAME, f"{text}\n".encode())


def kept_capacity(folder: Path, report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Reads what :func:`keep_capacity` wrote; None where the build is another one by now.

    Args:
        folder: Of the build.
        report: Its ``report.json``.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        kept = read_json(path)
        same = kept["schema"] == SCHEMA and kept[_OF] == _digest(report)
        return dict(kept) if same and kept["simulated"] else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # a file that was cut or changed says nothing


def _digest(report: Mapping[str, Any]) -> str | None:
    stages = {stage["name"]: stage["digest"] for stage in report["stages"]}
    return stages.get(_OF)

"""A file that grows by one line of JSON at a time, and holds none twice in a row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError, cause
from pipeline.reading.files import read_utf8
from pipeline.reading.json_text import parse_json
from pipeline.store.files import write_atomically

KEY = "key"


def append(path: Path, line: Mapping[str, Any]) -> bool:
    """Adds a line unless the last one has its ``key``, by rename: there is never half a line.

    Args:
        path: The file; it need not be there.
        line: JSON values with a ``key``.

    Returns:
        False when the last line has that key already.

    Raises:
        UsageError: The file is there and is no journal.
        OSError: The file cannot be written.
    """
    lines = read(path) if path.exists() else []
    if lines and lines[-1][KEY] == line[KEY]:
        return False
    every = [*lines, line]
    text = "".join(f"{json.dumps(one, ensure_ascii=False, allow_nan=False)}\n" for one in every)
    write_atomically(path, text.encode())
    return True


def read(path: Path) -> list[dict[str, Any]]:
    """Reads the lines of a journal, the oldest first.

    Raises:
        UsageError: There is no such file, or a line is not an object with a ``key``.
    """
    try:
        # Not splitlines(), which also cuts at characters that JSON leaves in a text.
        texts = read_utf8(path).rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or str(error)) from error
    lines: list[dict[str, Any]] = []
    if texts == [""]:
        return lines
    for number, text in enumerate(texts, 1):
        try:
            line = parse_json(text)
            if not isinstance(line[KEY], str):
                raise TypeError(KEY)
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                "this line is not one of a history",
                where=f"{path}:{number}",
                why=cause(error),
                fix="Remove the line, or move the file away: the next run begins a new one",
            ) from error
        lines.append(line)
    return lines


def _unreadable(path: Path, why: str) -> UsageError:
    return UsageError(
        "there is no history that can be read",
        where=str(path),
        why=why,
        fix="Every finished run of a recipe adds a line to it: trtllm-pipeline run RECIPE",
    )

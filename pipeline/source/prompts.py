"""A file of prompts for the conformance checks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from pipeline.source.lines import Line, conversation_of, objects, text_of
from pipeline.store.files import read_named

_FEWEST = 2
_KINDS = '"prompt" or "messages"'
_FIX = (
    'Write {"prompt": "..."} on each line, with a text that is not empty, or {"messages": [...]}, '
    "a conversation that the model is to answer"
)


def read_prompts(path: Path) -> list[Line]:
    """Reads a file of prompts.

    Args:
        path: ``.jsonl``: one object a line, with ``prompt``, text or messages, or with
            ``messages``. Any other file: a prompt a line, as it stands. Empty lines are left out.

    Returns:
        Two different prompts at least, without duplicates. A conversation's answer that stands last
        is to be left out.

    Raises:
        UsageError: The file cannot be read, is not UTF-8, has a line that is no such object, or
            holds fewer than two prompts.
    """
    content = read_named(path, "the file of prompts", "Name a file with a prompt a line")
    prompts: list[Line]
    if path.suffix.lower() == ".jsonl":
        prompts = [_prompt_of(row, place) for place, row in objects(content, path, _KINDS, _FIX)]
    else:
        prompts = [line for line in content.splitlines() if line.strip()]
    prompts = list(dict.fromkeys(prompts))
    if len(prompts) < _FEWEST:
        raise UsageError(
            "the file needs at least two different prompts",
            where=str(path),
            why=f"It has {len(prompts) or 'none'}, and checks hold answers against each other",
            fix="Write a prompt a line",
        )
    return prompts


def _prompt_of(row: Mapping[str, Any], place: str) -> Line:
    if row.get("messages") is not None or isinstance(row.get("prompt"), list):
        asked = conversation_of({**row, "completion": None}, place)
        if asked is not None and asked.question:
            return asked
    elif row.get("prompt") is not None:
        prompt = text_of(row["prompt"], "prompt", place)
        if prompt.strip():
            return prompt
    raise UsageError("the line has no prompt", where=place, fix=_FIX)

"""Which checks run, and on which prompts."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.reading.json_text import parse_json
from pipeline.store.files import read_named
from pipeline.verify.catalogue import CHECKS
from pipeline.verify.check import Check

_FEWEST_PROMPTS = 2


def chosen_checks(only: Collection[str] = (), skip: Collection[str] = ()) -> tuple[Check, ...]:
    """Selects the checks to run, in their order.

    Args:
        only: Names of the checks to run; none is all.
        skip: Names of the checks to leave out.

    Raises:
        UsageError: There is no check of a name, or none is left.
    """
    for name in (*only, *skip):
        if name not in CHECKS:
            raise UsageError(f"there is no check {name}", fix=_suggestion(name, CHECKS))
    names = [name for name in CHECKS if name in (only or CHECKS) and name not in skip]
    if not names:
        raise UsageError(
            "no check is left to run", fix="Name one that is not skipped as well, or skip fewer"
        )
    return tuple(CHECKS[name] for name in names)


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]}?" if close else f"Checks: {', '.join(known)}"


def read_prompts(path: Path) -> list[str]:
    """Reads a file of prompts.

    Args:
        path: ``.jsonl``: one ``{"prompt": "..."}`` a line. Any other file: a prompt a line, as it
            stands. Empty lines are left out.

    Returns:
        Two different prompts at least, without duplicates.

    Raises:
        UsageError: The file cannot be read, is not UTF-8, has a line that is no such object, or
            holds fewer than two prompts.
    """
    lines = read_named(path, "the file of prompts", "Name a file with a prompt a line").splitlines()
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if path.suffix.lower() == ".jsonl":
        prompts = [_prompt_of(line, f"{path}:{number}") for number, line in numbered]
    else:
        prompts = [line for _, line in numbered]
    prompts = list(dict.fromkeys(prompts))
    if len(prompts) < _FEWEST_PROMPTS:
        raise UsageError(
            "the file needs at least two different prompts",
            where=str(path),
            why=f"It has {len(prompts) or 'none'}, and checks hold answers against each other",
            fix="Write a prompt a line",
        )
    return prompts


def _prompt_of(line: str, place: str) -> str:
    try:
        content = parse_json(line)
    except ValueError as error:
        raise UsageError(
            "the line is not JSON",
            where=place,
            why=str(error),
            fix='Write {"prompt": "..."} on each line',
        ) from error
    prompt = content.get("prompt") if isinstance(content, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise UsageError(
            "the line has no prompt",
            where=place,
            fix='Write {"prompt": "..."} on each line, with a text that is not empty',
        )
    return prompt

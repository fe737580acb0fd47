"""What ``generate`` is told of the text that it wants: its options about guided decoding."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.store.files import read_named


def read_guide(
    *, json_object: bool, json_schema: Path | None, regex: str | None, grammar: Path | None
) -> tuple[str | None, str | bytes | None]:
    """Returns the request's ``guided_decoding_guide_type`` and ``guided_decoding_guide``.

    Args:
        json_object: Whether any JSON object or array will do.
        json_schema: A file with a JSON schema.
        regex: A regular expression.
        grammar: A file with an EBNF grammar.

    Raises:
        UsageError: Several of them are given, or a file cannot be read, or does not hold
            what it should.
    """
    options: dict[str, tuple[str, Path | str | None]] = {
        "--json-object": ("json", "" if json_object else None),
        "--json-schema": ("json_schema", json_schema),
        "--regex": ("regex", regex),
        "--grammar": ("ebnf_grammar", grammar),
    }
    given = {name: option for name, option in options.items() if option[1] is not None}
    if not given:
        return None, None
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other", fix="Give one of them")
    (name, (kind, value)), *_ = given.items()
    if not isinstance(value, Path):
        return kind, None if kind == "json" else value
    return kind, _content(name, value)


_FILES = {
    "--json-schema": 'a JSON schema, such as {"type": "integer"}',
    "--grammar": 'an EBNF grammar, such as root ::= "yes" | "no"',
}


def _content(option: str, path: Path) -> bytes:
    """Reads what the file of an option holds, so that a wrong one is told by its name."""
    wanted = f"Name a file with {_FILES[option]}"
    text = read_named(path, f"the file of {option}", wanted)
    if not text.strip():
        raise UsageError(f"the file of {option} is empty", where=str(path), fix=wanted)
    if option == "--json-schema":
        try:
            json.loads(text)
        except json.JSONDecodeError as error:
            raise UsageError(
                f"the file of {option} is not JSON",
                where=f"{path}:{error.lineno}",
                why=f"{error.msg} at column {error.colno}",
                fix=wanted,
            ) from error
        except RecursionError:
            pass  # brackets within each other without end are the server's to refuse
    return text.encode()


def doubt_about(kind: str | None, text: str) -> str | None:
    """Says what to think of a guided text that ended because it had all its tokens.

    Args:
        kind: The request's ``guided_decoding_guide_type``; None is no guide.
        text: The answer.

    Returns:
        A clause; None without a guide, and for JSON that is whole by chance.
    """
    if kind is None:
        return None
    if kind in ("regex", "ebnf_grammar"):
        # Each dialect has its own rules, so nothing here can tell whether the text matches.
        return "what it was to follow may not be complete"
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return "what it was to follow is not complete"
    return None

"""What ``generate`` is told of the text that it wants: its options about guided decoding."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import UsageError


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
        UsageError: Several of them are given, or a file cannot be read.
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
    try:
        return kind, value.read_bytes()
    except OSError as error:
        raise UsageError(
            f"the file of {name} cannot be read", where=str(value), why=error.strerror
        ) from error

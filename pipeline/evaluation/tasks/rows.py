"""The rows of a file of questions, each with its place, and what a row must hold."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from pipeline.reading.json_text import parse_json
from pipeline.source.lines import SURROGATE, read_text_file

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def json_rows(
    path: Path, form: str, most: int | None = None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Reads one JSON object a line.

    Args:
        path: The file.
        form: How a row is to be written, for an error.
        most: Bytes that are read of a larger file; None reads all.

    Yields:
        The place ``file:line`` and the object.

    Raises:
        UsageError: The file cannot be read, or a line is no object.
    """
    for number, line in enumerate(read_text_file(path, most).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = parse_json(line, whole=False)
        except ValueError as error:
            raise UsageError(
                "the line is not JSON",
                where=place,
                why=str(error),
                fix=form,
            ) from error
        if not isinstance(row, dict):
            raise wrong(place, "the line is not a JSON object", form)
        yield place, row


def csv_rows(path: Path, most: int | None = None) -> Iterator[tuple[str, list[str]]]:
    """Reads the rows of a CSV file without a heading.

    Args:
        path: The file.
        most: Bytes that are read of a larger file, up to the last row that is whole; None reads
            all.

    Yields:
        The place ``file:line`` of the row's last line, and its columns.

    Raises:
        UsageError: The file cannot be read, or is not CSV.
    """
    reader = csv.reader(io.StringIO(read_text_file(path, most), newline=""), strict=True)
    try:
        for row in reader:
            if row:
                yield f"{path}:{reader.line_num}", row
    except csv.Error as error:
        # A text of several lines may go on behind what was read.
        if most is not None:
            return
        raise UsageError(
            "the line is not CSV",
            where=f"{path}:{reader.line_num}",
            why=str(error),
            fix="Put a text that has commas, quotes or line breaks in double quotes",
        ) from error


def text_of(row: Mapping[str, Any], key: str, place: str, form: str) -> str:
    """Returns a key's text.

    Raises:
        UsageError: It is missing, no text, or no characters.
    """
    return checked_text(row.get(key), f'"{key}"', place, form)


def texts_of(row: Mapping[str, Any], key: str, place: str, form: str) -> tuple[str, ...]:
    """Returns a key's list of two texts or more.

    Raises:
        UsageError: It is missing or something else.
    """
    value = row.get(key)
    if not isinstance(value, list) or not 2 <= len(value) <= len(LETTERS):
        raise wrong(place, f'"{key}" is not a list of 2 to {len(LETTERS)} texts', form)
    return tuple(checked_text(text, f'each of "{key}"', place, form) for text in value)


def checked_text(value: object, what: str, place: str, form: str) -> str:
    """Returns a value that is a text of whole characters.

    Raises:
        UsageError: It is something else.
    """
    if not isinstance(value, str):
        found = "missing" if value is None else f"{type(value).__name__}, not a text"
        raise wrong(place, f"{what} is {found}", form)
    if not value.isascii() and SURROGATE.search(value):
        raise wrong(place, f"{what} has half of a surrogate pair, which is not a character", form)
    return value


def index_of(value: object, key: str, choices: int, place: str, form: str) -> int:
    """Returns the index of the right choice, of an index, its digits or a letter.

    Raises:
        UsageError: It is none of the choices.
    """
    found = value
    if isinstance(value, str):
        text = value.strip()
        is_letter = len(text) == 1 and text in LETTERS
        is_number = text.isdecimal() and len(text) <= len(str(len(LETTERS)))
        found = LETTERS.index(text) if is_letter else int(text) if is_number else None
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < choices:
        raise wrong(place, f'"{key}" is {value!r}, none of the {choices} choices', form)
    return found


def wrong(place: str, what: str, form: str) -> UsageError:
    """Makes the error of a row that is not in the layout."""
    return UsageError(what, where=place, fix=form)

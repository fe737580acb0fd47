"""JSON of somebody else: whatever it holds, what comes back can be worked with, or it is refused.

Python's own reader takes more than JSON has (``NaN``), makes infinity of ``1e999``, and has numbers
of thousands of digits and values as deep as its stack, which break what looks at them afterwards.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.reading.files import LARGEST, read_utf8

MOST_DIGITS = 64
"""Digits of an integer; transformers writes one of 31 (``model_max_length``)."""

DEEPEST = 64
"""Lists and objects within each other."""

_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_HALF = re.compile("[\ud800-\udfff]")

Pairs = Callable[[list[tuple[str, Any]]], Any]


class JsonError(ValueError):
    """A text that is no usable JSON; it is the reason."""


def read_json(path: Path, *, finite: bool = True, largest: int = LARGEST) -> Any:
    """Reads a file of JSON.

    Args:
        path: A regular file.
        finite: See :func:`parse_json`.
        largest: Bytes that it may have.

    Raises:
        OSError: See :func:`pipeline.reading.files.read_regular`.
        ValueError: It is not UTF-8; :class:`JsonError`, it is not JSON.
    """
    return parse_json(read_utf8(path, largest), finite=finite)


def parse_json(
    text: str, *, finite: bool = True, whole: bool = True, pairs: Pairs | None = None
) -> Any:
    """Reads a JSON text.

    Args:
        text: One value, with at most :data:`DEEPEST` levels.
        finite: Refuses numbers that are not finite. False is for what this project wrote itself,
            which may tell of a model whose numbers are not.
        whole: Refuses half of a surrogate pair, which can be neither printed nor written. False is
            for who tells it with the place.
        pairs: Makes a value of the keys and values of an object; None makes a dict, in which the
            last of several equal keys counts.

    Raises:
        JsonError: It is not JSON, or none that can be worked with.
    """
    options: dict[str, Any] = {"parse_int": _integer, "object_pairs_hook": pairs}
    if finite:
        options |= {"parse_float": _finite, "parse_constant": _finite}
    try:
        value = json.loads(text, **options)
    except json.JSONDecodeError as error:
        raise JsonError(str(error)) from error
    except RecursionError as error:
        raise _too_deep() from error
    _check_depth(value)
    # Only an escape can make one; UTF-8 has none. Written and read again, pairs are joined.
    if whole and _ESCAPE.search(text) and _HALF.search(json.dumps(value, ensure_ascii=False)):
        raise JsonError("It has half of a surrogate pair, which is not a character")
    return value


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise JsonError(f"It has a number of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        shown = digits if len(digits) <= MOST_DIGITS else f"of {len(digits)} digits"
        raise JsonError(f"It has the number {shown}, which is not finite")
    return number


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> JsonError:
    return JsonError("It is nested too deeply")

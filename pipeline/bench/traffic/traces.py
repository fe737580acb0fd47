"""Traces of real load: when requests came and how long they were."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.reading.files import read_utf8
from pipeline.reading.json_text import JsonError, parse_json

_EXAMPLE = '{"timestamp": 1500, "input_length": 120, "output_length": 40}'
_FIX = f"Write one object a line: {_EXAMPLE}; the timestamp is in milliseconds"


@dataclass(frozen=True)
class TraceRow:
    """One request of a trace.

    Attributes:
        at_s: Seconds after the first one.
        input_tokens: Length of its prompt.
        output_tokens: Length of its answer.
    """

    at_s: float
    input_tokens: int
    output_tokens: int


def read_trace(path: Path) -> list[TraceRow]:
    """Reads a trace in Mooncake's format, ordered by time.

    A line is an object with ``timestamp`` in milliseconds, ``input_length`` and ``output_length``
    in tokens (github.com/kvcache-ai/Mooncake, FAST25-release/traces), as AIPerf's
    ``mooncake_trace`` takes it too. Other keys are not read; ``hash_ids``, the blocks of a prompt
    that others share, is one of them.

    Args:
        path: A JSONL file.

    Raises:
        UsageError: It cannot be read, has no request, or a line is no such object; the message
            names the line.
    """
    try:
        text = read_utf8(path)
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError("the trace cannot be read", where=str(path), why=why, fix=_FIX) from error
    rows = [
        _row(line, f"{path}:{number}")
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip()
    ]
    if not rows:
        raise UsageError("the trace has no request", where=str(path), fix=_FIX)
    rows.sort(key=lambda row: row.at_s)
    first = rows[0].at_s
    return [TraceRow(row.at_s - first, row.input_tokens, row.output_tokens) for row in rows]


def _row(line: str, where: str) -> TraceRow:
    try:
        found = parse_json(line)
    except JsonError as error:
        what = "this line of the trace is no JSON"
        raise UsageError(what, where=where, why=str(error), fix=_FIX) from error
    if not isinstance(found, dict):
        raise UsageError("this line of the trace is no object", where=where, fix=_FIX)
    at = found.get("timestamp")
    if isinstance(at, bool) or not isinstance(at, int | float) or at < 0:
        raise UsageError(f"timestamp is {at!r}, no time", where=where, fix=_FIX)
    lengths = []
    for key in ("input_length", "output_length"):
        length = found.get(key)
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise UsageError(
                f"{key} is {length!r}, no whole number of at least 1", where=where, fix=_FIX
            )
        lengths.append(length)
    return TraceRow(at / 1000, *lengths)

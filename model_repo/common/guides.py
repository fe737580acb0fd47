"""The guide of a request: what its text must be (guided decoding).

Names are TensorRT-LLM's (``getGuidedDecodingParamsFromTensors`` in
triton_backend/inflight_batcher_llm/src/utils.cc). There a type that is not known, and a guide
without a type, are left out without a word, and the text comes unguided; here they are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy.typing as npt

KIND, GUIDE = "guided_decoding_guide_type", "guided_decoding_guide"
KINDS = ("json", "json_schema", "regex", "ebnf_grammar")

LONGEST_GUIDE = 256 * 1024
"""Bytes; what takes a guide apart needs time that grows with them."""

DEEPEST_GUIDE = 200
"""Brackets within each other. Each takes stack space of what takes a guide apart, and a thousand
were measured to overflow it (xgrammar of openvino_genai 2026.4)."""


_LINE_ENDS = "\r\n"
# What begins a part whose brackets are characters, and what ends it.
_LITERALS: Mapping[str, Mapping[str, str]] = {
    "json_schema": {'"': '"'},
    "regex": {"[": "]"},
    "ebnf_grammar": {'"': '"', "[": "]", "#": _LINE_ENDS},
}


class GuideError(ValueError):
    """A guide that no text can follow, or none at all; the text goes to the client as it is."""


def read_guide(tensors: Mapping[str, npt.NDArray[Any]]) -> tuple[str, str] | None:
    """Returns type and text of the guide of one request; None without one.

    An empty text counts as not given, and ``json``, which any JSON object or array follows, needs
    none.

    Args:
        tensors: The inputs of one request by name, among them :data:`KIND` and :data:`GUIDE`.

    Raises:
        GuideError: Saying what is wrong with the guide and what to send.
    """
    kind, text = _text(tensors, KIND), _text(tensors, GUIDE)
    if not kind:
        if text:
            raise GuideError(f"{GUIDE} needs {KIND}, one of {', '.join(KINDS)}")
        return None
    if kind not in KINDS:
        raise GuideError(f"{KIND} must be one of {', '.join(KINDS)}, not {kind[:40]!r}")
    if kind == "json":
        return kind, ""
    if not text:
        raise GuideError(f"{KIND} {kind} needs {GUIDE}, the {kind.replace('_', ' ')} itself")
    if len(text.encode()) > LONGEST_GUIDE:
        raise GuideError(
            f"{GUIDE} must not have more than {LONGEST_GUIDE:,} bytes, got {len(text.encode()):,}"
        )
    _check_expression(text, kind)
    if kind == "json_schema":
        _check_schema(text)
    return kind, text


def not_served(kind: str) -> str:
    """Says that this repository follows no guides, to a client that asks for a type of them."""
    return (
        f"{KIND} {kind} is not supported: GuidedDecoder is not set up in this repository; make it "
        "again with serve.guided_decoding: xgrammar in the recipe, or leave the guide out"
    )


def not_beside(name: str) -> str:
    """Says that an input which moves the text's end does not go with a guide."""
    return (
        f"{name} cannot be combined with a guide, which decides where the text may end; leave one "
        "of them out"
    )


def _text(tensors: Mapping[str, npt.NDArray[Any]], name: str) -> str:
    array = tensors.get(name)
    if array is None or array.size == 0:
        return ""
    if array.size != 1:
        raise GuideError(f"{name} must hold one text, got the shape {list(array.shape)}")
    value = array.reshape(-1)[0]
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise GuideError(f"{name} is not valid UTF-8: {error.reason}") from error


def _check_expression(text: str, kind: str) -> None:
    if "\0" in text:
        # xgrammar takes it for the end and follows a part, or ends with the process (of
        # openvino_genai 2026.4, in a schema's pattern).
        raise GuideError(f"{GUIDE} must not hold the character U+0000")
    if _depth(text, _LITERALS[kind]) > DEEPEST_GUIDE:
        raise GuideError(
            f"{GUIDE} must not have more than {DEEPEST_GUIDE} brackets within each other"
        )


def _depth(text: str, literals: Mapping[str, str]) -> int:
    """Counts brackets within each other; those in strings, classes and comments are characters."""
    depth = deepest = 0
    ends = ""
    characters = iter(text)
    for character in characters:
        if character == "\\" and ends != _LINE_ENDS:
            next(characters, None)
        elif ends:
            ends = "" if character in ends else ends
        elif character in literals:
            ends = literals[character]
        elif character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth = max(0, depth - 1)
    return deepest


def _check_schema(text: str) -> None:
    try:
        schema = json.loads(text, parse_constant=_number, parse_int=_number, parse_float=_number)
    except ValueError as error:
        raise GuideError(f"{GUIDE} must be JSON for the type json_schema: {error}") from error
    if not isinstance(schema, dict) and schema is not True:
        raise GuideError(f"{GUIDE} must be a JSON schema, which is an object, got {text[:40]}")
    for pattern in _patterns(schema):
        _check_expression(pattern, "regex")


def _number(text: str) -> float:
    """Refuses numbers that Python reads, and what makes a grammar of the schema does not."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is no finite number")
    return value


def _patterns(schema: Any) -> Iterator[str]:
    """Finds the regular expressions of a schema, wherever they are."""
    if isinstance(schema, list):
        for part in schema:
            yield from _patterns(part)
    elif isinstance(schema, dict):
        for name, part in schema.items():
            if name == "pattern" and isinstance(part, str):
                yield part
            if name == "patternProperties" and isinstance(part, dict):
                yield from part
            yield from _patterns(part)

"""The letter-by-letter reader of JSON objects against Python's own."""

from __future__ import annotations

import json
import random

import pytest

from pipeline.gateway.tools.json_scanner import DEEPEST, NotJsonError, ObjectScanner

SEEDS = [
    "{}",
    "{ }",
    '{"a": 1}',
    '{"a": -0.5e+10, "b": [], "c": [1, [2, {"d": null}]], "e": true, "f": false}',
    '{"name": "say", "arguments": {"text": "a } b \\" \\\\ \\u00e9 \\n {", "": ""}}',
    '{\n\t"naïve": "漢字 😀",\r\n "half": "\\ud83d" }',
    '{"twice": 1, "twice": {"x": 2}}',
]
LETTERS = '{}[]",:\\ \n\t01.-+eEutrfalsn\u00e9\x00'


def scanned(text: str) -> tuple[ObjectScanner, int | None]:
    """Where the object that begins a text ends; None where it does not, or is none."""
    scanner = ObjectScanner()
    try:
        return scanner, next((n for n, one in enumerate(text, 1) if scanner.take(one)), None)
    except NotJsonError:
        return scanner, None


def decoded(text: str) -> tuple[object, int | None]:
    """The same by Python's decoder, which takes NaN and Infinity besides."""
    try:
        value, end = json.JSONDecoder(parse_constant=_refuse).raw_decode(text)
    except ValueError:
        return None, None
    return (value, end) if isinstance(value, dict) else (None, None)


def _refuse(text: str) -> None:
    raise ValueError(text)


def test_an_object_ends_where_python_says() -> None:
    dice = random.Random(7)
    taken = {True: 0, False: 0}
    for _ in range(4000):
        text = dice.choice(SEEDS) + dice.choice(("", "}", " ", ", {"))
        for _ in range(dice.choice((0, 0, 1, 1, 2))):
            place = dice.randrange(len(text))
            text = text[:place] + dice.choice(LETTERS) + text[place + dice.choice((0, 1)) :]
        scanner, end = scanned(text)
        value, wanted = decoded(text)
        assert end == wanted, text
        taken[end is not None] += 1
        if end is not None:
            found = {name: json.loads(scanner.raw(name)) for name in scanner.members}
            assert found == value, text
    assert min(taken.values()) > 500, taken  # both kinds come up


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("{i", 2),
        ("[", 1),
        ('{"a" 1', 6),
        ('{"a": 01,', 9),
        ('{"a": tru}', 10),
        ('{"a": NaN', 7),
        ('{"a": "\n', 8),
        ('{"a": "\\x', 9),
        ('{"a": 1,}', 9),
        ('{"a": [1}', 9),
        ('{"a": - ', 8),
    ],
)
def test_what_is_no_json_is_known_at_once(text: str, wrong: int) -> None:
    scanner = ObjectScanner()
    for letter in text[: wrong - 1]:
        assert not scanner.take(letter)
    with pytest.raises(NotJsonError):
        scanner.take(text[wrong - 1])


def test_what_is_too_deep_is_none() -> None:
    def nested(levels: int) -> str:
        return '{"a":' + "[" * (levels - 1) + "]" * (levels - 1) + "}"

    assert scanned(nested(DEEPEST))[1] == len(nested(DEEPEST))
    assert scanned(nested(DEEPEST + 1))[1] is None

"""What a request may say of its text: types and shapes, before any grammar is made of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from model_repo.common.guides import (
    DEEPEST_GUIDE,
    GUIDE,
    KIND,
    LONGEST_GUIDE,
    GuideError,
    read_guide,
)

# getGuidedDecodingParamsFromTensors of TensorRT-LLM 1.2 (inflight_batcher_llm/src/utils.cc).
UPSTREAM_TYPES = {"json", "json_schema", "regex", "ebnf_grammar"}


def tensors(kind: Any = None, guide: Any = None) -> dict[str, np.ndarray]:
    given = {KIND: kind, GUIDE: guide}
    return {name: np.array([[value]], object) for name, value in given.items() if value is not None}


def test_nothing_given_is_no_guide() -> None:
    assert read_guide({}) is None
    assert read_guide(tensors(b"", b"")) is None


@pytest.mark.parametrize("kind", sorted(UPSTREAM_TYPES - {"json"}))
def test_a_guide_is_read(kind: str) -> None:
    assert read_guide(tensors(kind.encode(), '{"a": "ä"}'.encode())) == (kind, '{"a": "ä"}')


def test_json_needs_no_guide_and_takes_no_notice_of_one() -> None:
    assert read_guide(tensors(b"json")) == ("json", "")
    assert read_guide(tensors(b"json", b"{}")) == ("json", "")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (tensors(b"jsonschema", b"{}"), "must be one of json, json_schema, regex, ebnf_grammar"),
        (tensors(None, b"{}"), "guided_decoding_guide needs guided_decoding_guide_type"),
        (tensors(b"regex"), "regex needs guided_decoding_guide, the regex itself"),
        (tensors(b"ebnf_grammar", b""), "needs guided_decoding_guide, the ebnf grammar itself"),
        (tensors(b"regex", b"\xff"), "guided_decoding_guide is not valid UTF-8"),
        (tensors(b"json_schema", b'{"type":'), "must be JSON for the type json_schema: "),
        (tensors(b"json_schema", b"[1]"), "must be a JSON schema, which is an object"),
        (tensors(b"json_schema", b"false"), "must be a JSON schema, which is an object"),
        (tensors(b"regex", b"a" * (LONGEST_GUIDE + 1)), "must not have more than 262,144 bytes"),
        (tensors(b"regex", b"(" * (DEEPEST_GUIDE + 1)), "more than 200 brackets within each other"),
        (tensors(b"regex", b"a\0b"), r"must not hold the character U\+0000"),
        (
            tensors(b"json_schema", rb'{"pattern": "\u0000"}'),
            r"must not hold the character U\+0000",
        ),
        (tensors(b"json_schema", b'{"minimum": 1e400}'), "JSON .*: 1e400 is no finite number"),
        (tensors(b"json_schema", b'{"const": NaN}'), "JSON .*: NaN is no finite number"),
        (tensors(b"json_schema", b'{"const": ' + b"9" * 5000 + b"}"), "9999 is no finite number$"),
        ({KIND: np.array([[b"json", b"json"]])}, r"must hold one text, got the shape \[1, 2\]"),
    ],
)
def test_a_guide_that_would_be_ignored_or_do_harm_is_refused(
    given: dict[str, np.ndarray], reason: str
) -> None:
    with pytest.raises(GuideError, match=reason):
        read_guide(given)


def test_brackets_beside_each_other_and_escaped_ones_do_not_count() -> None:
    many = rb"(a)[b]{1}" * 500 + rb"\(\[\{" * 500
    assert read_guide(tensors(b"regex", many)) == ("regex", many.decode())


DEEP = DEEPEST_GUIDE + 1


@pytest.mark.parametrize(
    ("kind", "guide"),
    [
        ("json_schema", '{"title": "' + "}" * 2000 + '", "x": ' + "[" * 2000 + "]" * 2000 + "}"),
        ("json_schema", '{"title": "\\"' + "}" * DEEP + '", "x": ' + "[" * DEEP + "]" * DEEP + "}"),
        ("json_schema", '{"pattern": "' + "([)]" * DEEP + ")" * DEEP + '"}'),
        ("json_schema", '{"patternProperties": {"' + "(" * DEEP + ")" * DEEP + '": {}}}'),
        ("regex", "([)]" * DEEP + ")" * DEEP),
        ("regex", r"([)\]]" * DEEP + ")" * DEEP),
        ("ebnf_grammar", "# " + ")" * DEEP + "\nroot ::= " + "(" * DEEP + '"x"' + ")" * DEEP),
        ("ebnf_grammar", "# \\\nroot ::= " + "(" * DEEP + '"x"' + ")" * DEEP),
        ("ebnf_grammar", "root ::= " + '("))" ' * DEEP + ")" * DEEP),
    ],
)
def test_brackets_that_are_characters_hide_no_depth(kind: str, guide: str) -> None:
    """Each is one of brackets within each other for whoever takes it apart."""
    with pytest.raises(GuideError, match="more than 200 brackets within each other"):
        read_guide(tensors(kind.encode(), guide.encode()))


@pytest.mark.parametrize(
    ("kind", "guide"),
    [
        ("regex", r"[([{]" * DEEP),
        ("json_schema", '{"const": "' + "(" * DEEP + '"}'),
        ("ebnf_grammar", 'root ::= "' + "(" * DEEP + '" # ' + "(" * DEEP),
    ],
)
def test_brackets_that_are_characters_make_no_depth(kind: str, guide: str) -> None:
    assert read_guide(tensors(kind.encode(), guide.encode())) == (kind, guide)

"""The options of ``generate`` that say what its text must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.guide import read_guide
from pipeline.errors import UsageError

NOTHING: dict[str, Any] = {
    "json_object": False,
    "json_schema": None,
    "regex": None,
    "grammar": None,
}


def test_without_an_option_there_is_no_guide() -> None:
    assert read_guide(**NOTHING) == (None, None)


def test_each_option_is_one_of_upstreams_types(tmp_path: Path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "answer.ebnf"
    schema.write_text('{"type": "object"}')
    grammar.write_text('root ::= "yes"')
    assert read_guide(**NOTHING | {"json_object": True}) == ("json", None)
    assert read_guide(**NOTHING | {"json_schema": schema}) == ("json_schema", schema.read_bytes())
    assert read_guide(**NOTHING | {"regex": "a+"}) == ("regex", "a+")
    assert read_guide(**NOTHING | {"grammar": grammar}) == ("ebnf_grammar", grammar.read_bytes())


def test_two_guides_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="--json-object and --regex exclude each other"):
        read_guide(**NOTHING | {"json_object": True, "regex": "a+"})


@pytest.mark.parametrize(
    ("option", "content", "told"),
    [
        ("json_schema", None, r"s\.txt: the file of --json-schema cannot be read\. No such file"),
        ("grammar", None, r"s\.txt: the file of --grammar cannot be read\. No such file"),
        ("json_schema", b'{\n"type": }', r"s\.txt:2: the file of --json-schema is not JSON\. Exp"),
        ("json_schema", b"\xff", r"s\.txt: the file of --json-schema is not UTF-8"),
        ("json_schema", b" \n", r"s\.txt: the file of --json-schema is empty"),
        ("grammar", b"", r"s\.txt: the file of --grammar is empty"),
    ],
)
def test_a_wrong_file_is_named_with_what_it_should_be(
    tmp_path: Path, option: str, content: bytes | None, told: str
) -> None:
    path = tmp_path / "s.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=told) as caught:
        read_guide(**NOTHING | {option: path})
    assert caught.value.fix

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


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none.json"
    with pytest.raises(UsageError, match="the file of --json-schema cannot be read") as caught:
        read_guide(**NOTHING | {"json_schema": missing})
    assert str(missing) in str(caught.value)

"""The schemas that force calls and answers, as the library reads them that guides TensorRT-LLM."""

from __future__ import annotations

import json
from typing import Any

import pytest
import xgrammar
from xgrammar.testing import _is_grammar_accept_string as accepts

from pipeline.gateway.tools.choice import response_guide
from pipeline.gateway.tools.schemas import calls_schema
from tests.unit.gateway.test_tool_choice import CALLS, TOOLS


@pytest.fixture(scope="module", params=[True, False], ids=["several", "one"])
def grammar(request: pytest.FixtureRequest) -> tuple[Any, bool]:
    schema = calls_schema(TOOLS, "arguments", several=request.param)
    return xgrammar.Grammar.from_json_schema(json.dumps(schema)), request.param


@pytest.mark.parametrize(
    ("calls", "fits"),
    # A constant that is an object is written without spaces there.
    [(calls, fits) for calls, fits in CALLS if "no/schema" not in json.dumps(calls)],
)
def test_a_guided_text_is_a_list_of_calls(
    calls: Any, fits: bool, grammar: tuple[Any, bool]
) -> None:
    read, several = grammar
    wanted = fits and (several or len(calls) == 1)
    assert accepts(read, json.dumps(calls)) is wanted


def test_a_guided_object_is_no_list() -> None:
    guide = response_guide({"type": "json_object"}, guided=True)
    assert guide is not None
    read = xgrammar.Grammar.from_json_schema(guide.schema)
    assert accepts(read, '{"a": [1, {"b": null}]}')
    assert not accepts(read, "[1]")

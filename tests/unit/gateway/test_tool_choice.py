"""What a request may ask of its answer, and the schemas that make an answer what it asked for."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from pipeline.gateway.tools.choice import (
    AnswerPlan,
    Offers,
    ToolsRefused,
    plan_answer,
    response_guide,
)
from pipeline.gateway.tools.forms import FORMS
from pipeline.gateway.tools.schemas import calls_schema

jsonschema = pytest.importorskip("jsonschema")

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Says the weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now"}}
# A schema that refers to itself, from its root and from its definitions.
TREE: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "plant",
        "parameters": {
            "$defs": {
                "leaf": {
                    "type": "object",
                    "properties": {"$ref": {"type": "integer"}, "below": {"$ref": "#/$defs/leaf"}},
                    "required": ["$ref"],
                    "additionalProperties": False,
                }
            },
            "type": "object",
            "properties": {
                "leaf": {"$ref": "#/$defs/leaf"},
                "again": {"$ref": "#"},
                "kind": {"const": {"$ref": "#/no/schema"}},
            },
            "additionalProperties": False,
        },
    },
}
TOOLS = [WEATHER, NOW, TREE]
CALLS: list[tuple[Any, bool]] = [
    ([{"name": "get_weather", "arguments": {"city": "Rome"}}], True),
    ([{"name": "get_weather", "arguments": {"city": "Rome", "unit": "C"}}], True),
    ([{"name": "now", "arguments": {}}, {"name": "now", "arguments": {}}], True),
    ([{"name": "plant", "arguments": {"leaf": {"$ref": 1, "below": {"$ref": 2}}}}], True),
    ([{"name": "plant", "arguments": {"again": {"again": {}}}}], True),
    ([{"name": "plant", "arguments": {"kind": {"$ref": "#/no/schema"}}}], True),
    ([], False),
    ({}, False),
    (None, False),
    ([{}], False),
    ({"name": "now", "arguments": {}}, False),
    ([{"name": "now"}], False),
    ([{"name": "now", "arguments": None}], False),
    ([{"name": "now", "arguments": {"city": "Rome"}}], False),
    ([{"name": "now", "arguments": {}, "more": 1}], False),
    ([{"name": "later", "arguments": {}}], False),
    ([{"name": "get_weather", "arguments": {}}], False),
    ([{"name": "get_weather", "arguments": {"city": 5}}], False),
    ([{"name": "get_weather", "arguments": {"city": "Rome", "unit": "K"}}], False),
    ([{"name": "now", "arguments": {}}, {}], False),
    ([{"name": "plant", "arguments": {"leaf": {"below": {}}}}], False),
    ([{"name": "plant", "arguments": {"again": {"leaf": 1}}}], False),
]
GUIDED = Offers(FORMS["hermes"], guided=True)


def planned(offers: Offers = GUIDED, **request: Any) -> AnswerPlan:
    return plan_answer(request, offers)


@pytest.mark.parametrize(("calls", "fits"), CALLS)
def test_a_list_of_calls_follows_the_schemas_of_its_tools(calls: Any, fits: bool) -> None:
    schema = calls_schema(TOOLS, "arguments", several=True)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert jsonschema.Draft202012Validator(schema).is_valid(calls) is fits


def test_a_schema_leaves_the_tools_as_they_are_and_may_ask_for_one_call() -> None:
    before = copy.deepcopy(TOOLS)
    schema = calls_schema(TOOLS, "parameters", several=False)
    assert before == TOOLS
    validator = jsonschema.Draft202012Validator(schema)
    one = {"name": "now", "parameters": {}}
    assert validator.is_valid([one])
    assert not validator.is_valid([one, one])


class TestChoice:
    def test_without_tools_nothing_is_done(self) -> None:
        for request in ({}, {"tools": []}, {"tools": None, "tool_choice": "auto"}):
            assert planned(**request) == AnswerPlan()

    def test_none_leaves_the_tools_out(self) -> None:
        plan = planned(tools=TOOLS, tool_choice="none")
        assert (plan.tools, plan.guide) == (None, None)
        text = '<tool_call>{"name": "now"}</tool_call>'
        assert [part.text for part in plan.reader().feed(text)] == [text]

    @pytest.mark.parametrize("choice", [{}, {"tool_choice": "auto"}, {"tool_choice": None}])
    def test_auto_is_the_default_where_there_are_tools(self, choice: dict[str, Any]) -> None:
        plan = planned(Offers(FORMS["mistral"]), tools=TOOLS, **choice)
        assert (plan.choice, plan.tools, plan.guide) == ("auto", tuple(TOOLS), None)
        assert "[TOOL_CALLS]" in plan.markers

    def test_required_asks_for_a_list_of_calls(self) -> None:
        plan = planned(tools=TOOLS, tool_choice="required")
        assert plan.guide is not None
        assert plan.guide.inputs["guided_decoding_guide_type"] == "json_schema"
        schema = json.loads(plan.guide.inputs["guided_decoding_guide"])
        assert schema == calls_schema(TOOLS, "arguments", several=True)
        assert plan.tools == tuple(TOOLS)
        assert plan.markers == ()

    def test_required_uses_the_words_of_the_model(self) -> None:
        offers = Offers(FORMS["llama3"], guided=True)
        plan = planned(offers, tools=[NOW], tool_choice="required", parallel_tool_calls=False)
        assert plan.guide is not None
        assert json.loads(plan.guide.schema) == calls_schema([NOW], "parameters", several=False)

    def test_a_named_function_asks_for_its_arguments(self) -> None:
        choice = {"type": "function", "function": {"name": "get_weather"}}
        plan = planned(tools=TOOLS, tool_choice=choice)
        assert plan.guide is not None
        assert json.loads(plan.guide.schema) == WEATHER["function"]["parameters"]
        started, _ = plan.reader().feed("{")
        assert started.name == "get_weather"

    def test_a_function_without_parameters_takes_an_empty_object(self) -> None:
        choice = {"type": "function", "function": {"name": "now"}}
        guide = planned(tools=[NOW], tool_choice=choice).guide
        assert guide is not None
        validator = jsonschema.Draft202012Validator(json.loads(guide.schema))
        assert validator.is_valid({})
        assert not validator.is_valid({"a": 1})
        assert not validator.is_valid([])

    def test_forced_calls_need_no_form(self) -> None:
        assert planned(Offers(guided=True), tools=TOOLS, tool_choice="required").guide


class TestRefused:
    @pytest.mark.parametrize(
        ("request_", "param", "says"),
        [
            ({"tools": {}}, "tools", "must be a list, not dict"),
            ({"tools": "x"}, "tools", "must be a list, not str"),
            ({"tools": [NOW] * 129}, "tools", "129 entries, 128 are the most"),
            ({"tools": [NOW, NOW]}, "tools[1]", "two tools have the name now"),
            ({"tools": ["x"]}, "tools[0].type", "no function"),
            ({"tools": [{"type": "web_search"}]}, "tools[0].type", "no function"),
            ({"tools": [{"type": "function"}]}, "tools[0].function", "must be an object"),
            (
                {"tools": [{"type": "function", "function": {"name": "a b"}}]},
                "tools[0].function.name",
                "1 to 64 letters",
            ),
            (
                {"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]},
                "tools[0].function.parameters",
                "must be a JSON schema",
            ),
            ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
            ({"tools": [], "tool_choice": "required"}, "tool_choice", "there are no tools"),
            ({"tools": [NOW], "tool_choice": "any"}, "tool_choice", "must be none, auto, required"),
            ({"tools": [NOW], "tool_choice": 5}, "tool_choice", "must be none, auto, required"),
            (
                {"tools": [NOW], "tool_choice": {"type": "allowed_tools", "allowed_tools": {}}},
                "tool_choice",
                "must be none, auto, required",
            ),
            (
                {"tool_choice": {"type": "function", "function": {"name": "now"}}},
                "tool_choice",
                "names a function that tools does not have",
            ),
            (
                {
                    "tools": [WEATHER],
                    "tool_choice": {"type": "function", "function": {"name": "now"}},
                },
                "tool_choice",
                "names a function that tools does not have",
            ),
            (
                {"tools": [NOW], "parallel_tool_calls": "no"},
                "parallel_tool_calls",
                "must be true or false",
            ),
            ({"functions": []}, "functions", "Use tools in its place"),
            ({"function_call": "auto"}, "function_call", "Use tool_choice in its place"),
            (
                {"tools": [NOW], "response_format": {"type": "json_object"}},
                "response_format",
                "does not go with tools unless tool_choice is none",
            ),
            ({"response_format": "json"}, "response_format", "must have the type text"),
            ({"response_format": {"type": "xml"}}, "response_format", "must have the type text"),
            (
                {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
                "response_format.json_schema.schema",
                "needs json_schema.schema",
            ),
            (
                {
                    "response_format": {
                        "type": "json_schema",
                        "json_schema": {"schema": {"maximum": float("inf")}},
                    }
                },
                "response_format.json_schema.schema",
                "is no JSON",
            ),
        ],
    )
    def test_what_is_wrong_is_named(self, request_: dict[str, Any], param: str, says: str) -> None:
        with pytest.raises(ToolsRefused, match=says) as caught:
            plan_answer(request_, GUIDED)
        assert caught.value.param == param

    @pytest.mark.parametrize(
        ("request_", "param"),
        [
            ({"tools": TOOLS, "tool_choice": "required"}, "tool_choice"),
            (
                {
                    "tools": TOOLS,
                    "tool_choice": {"type": "function", "function": {"name": "now"}},
                },
                "tool_choice",
            ),
            ({"response_format": {"type": "json_object"}}, "response_format"),
            (
                {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
                "response_format",
            ),
        ],
    )
    def test_what_needs_guides_is_refused_without_them(
        self, request_: dict[str, Any], param: str
    ) -> None:
        with pytest.raises(ToolsRefused, match=r"serve\.guided_decoding: xgrammar") as caught:
            plan_answer(request_, Offers(FORMS["hermes"]))
        assert caught.value.param == param
        assert plan_answer(request_, GUIDED).guide

    def test_a_model_that_writes_no_calls_gets_no_tools(self) -> None:
        with pytest.raises(ToolsRefused, match=r"llama3, hermes, mistral") as caught:
            planned(Offers(guided=True), tools=TOOLS)
        assert caught.value.param == "tools"
        assert planned(Offers(), tools=TOOLS, tool_choice="none") == AnswerPlan()


class TestResponseFormat:
    def test_a_text_needs_no_guide(self) -> None:
        assert response_guide(None, guided=False) is None
        assert response_guide({"type": "text"}, guided=False) is None

    def test_any_object_is_an_object(self) -> None:
        guide = response_guide({"type": "json_object"}, guided=True)
        assert guide is not None
        validator = jsonschema.Draft202012Validator(json.loads(guide.schema))
        assert validator.is_valid({"a": [1]})
        assert not validator.is_valid([1])

    def test_a_schema_is_handed_on_as_it_is(self) -> None:
        schema = {"type": "object", "properties": {"größe": {"type": "integer"}}}
        wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        guide = response_guide(wanted, guided=True)
        assert guide is not None
        assert json.loads(guide.inputs["guided_decoding_guide"]) == schema

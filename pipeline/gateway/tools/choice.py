"""What a request wants of its answer: tools, ``tool_choice`` and ``response_format``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.gateway.tools.forms import FORMS, CallForm
from pipeline.gateway.tools.grammars import call_list
from pipeline.gateway.tools.reader import (
    LONGEST_CALL,
    CallReader,
    NamedCallReader,
    PlainReader,
    Reader,
)
from pipeline.gateway.tools.schemas import arguments_schema, calls_schema
from trtllm_client import InvalidRequest

MOST_TOOLS = 128
"""Tools of a request, as at OpenAI."""

NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
"""What a function may be called, as at OpenAI."""

_NAME = "1 to 64 letters, digits, - and _"
_FORCED = ("required", "named")
Choice = Literal["none", "auto", "required", "named"]


class ToolsRefused(InvalidRequest):
    """A request asks for tools or a format that it cannot have.

    Args:
        param: The parameter of the request, as OpenAI's errors name it.
        what: What is wrong with it.
        why: The cause.
        fix: What to do about it.
    """

    def __init__(
        self, param: str, what: str, *, why: str | None = None, fix: str | None = None
    ) -> None:
        self.param = param
        super().__init__(what, why=why, fix=fix)


@dataclass(frozen=True)
class Guide:
    """What a text must be.

    Attributes:
        schema: A JSON schema, as JSON.
    """

    schema: str

    @property
    def inputs(self) -> dict[str, str]:
        """The inputs of ``tensorrt_llm`` that ask for it, by their names on the wire."""
        return {
            "guided_decoding_guide_type": "json_schema",
            "guided_decoding_guide": self.schema,
        }


@dataclass(frozen=True)
class Offers:
    """What a served model can do.

    Attributes:
        form: How it writes calls; None where nobody knows.
        guided: Whether its engine guides decoding.
        longest_call: Bytes of a call; a longer one is content.
    """

    form: CallForm | None = None
    guided: bool = False
    longest_call: int = LONGEST_CALL


@dataclass(frozen=True)
class AnswerPlan:
    """What is done so that an answer is what its request wants.

    Attributes:
        choice: Whether there may be calls, or must be.
        tools: For the chat template; None where it gets none.
        guide: What the engine is to keep to, if anything.
        name: The function that has to be called, where the request names one.
        form: How the model writes calls.
        several: Whether there may be more than one call.
        longest_call: See :class:`Offers`.
    """

    choice: Choice = "none"
    tools: tuple[Mapping[str, Any], ...] | None = None
    guide: Guide | None = None
    name: str = ""
    form: CallForm | None = None
    several: bool = True
    longest_call: int = LONGEST_CALL

    @property
    def markers(self) -> tuple[str, ...]:
        """Special tokens whose text the reader needs."""
        return self.form.markers if self.choice == "auto" and self.form else ()

    def reader(self) -> Reader:
        """Returns what reads the text of one answer."""
        if self.choice == "named":
            return NamedCallReader(self.name)
        if self.choice == "required":
            return CallReader(
                call_list, "[", only_first=not self.several, longest=self.longest_call
            )
        if self.choice == "none" or self.form is None:
            return PlainReader()
        names = frozenset(tool["function"]["name"] for tool in self.tools or ())
        return CallReader(
            self.form.grammar(names),
            self.form.begins,
            separators=self.form.separators,
            only_first=not self.several,
            longest=self.longest_call,
        )

    def finish_reason(self, reason: str, calls: int) -> str:
        """Returns why an answer ended: ``tool_calls`` where it ended by itself and has some.

        A call that the request named is what it asked for and no decision of the model, so there it
        stays ``stop``, as at OpenAI.

        Args:
            reason: ``stop`` or ``length``.
            calls: Of the answer.
        """
        called = calls and self.choice != "named" and reason == "stop"
        return "tool_calls" if called else reason


def plan_answer(request: Mapping[str, Any], offers: Offers) -> AnswerPlan:
    """Decides how a request is answered.

    Args:
        request: The body of a chat request, or what of it is about tools and formats: ``tools``,
            ``tool_choice``, ``parallel_tool_calls``, ``response_format``.
        offers: What the served model can do.

    Raises:
        ToolsRefused: It has a wrong form, contradicts itself, or is not served here.
    """
    for old, new in (("functions", "tools"), ("function_call", "tool_choice")):
        if request.get(old) is not None:
            raise ToolsRefused(old, f"{old} is not supported", fix=f"Use {new} in its place")
    tools = _tools(request.get("tools"))
    choice, name = _choice(request.get("tool_choice"), tools)
    several = request.get("parallel_tool_calls")
    if several is not None and not isinstance(several, bool):
        raise ToolsRefused("parallel_tool_calls", "parallel_tool_calls must be true or false")
    guide = response_guide(request.get("response_format"), guided=offers.guided)
    if choice == "none":
        return AnswerPlan(guide=guide)
    if guide is not None:
        raise ToolsRefused(
            "response_format",
            f"response_format does not go with tools unless tool_choice is none; it is {choice}",
            why="A text that is guided to be JSON cannot be a call as the model writes them",
            fix='Leave one of them out, or send tool_choice "none"',
        )
    if choice in _FORCED:
        guide = _forced_guide(choice, name, tools, several is not False, offers)
    elif offers.form is None:
        raise ToolsRefused(
            "tools",
            "tools are not supported by this model",
            why="Its chat template teaches no form of calls that is known here "
            f"({', '.join(FORMS)})",
            fix="Leave tools out, or have the gateway started with the form that the model writes",
        )
    return AnswerPlan(
        choice, tools, guide, name, offers.form, several is not False, offers.longest_call
    )


def response_guide(wanted: Any, *, guided: bool) -> Guide | None:
    """Returns the guide that ``response_format`` asks for; None for a text.

    Args:
        wanted: ``{"type": "text"}``, ``{"type": "json_object"}``, or ``{"type": "json_schema",
            "json_schema": {"name": ..., "schema": {...}}}``; None counts as a text.
        guided: Whether the engine guides decoding.

    Raises:
        ToolsRefused: It is none of these, or the engine cannot do it.
    """
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind == "text":
        return None
    if kind not in ("json_object", "json_schema"):
        raise ToolsRefused(
            "response_format",
            "response_format must have the type text, json_object or json_schema",
            fix='Send {"type": "json_object"}, for example',
        )
    # The type json would take a list as well.
    guide = Guide('{"type": "object"}')
    if kind == "json_schema":
        described = wanted.get("json_schema")
        schema = described.get("schema") if isinstance(described, Mapping) else None
        if not isinstance(schema, Mapping):
            raise ToolsRefused(
                "response_format.json_schema.schema",
                "response_format of the type json_schema needs json_schema.schema, which is an "
                "object",
            )
        guide = Guide(_json(schema, "response_format.json_schema.schema"))
    _need_guides(guided, "response_format", f"response_format of the type {kind}")
    return guide


def _tools(given: Any) -> tuple[Mapping[str, Any], ...]:
    if given is None:
        return ()
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
        raise ToolsRefused("tools", f"tools must be a list, not {type(given).__name__}")
    if len(given) > MOST_TOOLS:
        raise ToolsRefused("tools", f"tools has {len(given)} entries, {MOST_TOOLS} are the most")
    names: set[str] = set()
    for number, tool in enumerate(given):
        name = _check_tool(f"tools[{number}]", tool)
        if name in names:
            raise ToolsRefused(f"tools[{number}]", f"two tools have the name {name}")
        names.add(name)
    return tuple(given)


def _check_tool(where: str, tool: Any) -> str:
    """Refuses what is no function; returns its name."""
    if not isinstance(tool, Mapping) or tool.get("type") != "function":
        raise ToolsRefused(
            f"{where}.type", f"{where} is no function", fix='Its type must be "function"'
        )
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise ToolsRefused(f"{where}.function", f"{where}.function must be an object")
    name = function.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ToolsRefused(f"{where}.function.name", f"{where}.function.name must be {_NAME}")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise ToolsRefused(
            f"{where}.function.parameters",
            f"{where}.function.parameters must be a JSON schema, which is an object",
        )
    return name


def _choice(given: Any, tools: Sequence[Mapping[str, Any]]) -> tuple[Choice, str]:
    """``tool_choice``, and the function that it names."""
    if given is None:
        return ("auto" if tools else "none"), ""
    if given == "none":
        return "none", ""
    if given in ("auto", "required"):
        if not tools and given == "required":
            raise ToolsRefused("tool_choice", f"tool_choice is {given}, and there are no tools")
        return (given if tools else "none"), ""
    function = given.get("function") if isinstance(given, Mapping) else None
    named = isinstance(given, Mapping) and given.get("type") == "function"
    name = function.get("name") if named and isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise ToolsRefused(
            "tool_choice",
            "tool_choice must be none, auto, required or a function",
            fix='Name a function as {"type": "function", "function": {"name": "get_weather"}}',
        )
    if all(tool["function"]["name"] != name for tool in tools):
        raise ToolsRefused("tool_choice", "tool_choice names a function that tools does not have")
    return "named", name


def _forced_guide(
    choice: Choice, name: str, tools: Sequence[Mapping[str, Any]], several: bool, offers: Offers
) -> Guide:
    _need_guides(offers.guided, "tool_choice", f"a tool_choice that is {choice}")
    if choice == "named":
        tool = next(tool for tool in tools if tool["function"]["name"] == name)
        return Guide(_json(arguments_schema(tool), "tools"))
    member = offers.form.arguments if offers.form else "arguments"
    return Guide(_json(calls_schema(tools, member, several=several), "tools"))


def _need_guides(guided: bool, param: str, what: str) -> None:
    if not guided:
        raise ToolsRefused(
            param,
            f"{what} is not supported by this model",
            why="It needs guided decoding, which the served repository was made without",
            fix="Make the repository with serve.guided_decoding: xgrammar in the recipe, or leave "
            f"{param} out",
        )


def _json(schema: Mapping[str, Any], param: str) -> str:
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise ToolsRefused(param, f"{param} is no JSON: {error}") from error

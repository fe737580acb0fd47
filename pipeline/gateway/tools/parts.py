"""What an answer consists of, as it comes; and the same as OpenAI's JSON."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Content:
    """Text for the reader of the answer; never empty."""

    text: str


@dataclass(frozen=True)
class CallStarted:
    """A call begins.

    Attributes:
        index: Of the call in its answer, from 0.
        id: Unique, for the answer of the tool to name.
        name: Of the function.
    """

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """More of a call's arguments.

    Attributes:
        index: Of the call.
        text: JSON of an object, or the next piece of it.
    """

    index: int
    text: str


Part = Content | CallStarted | CallArguments


def new_call_id() -> str:
    """Returns an id that no other call has."""
    return f"call_{secrets.token_hex(12)}"


def delta_of(part: Part) -> dict[str, Any]:
    """Returns the ``delta`` of a chunk of a stream (OpenAI's ``ChoiceDelta``)."""
    if isinstance(part, Content):
        return {"content": part.text}
    if isinstance(part, CallArguments):
        call: dict[str, Any] = {"index": part.index, "function": {"arguments": part.text}}
    else:
        call = {
            "index": part.index,
            "id": part.id,
            "type": "function",
            "function": {"name": part.name, "arguments": ""},
        }
    return {"tool_calls": [call]}


def message_of(parts: Iterable[Part]) -> dict[str, Any]:
    """Returns the whole message of an answer (OpenAI's ``ChatCompletionMessage``).

    ``content`` is null where there are calls and no text; ``tool_calls`` is there with calls only.
    """
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, Content):
            texts.append(part.text)
        elif isinstance(part, CallStarted):
            function = {"name": part.name, "arguments": ""}
            calls.append({"id": part.id, "type": "function", "function": function})
        else:
            calls[part.index]["function"]["arguments"] += part.text
    content = "".join(texts)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if calls and not content else content,
    }
    return message | ({"tool_calls": calls} if calls else {})

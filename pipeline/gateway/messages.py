"""The messages of a chat as a template takes them: texts alone, roles that it knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.gateway.errors import refused

# What templates call it; OpenAI renamed it for its newer models.
_ROLES = {"developer": "system"}
_KNOWN = ("system", "developer", "user", "assistant", "tool")


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns messages with one text each in the place of parts.

    Args:
        messages: Of a request.

    Raises:
        ApiError: One has no role, an unknown one, or content that is no text.
    """
    if not messages:
        raise refused("messages is empty: give at least one.", "messages")
    return [_plain(message, f"messages[{place}]") for place, message in enumerate(messages)]


def _plain(message: Mapping[str, Any], param: str) -> dict[str, Any]:
    role = message.get("role")
    if role not in _KNOWN:
        raise refused(f"{param}.role must be one of {', '.join(_KNOWN)}.", f"{param}.role")
    made = {name: value for name, value in message.items() if value is not None}
    made["role"] = _ROLES.get(role, role)
    calls = made.get("tool_calls")
    if calls is not None:
        if role != "assistant":
            raise refused(f"{param}.tool_calls is for an assistant's message.", param)
        _check_calls(calls, f"{param}.tool_calls")
    content = message.get("content")
    if content is None and made.get("refusal"):
        content = made["refusal"]
    if content is None and not calls:
        raise refused(f"{param}.content is missing.", f"{param}.content")
    if content is not None:
        made["content"] = _text(content, f"{param}.content")
    return made


def _text(content: Any, param: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise refused(f"{param} must be a text, or a list of parts.", param)
    texts = []
    for place, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get(kind) if isinstance(part, dict) and kind in ("text", "refusal") else None
        if not isinstance(text, str):
            raise refused(
                f"{param}[{place}] must be a part of the type text: this model reads no images, "
                "sounds or files.",
                f"{param}[{place}]",
            )
        texts.append(text)
    return "\n".join(texts)


def _check_calls(calls: Any, param: str) -> None:
    for place, call in enumerate(calls if isinstance(calls, list) and calls else [None]):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            where = f"{param}[{place}]"
            raise refused(f"{where} must be an object with a function that has a name.", where)

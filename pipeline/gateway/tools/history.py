"""Calls of earlier turns, as chat templates want them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.gateway.tools.forms import CallForm

SHORT = 9
_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def with_calls(
    messages: Sequence[Mapping[str, Any]], form: CallForm | None
) -> list[dict[str, Any]]:
    """Returns a conversation whose calls a template can write.

    OpenAI's arguments are a text with JSON; templates write an object as JSON themselves. Mistral's
    templates refuse ids that are not nine letters and digits, so others are replaced by such, the
    same ones wherever they come up.

    Args:
        messages: As the client sent them.
        form: The model's.
    """
    short = form is not None and form.short_ids
    return [_message(message, short=short) for message in messages]


def _message(message: Mapping[str, Any], *, short: bool) -> dict[str, Any]:
    changed = dict(message)
    calls = changed.get("tool_calls")
    if isinstance(calls, Sequence) and not isinstance(calls, str):
        changed["tool_calls"] = [
            _call(call, short=short) if isinstance(call, Mapping) else call for call in calls
        ]
    if short and isinstance(changed.get("tool_call_id"), str):
        changed["tool_call_id"] = short_id(changed["tool_call_id"])
    return changed


def _call(call: Mapping[str, Any], *, short: bool) -> dict[str, Any]:
    changed = dict(call)
    if short and isinstance(changed.get("id"), str):
        changed["id"] = short_id(changed["id"])
    function = changed.get("function")
    if isinstance(function, Mapping) and isinstance(function.get("arguments"), str):
        try:
            arguments = json.loads(function["arguments"])
        except (ValueError, RecursionError):
            # Whatever a model wrote then is shown to it again as it was.
            return changed
        if isinstance(arguments, dict):
            changed["function"] = {**function, "arguments": arguments}
    return changed


def short_id(name: str) -> str:
    """Returns nine letters and digits that stand for an id; one that is such stays as it is."""
    if len(name) == SHORT and name.isascii() and name.isalnum():
        return name
    number = int.from_bytes(hashlib.sha256(name.encode("utf-8", "replace")).digest()[:8], "big")
    letters = ""
    for _ in range(SHORT):
        number, place = divmod(number, len(_LETTERS))
        letters += _LETTERS[place]
    return letters

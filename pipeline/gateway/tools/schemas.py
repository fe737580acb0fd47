"""JSON schemas that a guide follows so that an answer is a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_DATA = frozenset(("const", "default", "enum", "examples"))
"""Keywords whose values are no schemas."""
_NAMED = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"))
"""Keywords whose values are schemas by names of the author's."""
NO_ARGUMENTS: Mapping[str, Any] = {
    "type": "object",
    "properties": {},
    "additionalProperties": False,
}


def arguments_schema(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the schema of a tool's arguments; an object without members where it has none.

    Args:
        tool: As in a request.
    """
    return tool["function"].get("parameters") or NO_ARGUMENTS


def calls_schema(
    tools: Sequence[Mapping[str, Any]], arguments: str, *, several: bool
) -> dict[str, Any]:
    """Returns the schema of a list of calls, at least one.

    Each tool's schema is put under ``$defs``, and its references to itself follow it there.

    Args:
        tools: As in a request.
        arguments: The member that holds a call's arguments.
        several: Whether there may be more than one call.
    """
    definitions: dict[str, Any] = {}
    calls = []
    for tool in tools:
        name = tool["function"]["name"]
        definitions[name] = _moved(arguments_schema(tool), f"#/$defs/{name}")
        calls.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": name},
                    arguments: {"$ref": f"#/$defs/{name}"},
                },
                "required": ["name", arguments],
                "additionalProperties": False,
            }
        )
    schema: dict[str, Any] = {
        "type": "array",
        "items": calls[0] if len(calls) == 1 else {"anyOf": calls},
        "minItems": 1,
    }
    return schema | ({} if several else {"maxItems": 1}) | {"$defs": definitions}


def _moved(schema: Any, root: str, *, names: bool = False) -> Any:
    """A schema whose references begin at another root."""
    if isinstance(schema, list):
        return [_moved(part, root) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {}
    for key, value in schema.items():
        if not names and key == "$ref" and isinstance(value, str) and value.startswith("#"):
            moved[key] = root + value[1:]
        elif not names and key in _DATA:
            moved[key] = value
        else:
            moved[key] = _moved(value, root, names=not names and key in _NAMED)
    return moved

"""The parameters of a model's config.pbtxt, read strictly.

Anything but ``true`` and ``false`` is rejected where a flag is meant, rather than guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping


def read_parameters(args: Mapping[str, str]) -> dict[str, str]:
    """Parameter name to ``string_value``; empty ones, which mean the default, are left out.

    Args:
        args: What Triton passes to ``initialize``.
    """
    parameters = json.loads(args["model_config"]).get("parameters", {})
    values = {name: value["string_value"] for name, value in parameters.items()}
    return {name: value for name, value in values.items() if value}


def flag(parameters: Mapping[str, str], name: str, default: bool, other: str = "") -> bool:
    """A boolean parameter; upstream accepts true, false, 1 and 0.

    Args:
        other: What else may be written, for the error.

    Raises:
        ValueError: It is something else.
    """
    text = parameters.get(name, "").lower()
    if text not in ("", "true", "false", "1", "0"):
        raise ValueError(
            f"config.pbtxt: the parameter {name} is {text!r}; use {other}true or false"
        )
    return text in ("true", "1") if text else default


def number(parameters: Mapping[str, str], name: str, default: int) -> int:
    """A parameter that is a whole number of at least 0.

    Raises:
        ValueError: It is something else.
    """
    text = parameters.get(name, "")
    if text and not text.isdecimal():
        raise ValueError(f"config.pbtxt: the parameter {name} is {text!r}; use a whole number")
    return int(text) if text else default

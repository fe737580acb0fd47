"""How the status of an error gets from a model to the model that called it.

Triton 2.51 hands on an error's text and makes INTERNAL of its status, so that whoever sent a wrong
request would read that the server is at fault (HTTP 500). A model that calls another asks for the
status with a parameter, and gets it in front of the text. Other backends do not know the parameter.
"""

from __future__ import annotations

import json
import re
from typing import Any

ASKED = "triton_error_status"
"""Begins as Triton's own parameters do, which nobody's input is called."""

_TOLD = re.compile(r"\[([A-Z_]+)\] (.*)", re.DOTALL)


def asks(request: Any) -> bool:
    """Whether a ``pb_utils.InferenceRequest`` asks for the status of an error."""
    try:
        return ASKED in json.loads(request.parameters() or "{}")
    except UnicodeDecodeError:
        return False  # no model made these


def told(message: str, status: str) -> str:
    """Puts a status, a name of ``pb_utils.TritonError``, in front of an error's text."""
    return f"[{status}] {message}"


def heard(message: str) -> tuple[str, str | None]:
    """Returns an error's text and, where one was told, its status."""
    found = _TOLD.fullmatch(message)
    return (found[2], found[1]) if found else (message, None)

"""What a client is told of a failure that is nobody's request: a text of words, never Python's.

The text of an exception says what the server is made of and where it lies, and helps no client; the
whole traceback is in the server's log, under the number that the client was told.
"""

from __future__ import annotations

import traceback
import uuid
from typing import Any

import triton_python_backend_utils as pb_utils

NOT_TEXT = "invalid request id: it is not valid UTF-8"


def unexpected(error: BaseException, where: str = "") -> str:
    """Logs an exception that no code foresaw, and returns what to tell the client.

    Args:
        error: The exception.
        where: What was being done, for the log.
    """
    number = uuid.uuid4().hex[:12]
    told = "".join(traceback.format_exception(error)).rstrip()
    pb_utils.Logger.log_error(f"failure {number}{f', {where}' if where else ''}: {told}")
    return f"the request failed inside the server, whose log has the reason (failure {number})"


def id_of(request: Any) -> str | None:
    """A request's id; None for one that is not UTF-8, which Triton's HTTP lets through."""
    try:
        return str(request.request_id())
    except UnicodeDecodeError:
        return None

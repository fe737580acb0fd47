"""What goes wrong, in OpenAI's shape and with its status."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from trtllm_client import (
    CallRestricted,
    Cancelled,
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    InvalidRequest,
    ServerBusy,
)

_LOG = logging.getLogger(__name__)

RETRY_AFTER_S = 1

INVALID, SERVER = "invalid_request_error", "server_error"

# Inputs of the wire whose names differ from those of a request here.
_WIRE_NAMES = {
    "runtime_top_p": "top_p",
    "runtime_top_k": "top_k",
    "request_output_len": "max_tokens",
    "guided_decoding_guide_type": "response_format",
    "guided_decoding_guide": "response_format",
    "return_prompt_log_probs": "echo",
    "return_log_probs": "logprobs",
    **{
        name: name
        for name in (
            "presence_penalty",
            "frequency_penalty",
            "repetition_penalty",
            "temperature",
            "min_tokens",
            "seed",
        )
    },
}
_WIRE_NAME = re.compile(rf"\b({'|'.join(_WIRE_NAMES)})\b")


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: Of HTTP.
        message: One paragraph for whoever sent the request.
        kind: OpenAI's ``type``, such as ``invalid_request_error``.
        param: The part of the request that is wrong.
        code: OpenAI's ``code``, such as ``context_length_exceeded``.
        retry_after: Seconds after which the same request may work.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after = retry_after

    def body(self, request_id: str) -> dict[str, Any]:
        """Returns OpenAI's error object, with the request's id besides.

        Args:
            request_id: The id of the request that failed.
        """
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
                "request_id": request_id,
            }
        }

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers that go with it."""
        headers = {}
        if self.retry_after is not None:
            headers["retry-after"] = str(self.retry_after)
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.status == 408:
            # What is left of the body may come for ever.
            headers["connection"] = "close"
        return headers


def refused(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Makes the error for a request that is wrong (400).

    Args:
        message: What is wrong and what to send.
        param: The part of the request.
        code: OpenAI's code.
    """
    return ApiError(400, message, param=param, code=code)


def draining() -> ApiError:
    """Makes the error for a request that comes while the gateway is stopping (503)."""
    return ApiError(
        503,
        "The gateway is stopping and takes no new requests. Ask again.",
        kind=SERVER,
        code="draining",
        retry_after=RETRY_AFTER_S,
    )


def cut_off() -> ApiError:
    """Makes the error for an answer that the gateway does not wait for any more (503)."""
    return ApiError(
        503,
        "The gateway stopped before the answer was complete. Ask again.",
        kind=SERVER,
        code="draining",
        retry_after=RETRY_AFTER_S,
    )


def busy(message: str) -> ApiError:
    """Makes the error for a request that there is no room for (429).

    Args:
        message: What is full.
    """
    return ApiError(
        429, message, kind="rate_limit_error", code="queue_full", retry_after=RETRY_AFTER_S
    )


def from_client(error: ClientError) -> ApiError:
    """Makes the answer for what the engine raised.

    Args:
        error: Of the client. The server's address stays out of the answer.
    """
    why = _sentence(error.why)
    what = _sentence(error.what)
    if isinstance(error, CallRestricted):
        return ApiError(
            502,
            "The gateway may not use the server behind it: it needs the server's key.",
            kind=SERVER,
            code="server_key",
        )
    if isinstance(error, InvalidRequest):
        found = _WIRE_NAME.search(error.what)
        param = getattr(error, "param", None) or (_WIRE_NAMES[found[1]] if found else None)
        return refused(" ".join(filter(None, (what, why, _sentence(error.fix)))), param)
    if isinstance(error, ServerBusy):
        return busy("The server's queue is full. Ask again later.")
    if isinstance(error, DeadlineExceeded):
        return ApiError(504, what, kind=SERVER, code="timeout")
    if isinstance(error, ConnectionFailed):
        return ApiError(
            503,
            "The server behind the gateway does not answer. Ask again.",
            kind=SERVER,
            code="server_unreachable",
            retry_after=RETRY_AFTER_S,
        )
    if isinstance(error, Cancelled):
        return ApiError(
            503, "The request was cancelled at the server.", kind=SERVER, code="cancelled"
        )
    return ApiError(500, what, kind=SERVER, code="server_failed")


def unexpected(error: Exception, request_id: str) -> ApiError:
    """Makes the answer for a defect of the gateway, and writes the log's line with the traceback.

    Args:
        error: What no code foresaw.
        request_id: Under which the log has it.
    """
    _LOG.error("request %s failed", request_id, exc_info=error)
    return ApiError(
        500,
        "The request failed inside the gateway. Its log has the cause under the request's id.",
        kind=SERVER,
        code="internal",
    )


def _sentence(text: str | None) -> str:
    if not text:
        return ""
    text = text[:1].upper() + text[1:] if text.partition(" ")[0].isalpha() else text
    return text if text.endswith((".", "!", "?")) else f"{text}."

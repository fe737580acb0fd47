"""What goes between the gateway's deployment and a replica's, as plain values.

Both sides live in processes of their own, and during a rolling update not of the same version, so
nothing is sent that only this version of the code could read. An error of the server is a value,
too: Ray would print one that is raised, with its stack, in both places, and wrap it in a class of
its own.

Standard library and ``trtllm_client`` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trtllm_client
from pipeline.gateway.engine import Generation, Tokens
from trtllm_client import ClientError, ServerFailed

Request = Mapping[str, Any]
Item = tuple[Any, ...]
"""``(ids, log_probs, prompt_log_probs, reused_blocks)`` of one response; or an error, as its
class's name and its text's four parts."""

_PARTS = ("what", "where", "why", "fix")


def pack_request(asked: Generation) -> Request:
    """Makes plain values of what to generate."""
    return {
        "prompt": list(asked.prompt),
        "max_tokens": asked.max_tokens,
        "inputs": dict(asked.inputs),
        "request_id": asked.request_id,
    }


def unpack_request(request: Request) -> Generation:
    """Reads what :func:`pack_request` made."""
    return Generation(
        prompt=tuple(request["prompt"]),
        max_tokens=request["max_tokens"],
        inputs=dict(request["inputs"]),
        request_id=request["request_id"],
    )


def pack_tokens(tokens: Tokens) -> Item:
    """Makes plain values of a response."""
    return tokens.ids, tokens.log_probs, tokens.prompt_log_probs, tokens.reused_blocks


def pack_error(error: ClientError) -> Item:
    """Makes plain values of an error of the server."""
    return (type(error).__name__, *(getattr(error, part) for part in _PARTS))


def unpack(item: Item) -> Tokens:
    """Reads a response.

    Args:
        item: From :func:`pack_tokens` or :func:`pack_error`.

    Raises:
        ClientError: It is an error: the one that was packed, or :class:`ServerFailed` where this
            version has no such class.
    """
    if item and isinstance(item[0], str):
        name, what, where, why, fix = item
        kind = getattr(trtllm_client, name, ServerFailed)
        if not (isinstance(kind, type) and issubclass(kind, ClientError)):
            kind = ServerFailed
        raise kind(what, where=where, why=why, fix=fix)
    # A replica of another version may have more or fewer.
    ids, log_probs, prompt_log_probs, *more = item
    return Tokens(tuple(ids), log_probs, prompt_log_probs, more[0] if more else None)

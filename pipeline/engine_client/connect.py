"""Picks the client that an address asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.triton.contract import BLS

if TYPE_CHECKING:
    from pipeline.engine_client.interface import AsyncTextClient, TextClient
    from trtllm_client import Tls


def speaks_openai(url: str) -> bool:
    """Says whether an address is that of a server with OpenAI's API, rather than Triton's gRPC."""
    return url.lower().startswith(("http://", "https://"))


def connect(
    url: str,
    *,
    model: str = BLS,
    timeout: float | None = 300.0,
    stall_timeout: float | None = 60.0,
    tls: Tls | None = None,
    headers: Mapping[str, str] | None = None,
    validate: bool = True,
    accumulate_tokens: bool | None = None,
) -> TextClient:
    """Makes a client for a server.

    Args:
        url: ``http://`` or ``https://`` for OpenAI's API; anything else is Triton's gRPC.
        model: The model that takes the requests. Triton's usual one stands for the only one of a
            server with OpenAI's API.
        timeout: Seconds for a whole request; None is no limit.
        stall_timeout: Seconds between two pieces of a stream; None is no limit.
        tls: Certificates.
        headers: Sent with every request; a key by its name at Triton becomes OpenAI's.
        validate: Whether requests to Triton are checked before they are sent.
        accumulate_tokens: See ``trtllm_client.Client``.

    Raises:
        InvalidRequest: The address, a limit or a certificate is not usable.
        MissingDependencyError: httpx2 is not installed, which OpenAI's API is asked with.
    """
    if speaks_openai(url):
        from pipeline.engine_client.openai_client import OpenAiClient

        return OpenAiClient(
            url,
            model=None if model == BLS else model,
            timeout=timeout,
            stall_timeout=stall_timeout,
            tls=tls,
            headers=headers,
        )
    from trtllm_client import Client

    return Client(
        url,
        model=model,
        timeout=timeout,
        stall_timeout=stall_timeout,
        tls=tls,
        headers=headers,
        validate=validate,
        accumulate_tokens=accumulate_tokens,
    )


def connect_async(
    url: str,
    *,
    model: str = BLS,
    timeout: float | None = 300.0,
    stall_timeout: float | None = 60.0,
    tls: Tls | None = None,
    headers: Mapping[str, str] | None = None,
    validate: bool = True,
    accumulate_tokens: bool | None = None,
) -> AsyncTextClient:
    """Makes a client for asyncio; arguments and errors as of :func:`connect`.

    Make it inside the running event loop that uses it.
    """
    if speaks_openai(url):
        from pipeline.engine_client.openai_async import AsyncOpenAiClient

        return AsyncOpenAiClient(
            url,
            model=None if model == BLS else model,
            timeout=timeout,
            stall_timeout=stall_timeout,
            tls=tls,
            headers=headers,
        )
    from trtllm_client import AsyncClient

    return AsyncClient(
        url,
        model=model,
        timeout=timeout,
        stall_timeout=stall_timeout,
        tls=tls,
        headers=headers,
        validate=validate,
        accumulate_tokens=accumulate_tokens,
    )

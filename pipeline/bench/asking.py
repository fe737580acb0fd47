"""One request, and when what of its answer came."""

from __future__ import annotations

import time

from pipeline.bench.stats import Timeline
from pipeline.engine_client.interface import AsyncTextClient
from trtllm_client import ServerFailed

NO_END = -1
"""Streams end at the wished length, so that every request costs the same."""

# One clock for all processes of a machine on Linux (CLOCK_MONOTONIC) and macOS.
now = time.perf_counter


async def streamed(client: AsyncTextClient, prompt: str, tokens: int) -> Timeline:
    """Asks for an answer in pieces.

    Args:
        client: Open; its model takes the request.
        prompt: The prompt.
        tokens: Tokens generated, whatever the end token.

    Raises:
        ClientError: The request failed, or its tokens were not counted.
    """
    arrivals = []
    input_tokens = 0
    sent_at = now()
    async for chunk in client.stream(prompt, max_tokens=tokens, end_id=NO_END, top_k=1):
        if chunk.num_output_tokens:
            arrivals.append((now(), chunk.num_output_tokens))
        input_tokens = chunk.num_input_tokens or input_tokens
    if not arrivals:
        raise _uncounted(client)
    return Timeline(sent_at, tuple(arrivals), input_tokens)


async def whole(client: AsyncTextClient, prompt: str, tokens: int) -> Timeline:
    """Asks for an answer in one response; nobody knows when its first token was there.

    Args:
        client: Open; its model takes the request.
        prompt: The prompt.
        tokens: Tokens generated, whatever the end token.

    Raises:
        ClientError: The request failed, or its tokens were not counted.
    """
    sent_at = now()
    answer = await client.generate(prompt, max_tokens=tokens, end_id=NO_END, top_k=1)
    if not answer.num_output_tokens:
        raise _uncounted(client)
    arrival = (now(), answer.num_output_tokens)
    return Timeline(sent_at, (arrival,), answer.num_input_tokens or 0, streamed=False)


def _uncounted(client: AsyncTextClient) -> ServerFailed:
    return ServerFailed(
        "the server does not count tokens, so its speed cannot be measured",
        where=client.url,
        fix="The model must answer return_num_output_tokens, as TensorRT-LLM 1.x does",
    )

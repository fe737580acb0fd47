"""Puts load on a server and measures what comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle, islice
from typing import Any

from pipeline.bench.stats import Timeline, summary_ms
from pipeline.errors import UsageError
from pipeline.tables import streams
from pipeline.triton.contract import BLS, answering_model
from trtllm_client import AsyncClient, ServerFailed, Tls

# Streams end at the wished length, so that every request costs the same.
NO_END = -1

PROMPTS = (
    "Once upon a time there was a small village at the foot of a mountain, and in it",
    "The meeting started late because the train from the north had been delayed, so",
    "My grandmother used to say that a garden tells you more about a person than",
    "Early in the morning the harbour is quiet and the boats come back with",
    "There are three things to know before you cross the desert on foot, and the first",
    "The letter had lain in the drawer for twenty years when somebody finally",
    "Every evening after supper the children asked for the same story about",
    "In the old library at the end of the street a clock stopped at noon, and",
)


@dataclass(frozen=True)
class Measurement:
    """What one level of concurrency gave.

    Attributes:
        concurrency: Streams kept open together.
        requests: Requests measured.
        input_tokens: Prompt tokens of all requests.
        output_tokens: Generated tokens of all requests.
        seconds: From the first request sent to the last token received.
        tokens_per_second: Generated tokens per second over all streams.
        requests_per_second: Finished requests per second.
        ttft_ms: Mean, percentiles and maximum of the time to the first token; None where the model
            answers once per request.
        itl_ms: The same of the time between tokens of a stream; None for single tokens.
        latency_ms: The same of the time to the last token.
    """

    concurrency: int
    requests: int
    input_tokens: int
    output_tokens: int
    seconds: float
    tokens_per_second: float
    requests_per_second: float
    ttft_ms: Mapping[str, float] | None
    itl_ms: Mapping[str, float] | None
    latency_ms: Mapping[str, float] | None

    def __str__(self) -> str:
        return f"{streams(self.concurrency)}: {self.tokens_per_second:.1f} tokens/s"


def measure(
    url: str,
    *,
    model: str = BLS,
    concurrency: Sequence[int] = (1, 8),
    requests: int = 16,
    output_tokens: int = 32,
    prompts: Sequence[str] = PROMPTS,
    timeout: float = 600.0,
    tls: Tls | None = None,
    headers: Mapping[str, str] | None = None,
    on_measured: Callable[[Measurement], None] = lambda _measurement: None,
) -> dict[str, Any]:
    """Measures a server at several levels of concurrency, closed loop, one after the other.

    Args:
        url: ``host:port``, ``grpc://host:port`` or ``grpcs://host:port``.
        model: The Triton model that takes the requests.
        concurrency: Streams kept open together; one measurement each.
        requests: Requests per measurement; at least one per stream is sent.
        output_tokens: Tokens generated per request, whatever the end token.
        prompts: Used in turn.
        timeout: Seconds for one request.
        tls: Certificates.
        headers: gRPC metadata sent with every call.
        on_measured: Called after each measurement.

    Returns:
        JSON values: the arguments that count and one :class:`Measurement` per level.

    Raises:
        UsageError: A number is not above zero, or there is no prompt.
        ClientError: A request failed; a measurement with failures would flatter the server.
    """
    for name, value in (
        ("concurrency", min(concurrency, default=0)),
        ("requests", requests),
        ("output_tokens", output_tokens),
        ("the number of prompts", len(prompts)),
    ):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}")

    async def levels() -> list[Measurement]:
        results = []
        async with AsyncClient(
            url, model=model, timeout=timeout, tls=tls, headers=headers
        ) as client:
            policy = await client.model_metadata(answering_model(model))
            request = partial(_streamed if policy.decoupled else _whole, client)
            for level in concurrency:
                # The first requests of a level pay for what is set up once.
                await _load(partial(request, tokens=min(output_tokens, 8)), prompts, level, level)
                count = max(requests, level)
                ask = partial(request, tokens=output_tokens)
                result = _measurement(level, await _load(ask, prompts, level, count))
                results.append(result)
                on_measured(result)
        return results

    measured = asyncio.run(levels())
    return {
        "model": model,
        "requests": requests,
        "output_tokens": output_tokens,
        "measurements": [asdict(result) for result in measured],
    }


_Ask = Callable[[str], Awaitable[Timeline]]


async def _load(ask: _Ask, prompts: Sequence[str], level: int, requests: int) -> list[Timeline]:
    todo = islice(cycle(prompts), requests)
    timelines: list[Timeline] = []
    workers = [asyncio.create_task(_worker(ask, todo, timelines)) for _ in range(level)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return timelines


async def _worker(ask: _Ask, todo: Iterator[str], timelines: list[Timeline]) -> None:
    for prompt in todo:
        timeline = await ask(prompt)
        timelines.append(timeline)


async def _streamed(client: AsyncClient, prompt: str, tokens: int) -> Timeline:
    arrivals = []
    input_tokens = 0
    sent_at = time.perf_counter()
    async for chunk in client.stream(prompt, max_tokens=tokens, end_id=NO_END, top_k=1):
        if chunk.num_output_tokens:
            arrivals.append((time.perf_counter(), chunk.num_output_tokens))
        input_tokens = chunk.num_input_tokens or input_tokens
    if not arrivals:
        raise _uncounted(client)
    return Timeline(sent_at, tuple(arrivals), input_tokens)


async def _whole(client: AsyncClient, prompt: str, tokens: int) -> Timeline:
    """One response per request; nobody knows when its first token was there."""
    sent_at = time.perf_counter()
    answer = await client.generate(prompt, max_tokens=tokens, end_id=NO_END, top_k=1)
    if not answer.num_output_tokens:
        raise _uncounted(client)
    arrival = (time.perf_counter(), answer.num_output_tokens)
    return Timeline(sent_at, (arrival,), answer.num_input_tokens or 0, streamed=False)


def _uncounted(client: AsyncClient) -> ServerFailed:
    return ServerFailed(
        "the server does not count tokens, so its speed cannot be measured",
        where=client.url,
        fix="The model must answer return_num_output_tokens, as TensorRT-LLM 1.x does",
    )


def _measurement(level: int, timelines: Sequence[Timeline]) -> Measurement:
    start = min(timeline.sent_at for timeline in timelines)
    end = max(timeline.arrivals[-1][0] for timeline in timelines)
    tokens = sum(timeline.output_tokens for timeline in timelines)
    return Measurement(
        concurrency=level,
        requests=len(timelines),
        input_tokens=sum(timeline.input_tokens for timeline in timelines),
        output_tokens=tokens,
        seconds=round(end - start, 4),
        tokens_per_second=round(tokens / (end - start), 2),
        requests_per_second=round(len(timelines) / (end - start), 3),
        ttft_ms=summary_ms([timeline.ttft_s for timeline in timelines if timeline.streamed]),
        itl_ms=summary_ms([wait for t in timelines for wait in t.inter_token_s]),
        latency_ms=summary_ms([timeline.latency_s for timeline in timelines]),
    )

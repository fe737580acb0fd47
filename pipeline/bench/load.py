"""Puts load on a server and measures what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.bench.intervals import estimate_text, over_rounds, significant
from pipeline.bench.prompts import PROMPTS, Prompts
from pipeline.bench.stats import summary_ms
from pipeline.bench.visit import Visit, Visitor
from pipeline.engine_client.connect import connect_async
from pipeline.errors import UsageError
from pipeline.tables import streams
from pipeline.triton.contract import BLS
from pipeline.verdict.estimate import Estimate
from trtllm_client import Tls

ROUNDS = 5
REQUESTS = 40
INPUT_TOKENS = 256


@dataclass(frozen=True)
class Measurement:
    """What one level of concurrency gave, all rounds together.

    Attributes:
        concurrency: Streams kept open together.
        requests: Requests measured.
        input_tokens: Prompt tokens of all requests.
        output_tokens: Generated tokens of all requests.
        seconds: From the first request sent to the last token received, summed over the rounds.
        tokens_per_second: Generated tokens per second over all streams; see
            :mod:`pipeline.bench.intervals`.
        requests_per_second: Finished requests per second.
        ttft_ms: Mean, percentiles and maximum of the time to the first token; None where the model
            answers once per request.
        itl_ms: The same of the streams' average time per token after the first; None where there
            is none.
        latency_ms: The same of the time to the last token.
        by_round: Tokens per second of each round.
        prefill_tokens_per_second: Prompt tokens per second until the first token came, for long
            prompts that no KV block is there for; None where it was not measured.
        decode_tokens_per_second: Tokens after the first per second of the time after it, over all
            streams; None where it was not measured in every round.
    """

    concurrency: int
    requests: int
    input_tokens: int
    output_tokens: int
    seconds: float
    tokens_per_second: Estimate
    requests_per_second: float
    ttft_ms: Mapping[str, float] | None
    itl_ms: Mapping[str, float] | None
    latency_ms: Mapping[str, float] | None
    by_round: Sequence[float]
    prefill_tokens_per_second: Estimate | None
    decode_tokens_per_second: Estimate | None

    def __str__(self) -> str:
        speed = estimate_text(self.tokens_per_second.as_dict())
        return f"{streams(self.concurrency)}: {speed} tokens/s"


def measure(
    url: str,
    *,
    model: str = BLS,
    concurrency: Sequence[int] = (1, 8),
    requests: int = REQUESTS,
    rounds: int = ROUNDS,
    output_tokens: int = 32,
    input_tokens: int = INPUT_TOKENS,
    prompts: Sequence[str] = PROMPTS,
    timeout: float = 600.0,
    tls: Tls | None = None,
    headers: Mapping[str, str] | None = None,
    on_round: Callable[[int], None] = lambda _number: None,
    on_measured: Callable[[Measurement], None] = lambda _measurement: None,
) -> dict[str, Any]:
    """Measures a server at several levels of concurrency, closed loop, in several rounds.

    Every round visits every level, so that what else the machine does hits all levels alike.

    Args:
        url: ``host:port``, ``grpc://host:port`` or ``grpcs://host:port``.
        model: The Triton model that takes the requests.
        concurrency: Streams kept open together; one measurement each.
        requests: Requests per measurement, spread over the rounds; at least one per stream is sent
            in each of them.
        rounds: How often each level is measured; intervals need two.
        output_tokens: Tokens generated per request, whatever the end token.
        input_tokens: Tokens of the prompts that prefill is measured with, about; shorter where the
            engine takes no such prompt.
        prompts: What the other requests' prompts say after a word of their own, used in turn.
        timeout: Seconds for one request.
        tls: Certificates.
        headers: gRPC metadata sent with every call.
        on_round: Called after each round with its number, from 1.
        on_measured: Called with each measurement, at the end.

    Returns:
        JSON values: ``model``, ``output_tokens``, ``rounds``, ``measurements`` with one
        :class:`Measurement` per level, ``samples`` with the ``ttft_ms`` and ``itl_ms`` of every
        request per level, ``prefill_tokens_per_second`` and ``decode_tokens_per_second``: those of
        concurrency 1, at which alone they are measured; None where that is no level.

    Raises:
        UsageError: A number is not above zero, or there is no prompt.
        ClientError: A request failed; a measurement with failures would flatter the server.
    """
    check_numbers(
        concurrency=min(concurrency, default=0),
        requests=requests,
        rounds=rounds,
        output_tokens=output_tokens,
        input_tokens=input_tokens,
        **{"the number of prompts": len(prompts)},
    )
    levels = list(dict.fromkeys(concurrency))
    visits: dict[int, list[Visit]] = {level: [] for level in levels}
    answering = model

    async def load() -> None:
        nonlocal answering
        async with connect_async(
            url, model=model, timeout=timeout, tls=tls, headers=headers
        ) as client:
            visitor = Visitor(client, Prompts(prompts), output_tokens)
            for level in levels:
                await visitor.prepare(level)
            if 1 in levels:
                await visitor.fit_long_prompts(input_tokens)
            for finished in range(1, rounds + 1):
                for level in levels:
                    visit = await visitor.visit(level, -(-requests // rounds), phases=level == 1)
                    visits[level].append(visit)
                on_round(finished)
            answering = client.model

    asyncio.run(load())
    measurements = [measurement(level, made) for level, made in visits.items()]
    for made in measurements:
        on_measured(made)
    return {
        "model": answering,
        "output_tokens": output_tokens,
        "rounds": rounds,
        "measurements": [asdict(made) for made in measurements],
        "samples": [samples(level, made) for level, made in visits.items()],
        **alone(measurements),
    }


def check_numbers(**numbers: int) -> None:
    """Refuses numbers below 1.

    Raises:
        UsageError: One is; the message has its name.
    """
    for name, value in numbers.items():
        if value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}")


def measurement(level: int, visits: Sequence[Visit]) -> Measurement:
    """Puts the rounds of one level together.

    Args:
        level: Streams kept open together.
        visits: One per round, at least one.
    """
    timelines = [timeline for visit in visits for timeline in visit.load]
    seconds = sum(visit.load_seconds for visit in visits)
    rates = [visit.tokens_per_second for visit in visits]
    return Measurement(
        concurrency=level,
        requests=len(timelines),
        input_tokens=sum(timeline.input_tokens for timeline in timelines),
        output_tokens=sum(timeline.output_tokens for timeline in timelines),
        seconds=round(seconds, 4),
        tokens_per_second=over_rounds(rates),
        requests_per_second=significant(len(timelines) / seconds),
        ttft_ms=summary_ms([timeline.ttft_s for timeline in timelines if timeline.streamed]),
        itl_ms=summary_ms([t.token_s for t in timelines if t.token_s is not None]),
        latency_ms=summary_ms([timeline.latency_s for timeline in timelines]),
        by_round=[significant(rate) for rate in rates],
        prefill_tokens_per_second=_of_all([v.prefill_tokens_per_second for v in visits]),
        decode_tokens_per_second=_of_all([v.decode_tokens_per_second for v in visits]),
    )


def _of_all(rates: Sequence[float | None]) -> Estimate | None:
    known = [rate for rate in rates if rate is not None]
    return over_rounds(known) if len(known) == len(rates) else None


def samples(level: int, visits: Sequence[Visit]) -> dict[str, Any]:
    """Collects what every request of a level measured, for histograms.

    Args:
        level: Streams kept open together.
        visits: One per round.

    Returns:
        JSON values: ``concurrency``, and lists ``ttft_ms`` and ``itl_ms`` in the order in which
        requests ended.
    """
    timelines = [timeline for visit in visits for timeline in visit.load]
    waits = {
        "ttft_ms": [timeline.ttft_s for timeline in timelines if timeline.streamed],
        "itl_ms": [t.token_s for t in timelines if t.token_s is not None],
    }
    return {
        "concurrency": level,
        **{name: [round(wait * 1000, 3) for wait in found] for name, found in waits.items()},
    }


def alone(measurements: Sequence[Measurement]) -> dict[str, Any]:
    """Returns prefill and decode of concurrency 1 as JSON values; None where that is no level."""
    one = next((made for made in measurements if made.concurrency == 1), None)
    prefill = one.prefill_tokens_per_second if one else None
    decode = one.decode_tokens_per_second if one else None
    return {
        "prefill_tokens_per_second": prefill.as_dict() if prefill else None,
        "decode_tokens_per_second": decode.as_dict() if decode else None,
    }

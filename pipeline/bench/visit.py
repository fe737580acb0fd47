"""One server at one level of concurrency in one round."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pipeline.bench.asking import streamed, whole
from pipeline.bench.prompts import Prompts
from pipeline.bench.stats import Timeline
from pipeline.engine_client.interface import AsyncTextClient
from pipeline.triton.contract import answering_model
from trtllm_client import InvalidRequest

_LEAST_OF_ONE_TOKEN = 2
"""Requests for one token of a visit, which are too short to be judged by one alone."""
# Texts differ in tokens per word, and a prompt must stay below what the engine takes.
_TRIED_WORDS = 16
_SHARE_OF_TARGET = 0.9
_SHRINK = 0.7


@dataclass(frozen=True)
class Visit:
    """What the server did in this round.

    Attributes:
        level: Streams kept open together.
        load: Requests of the full output length.
        firsts: Requests of the same kind for one token; empty where decoding is not told apart.
        prefills: Requests with a long prompt for one token; empty where prefill is not measured.
    """

    level: int
    load: tuple[Timeline, ...]
    firsts: tuple[Timeline, ...] = ()
    prefills: tuple[Timeline, ...] = ()

    @property
    def load_seconds(self) -> float:
        """From the first request of the load to the last token."""
        return _span(self.load)

    @property
    def seconds(self) -> float:
        """Seconds measured, all kinds of requests together."""
        return sum(_span(part) for part in (self.load, self.firsts, self.prefills) if part)

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens over all streams, per second."""
        return sum(timeline.output_tokens for timeline in self.load) / self.load_seconds

    @property
    def prefill_tokens_per_second(self) -> float | None:
        """Prompt tokens per second up to the first token, over all streams; None if unmeasured."""
        if not self.prefills:
            return None
        return sum(timeline.input_tokens for timeline in self.prefills) / _span(self.prefills)

    @property
    def decode_tokens_per_second(self) -> float | None:
        """Tokens after the first per second of the time after it, over all streams.

        The time after the first token is that of a whole request less that of one for a single
        token. Arrivals would not do: a server that sends in bursts is then faster than it computes.
        None where it was not measured, or where the machine was so busy that nothing is left.
        """
        if not self.firsts:
            return None
        after = _mean_latency(self.load) - _mean_latency(self.firsts)
        tokens = sum(timeline.output_tokens for timeline in self.load) / len(self.load) - 1
        return self.level * tokens / after if after > 0 and tokens > 0 else None


def _span(timelines: tuple[Timeline, ...]) -> float:
    return max(t.arrivals[-1][0] for t in timelines) - min(t.sent_at for t in timelines)


def _mean_latency(timelines: tuple[Timeline, ...]) -> float:
    return sum(timeline.latency_s for timeline in timelines) / len(timelines)


class Visitor:
    """Puts load on one server.

    Args:
        client: Open; its model takes the requests.
        prompts: Where prompts come from.
        output_tokens: Tokens generated per request, whatever the end token.

    Attributes:
        long_words: Words of the prompts that prefill is measured with; None measures none.
    """

    def __init__(self, client: AsyncTextClient, prompts: Prompts, output_tokens: int) -> None:
        self._client, self._prompts, self._output_tokens = client, prompts, output_tokens
        self._streams = True
        self.long_words: int | None = None

    async def prepare(self, level: int) -> None:
        """Sends a few short requests, since the first ones of a level pay for what is set up once.

        Raises:
            ClientError: A request failed.
        """
        model = await self._client.model_metadata(answering_model(self._client.model))
        self._streams = model.decoupled
        await self._send(level, level, min(self._output_tokens, 8), self._prompts.short)

    async def fit_long_prompts(self, input_tokens: int) -> None:
        """Finds how many words make a prompt of about so many tokens, which the engine takes.

        Args:
            input_tokens: The wished length; prompts get shorter where the engine takes none such.

        Raises:
            ClientError: A request failed, also with a prompt of one word.
        """
        words, tokens = await self._taken(min(_TRIED_WORDS, input_tokens), 1)
        if not tokens:
            self.long_words = None  # the server does not count them
            return
        wished = int(words * _SHARE_OF_TARGET * input_tokens / tokens)
        if wished > words:
            words, _ = await self._taken(wished, words)
        self.long_words = words

    async def _taken(self, words: int, least: int) -> tuple[int, int]:
        """The longest of a few long prompts that the engine takes, in words and tokens."""
        while True:
            prompt = partial(self._prompts.long, words)
            try:
                (timeline,) = await self._send(1, 1, 1, prompt)
            except InvalidRequest:
                if words <= least:
                    raise
                words = max(least, int(words * _SHRINK))
            else:
                return words, timeline.input_tokens

    async def visit(self, level: int, requests: int, *, phases: bool = False) -> Visit:
        """Sends the requests of one round.

        Args:
            level: Streams kept open together.
            requests: Requests of the load; at least one per stream is sent.
            phases: Whether prefill and decode are measured apart as well.

        Raises:
            ClientError: A request failed; a measurement with failures would flatter the server.
        """
        short = self._prompts.short
        load = await self._send(level, max(requests, level), self._output_tokens, short)
        if not phases:
            return Visit(level, load)
        count = max(level, _LEAST_OF_ONE_TOKEN)
        firsts = await self._send(level, count, 1, short)
        if self.long_words is None:
            return Visit(level, load, firsts)
        long = partial(self._prompts.long, self.long_words)
        return Visit(level, load, firsts, await self._send(level, count, 1, long))

    async def _send(
        self, level: int, requests: int, tokens: int, prompt: Callable[[], str]
    ) -> tuple[Timeline, ...]:
        ask = streamed if self._streams else whole
        todo = iter([prompt() for _ in range(requests)])
        timelines: list[Timeline] = []

        async def work() -> None:
            for text in todo:
                timelines.append(await ask(self._client, text, tokens))  # noqa: PERF401  a shared list

        workers = [asyncio.create_task(work()) for _ in range(level)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return tuple(timelines)

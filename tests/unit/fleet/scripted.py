"""Engines that do what a test tells them to, and the texts that they make.

A text is a function of all that is before it, as a greedy one is, or of its seed and the number of
the token, as drawn ones are: continued from the middle, that would be another text.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

from pipeline.gateway.engine import Generation, Tokens
from pipeline.gateway.fleet.policy import Policy
from trtllm_client import ConnectionFailed

QUICK = Policy(wait_s=30.0, pause_s=0.001, probe_s=0.01, lost_probe_s=0.001, metrics_s=0.01)
"""As a fleet is, with less patience between two looks."""

SAMPLED = {"temperature": 1.0, "runtime_top_p": 0.9, "seed": 5}


def greedy_text(prompt: Sequence[int], count: int, weights: int = 0) -> list[int]:
    """What a greedy model writes."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append((sum(tokens) * 31 + len(tokens) * 7 + weights) % 997)
    return tokens[len(prompt) :]


def sampled_text(prompt: Sequence[int], count: int, seed: int, weights: int = 0) -> list[int]:
    """What a model draws that begins with a seed."""
    draw = random.Random(sum(prompt) * 1000 + seed + weights)
    return [draw.randrange(997) for _ in range(count)]


def lost() -> ConnectionFailed:
    """The error of a connection that broke."""
    return ConnectionFailed("the connection broke", where="scripted")


class Scripted:
    """An engine.

    Args:
        weights: Another number is another model.
        ready: Whether it answers.

    Attributes:
        asked: What it was asked for, in order.
        fails: For each request in turn, after how many tokens it fails with which error; None does
            not. Afterwards none does.
        chunk: Tokens of a response.
        hold: Requests wait here before each response, while it is not set.
        open: Requests that run.
        closed: Whether it was closed.
        build: What tells its model from others, where it says so.
        dies_at_failure: Whether it is not ready after one.
        prefill_differs: Changes what it makes of long prompts, as a tie does that is decided
            otherwise where many tokens are computed at once.
    """

    def __init__(self, weights: int = 0, *, ready: bool = True) -> None:
        self.weights, self.is_ready = weights, ready
        self.asked: list[Generation] = []
        self.fails: list[tuple[int, Exception] | None] = []
        self.chunk = 1
        self.hold = asyncio.Event()
        self.hold.set()
        self.open = 0
        self.closed = False
        self.build: str | None = None
        self.dies_at_failure = False
        self.prefill_differs = 0
        self._generation = 0

    def breaks(self) -> None:
        """Loses all that runs."""
        self._generation += 1

    async def ready(self) -> bool:
        return self.is_ready

    async def close(self) -> None:
        self.closed = True

    def text(self, asked: Generation) -> list[int]:
        seed = asked.inputs.get("seed")
        if isinstance(seed, int):
            return sampled_text(asked.prompt, asked.max_tokens, seed, self.weights)
        different = self.weights + (self.prefill_differs if len(asked.prompt) > 10 else 0)
        return greedy_text(asked.prompt, asked.max_tokens, different)

    async def generate(self, asked: Generation) -> AsyncIterator[Tokens]:
        self.asked.append(asked)
        failure = self.fails.pop(0) if self.fails else None
        text = self.text(asked)
        self.open += 1
        mine = self._generation
        try:
            start = 0
            while start < len(text):
                await asyncio.sleep(0)
                await self.hold.wait()
                if mine != self._generation:
                    raise lost()
                end = min(start + self.chunk, len(text))
                if failure is not None:
                    end = min(end, failure[0])
                if end > start:
                    ids = tuple(text[start:end])
                    yield Tokens(ids, tuple(-float(token) for token in ids))
                    start = end
                if failure is not None and start == failure[0]:
                    self.is_ready = self.is_ready and not self.dies_at_failure
                    raise failure[1]
        finally:
            self.open -= 1


async def read(source: AsyncIterator[Tokens]) -> list[int]:
    """All tokens of a stream."""
    return [token async for tokens in source for token in tokens.ids]


async def until(condition: object) -> None:
    """Waits for a condition, a function without arguments; the test's own time limit ends it."""
    assert callable(condition)
    while not condition():
        await asyncio.sleep(0.001)


async def ended(task: asyncio.Task[object]) -> None:
    """Ends a task."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task

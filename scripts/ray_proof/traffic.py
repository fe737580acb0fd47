"""Clients that stream completions through the official ``openai`` package, and what they saw."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

KEY = "none"
"""The client insists on one; the application asks for none here."""


@dataclass
class Seen:
    """What one request saw.

    Attributes:
        prompt: What was asked.
        begun: When it was sent, in seconds of ``time.monotonic``.
        text: What came.
        tokens: How many pieces of text came; each is a token or more.
        arrivals: When each of them came.
        error: What went wrong; empty where nothing did.
    """

    prompt: str
    begun: float
    text: str = ""
    arrivals: list[float] = field(default_factory=list)
    tokens: int = 0
    error: str = ""

    def stall(self, since: float) -> tuple[float, float, int]:
        """The longest wait between two pieces, or for the first: seconds, when, after how many.

        Args:
            since: What ended before does not count.
        """
        times = [self.begun, *self.arrivals]
        waits = (
            (later - earlier, earlier, place)
            for place, (earlier, later) in enumerate(itertools.pairwise(times))
            if later >= since
        )
        return max(waits, default=(0.0, 0.0, 0))


class Traffic:
    """Keeps a number of streams running, in a thread, until it is stopped.

    Args:
        url: The application's, ending in ``/v1``.
        model: What it calls the model.
        prompts: What is asked, in turn.
        max_tokens: Tokens of each answer.
    """

    def __init__(self, url: str, model: str, prompts: Sequence[str], max_tokens: int) -> None:
        self._url, self._model, self._max_tokens = url, model, max_tokens
        self._prompts = itertools.cycle(prompts)
        self.seen: list[Seen] = []
        self._wanted = 0
        self._stop = False
        self._thread: threading.Thread | None = None

    def run(self, streams: int) -> None:
        """Begins with so many streams."""
        self._wanted, self._stop = streams, False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._work()), daemon=True)
        self._thread.start()

    def change(self, streams: int) -> None:
        """Goes on with another number of streams; those too many end with their answer."""
        self._wanted = streams

    def stop(self) -> list[Seen]:
        """Lets every stream end with its answer, and returns all that were seen since the start."""
        self._stop = True
        assert self._thread
        self._thread.join()
        seen, self.seen = self.seen, []
        return seen

    async def _work(self) -> None:
        from openai import AsyncOpenAI

        async with AsyncOpenAI(base_url=self._url, api_key=KEY, max_retries=0) as client:
            tasks: set[asyncio.Task[None]] = set()
            while not self._stop or tasks:
                while not self._stop and len(tasks) < self._wanted:
                    task = asyncio.create_task(self._ask(client, next(self._prompts)))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                await asyncio.sleep(0.02)

    async def _ask(self, client: Any, prompt: str) -> None:
        one = Seen(prompt, time.monotonic())
        self.seen.append(one)
        try:
            stream = await client.completions.create(
                model=self._model,
                prompt=prompt,
                max_tokens=self._max_tokens,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
            async for chunk in stream:
                if chunk.usage is not None:
                    one.tokens = chunk.usage.completion_tokens
                if chunk.choices and chunk.choices[0].text:
                    one.text += chunk.choices[0].text
                    one.arrivals.append(time.monotonic())
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is counted and shown
            one.error = f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class Summary:
    """What the clients of one phase saw together.

    Attributes:
        requests: How many were sent.
        tokens: How many tokens came.
        seconds: From the first request to the last token.
        errors: How many failed.
        reasons: What was said, each once.
        different: Texts that are not those of an undisturbed run.
        stall_s: The longest that one stream waited.
        stalled_at: When that began, in seconds of ``time.monotonic``.
        stalled_after: After how many pieces of its text.
        silence_s: The longest that no stream got anything.
    """

    requests: int
    tokens: int
    seconds: float
    errors: int
    reasons: tuple[str, ...]
    different: int
    stall_s: float
    stalled_at: float
    stalled_after: int
    silence_s: float

    @property
    def tokens_per_second(self) -> float:
        """Of all streams together."""
        return self.tokens / self.seconds if self.seconds else 0.0


def summarize(seen: Sequence[Seen], expected: Mapping[str, str], *, since: float = 0.0) -> Summary:
    """Puts together what was seen.

    Args:
        seen: The requests.
        expected: The text of each prompt, from a run that nothing disturbed; one that is missing is
            not compared.
        since: Waits that ended before, in seconds of ``time.monotonic``, are not looked at.
    """
    arrivals = sorted(at for one in seen for at in one.arrivals)
    failed = [one for one in seen if one.error]
    begun = min((one.begun for one in seen), default=0.0)
    stall_s, stalled_at, after = max((one.stall(since) for one in seen), default=(0.0, 0.0, 0))
    return Summary(
        requests=len(seen),
        tokens=sum(one.tokens for one in seen),
        seconds=(arrivals[-1] - begun) if arrivals else 0.0,
        errors=len(failed),
        reasons=tuple(sorted({one.error for one in failed})),
        different=sum(
            one.text != expected.get(one.prompt, one.text) for one in seen if not one.error
        ),
        stall_s=stall_s,
        stalled_at=stalled_at,
        stalled_after=after,
        silence_s=max(
            (
                later - earlier
                for earlier, later in itertools.pairwise([begun, *arrivals])
                if later >= since
            ),
            default=0.0,
        ),
    )

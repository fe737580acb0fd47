"""Clients of a server that is being broken."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from trtllm_client import AsyncClient, Client

PROMPTS = (
    "Once there was a girl named Ada",
    "One rainy day",
    "The old sailor",
    "Once upon a time there was a frog",
    "He always carried a green bell",
    "In the evening they walked home",
    "A wolf and a goose",
    "When she looked in her pocket",
)
MOST_S = 120.0
"""Seconds after which a client gives up, which no test expects."""


@dataclass
class Outcome:
    """What one stream got.

    Attributes:
        text: All of it.
        tokens: How many.
        error: What ended it; None for its end.
        first, last, ended: Monotonic seconds of the first piece, the last one, and the end.
    """

    text: str = ""
    tokens: int = 0
    error: Exception | None = None
    first: float = 0.0
    last: float = 0.0
    ended: float = 0.0


def prompts(count: int) -> list[str]:
    """Returns so many prompts, each another one."""
    return [f"{PROMPTS[i % len(PROMPTS)]}{' and' * (i // len(PROMPTS))}" for i in range(count)]


class Streams:
    """Open streams, one per prompt, while something else is done.

    Args:
        url: gRPC address.
        wanted: The prompts.
        tokens: Per stream; end ids are left out, so it is exactly that many.
        model: Which text model.
    """

    def __init__(
        self, url: str, wanted: Sequence[str], tokens: int, *, model: str = "tensorrt_llm_bls"
    ) -> None:
        self._url, self._wanted, self._tokens, self._model = url, list(wanted), tokens, model
        self.outcomes = [Outcome() for _ in wanted]
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="streams", daemon=True)

    def _run(self) -> None:
        try:
            asyncio.run(self._all())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._failure = error

    async def _all(self) -> None:
        async with AsyncClient(
            self._url, model=self._model, timeout=MOST_S, stall_timeout=MOST_S
        ) as client:
            await asyncio.gather(*map(self._one, [client] * len(self._wanted), self._pairs()))

    def _pairs(self) -> list[tuple[str, Outcome]]:
        return list(zip(self._wanted, self.outcomes, strict=True))

    async def _one(self, client: AsyncClient, pair: tuple[str, Outcome]) -> None:
        prompt, outcome = pair
        try:
            async for chunk in client.stream(prompt, max_tokens=self._tokens, end_id=-1):
                outcome.last = time.monotonic()
                outcome.first = outcome.first or outcome.last
                outcome.text += chunk.text
                outcome.tokens += chunk.num_output_tokens or 0
        except Exception as error:  # noqa: BLE001 - is what is asked for
            outcome.error = error
        outcome.ended = time.monotonic()

    def wait_flowing(self) -> Streams:
        """Waits until each of them has had something."""
        give_up = time.monotonic() + MOST_S
        while not all(outcome.first or outcome.ended for outcome in self.outcomes):
            assert time.monotonic() < give_up, "not every stream has begun"
            assert self._failure is None, self._failure
            time.sleep(0.01)
        assert all(outcome.error is None for outcome in self.outcomes), self.outcomes
        return self

    def join(self) -> list[Outcome]:
        """Waits for all of them."""
        self._thread.join(2 * MOST_S)
        assert not self._thread.is_alive(), "a stream neither goes on nor ends"
        assert self._failure is None, self._failure
        return self.outcomes

    def __enter__(self) -> Streams:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.join()


def ask_alone(url: str, wanted: Sequence[str], tokens: int) -> dict[str, str]:
    """The text of each prompt, one after the other."""
    with Client(url, timeout=MOST_S) as client:
        return {
            prompt: client.generate(prompt, max_tokens=tokens, end_id=-1).text for prompt in wanted
        }


def answers(url: str) -> bool:
    """Whether a request is answered."""
    try:
        with Client(url, timeout=10) as client:
            answer = client.generate(PROMPTS[0], max_tokens=4, end_id=-1)
    except Exception:  # noqa: BLE001 - whatever it is
        return False
    return answer.num_output_tokens == 4

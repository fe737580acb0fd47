"""What a request gives: one object for a whole stream, which grows with every response."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


class RequestError(RuntimeError):
    """A request that failed by itself, as of ``tensorrt_llm.executor.utils``."""


@dataclass
class Logprob:
    """The log-probability of a token, and how many are likelier, from 1 on."""

    logprob: float
    rank: int | None = None


@dataclass
class CompletionOutput:
    """One text, all of it so far."""

    index: int = 0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class RequestOutput:
    """An answer; made inside an event loop, as upstream's queue of responses needs one."""

    def __init__(self, request_id: int, prompt_token_ids: list[int], abort: Callable[[], None]):
        self.request_id, self.prompt_token_ids = request_id, prompt_token_ids
        self.outputs = [CompletionOutput()]
        self._abort = abort
        self._done = False
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Any] = asyncio.Queue()

    @property
    def finished(self) -> bool:
        """Whether nothing more comes."""
        return self._done

    def abort(self) -> None:
        """Ends it; its last response says ``cancelled``."""
        self._abort()

    def respond(self, response: Any) -> None:
        """Hands a response over, from the executor's thread."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, response)

    def __aiter__(self) -> RequestOutput:
        return self

    async def __anext__(self) -> RequestOutput:
        if self._done:
            raise StopAsyncIteration
        response = await self._queue.get()
        if isinstance(response, Exception):
            self._done = True
            raise response
        ids, logprobs, reason, stop = response
        completion = self.outputs[0]
        completion.token_ids.extend(ids)
        completion.logprobs.extend(logprobs)
        if stop and not stop[1]:
            del completion.token_ids[len(completion.token_ids) - 1 :]
        if reason is not None:
            completion.finish_reason = reason
            completion.stop_reason = stop[0] if stop else None
            self._done = True
        return self

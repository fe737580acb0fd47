"""What all requests share: the engine, the model, the counters, and whether new ones are taken."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.gateway.engine import Engine, Generation, Tokens
from pipeline.gateway.errors import cut_off
from pipeline.gateway.metrics import Metrics, Watch
from pipeline.gateway.text import Piece, Writer

if TYPE_CHECKING:
    from pipeline.gateway.model import Model

Result = TypeVar("Result")
Receive = Callable[[], Awaitable[Any]]

MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Options:
    """How the gateway is asked to run.

    Attributes:
        keys: Any of which opens ``/v1``; none leaves it open.
        most_bytes: Of a request's body.
        most_requests: That are answered at a time.
    """

    keys: tuple[str, ...] = ()
    most_bytes: int = 4 * MEGABYTE
    most_requests: int = 512


@dataclass
class Record:
    """What is to be said of one request when it is over.

    Attributes:
        request_id: Its id.
        endpoint: Its path, as the metrics name it.
        code: Status of the answer, or what became of it after that was sent; 0 until then.
        error: What the client was told; None where nothing went wrong.
        prompt_tokens: Of its prompts.
        generated: Tokens of its answers.
    """

    request_id: str
    endpoint: str
    code: int = 0
    error: str | None = None
    prompt_tokens: int = 0
    generated: int = 0


class ClientGone(Exception):  # noqa: N818 - what happened, and nobody's error
    """The client closed its connection before its answer was complete."""


class Desk:
    """One for a gateway.

    Args:
        engine: What generates tokens.
        model: The model.
        options: How the gateway is asked to run.
        say: Takes a line for the log.
        metrics: What is counted; None makes its own.

    Attributes:
        draining: Whether new requests are refused.
        trouble: Why no request is taken at all; None while they are.
        inflight: Requests that are being answered.
    """

    def __init__(
        self,
        engine: Engine,
        model: Model,
        options: Options | None = None,
        *,
        say: Callable[[str], object] = lambda _line: None,
        metrics: Metrics | None = None,
    ) -> None:
        self.engine, self.model = engine, model
        self.options = options or Options()
        self.metrics = metrics or Metrics()
        self.say = say
        self.draining = False
        self.trouble: str | None = None
        self.inflight = 0
        self._works: set[asyncio.Task[Any]] = set()
        self._given_up = False

    def new_id(self) -> str:
        """Returns an id that no other request has."""
        return uuid.uuid4().hex

    def drain(self) -> None:
        """Refuses new requests from now on."""
        self.draining = True
        self.metrics.drains()

    def give_up(self) -> None:
        """Ends the requests in flight; their clients are told."""
        self._given_up = True
        for work in tuple(self._works):
            work.cancel()

    async def generate(self, asked: Generation, writer: Writer) -> AsyncGenerator[Piece, None]:
        """Generates an answer, and yields its pieces as they come.

        The last piece has the reason of its end. Closing the generator early ends the request at
        the server.

        Args:
            asked: What to generate.
            writer: Writes the text.
        """
        async with self.tokens(asked) as responses:
            async for tokens in responses:
                piece = writer.push(tokens)
                if piece.ids or piece.text or piece.prompt_log_probs is not None:
                    yield piece
                if writer.stopped:
                    break
        yield writer.finish()

    @asynccontextmanager
    async def tokens(self, asked: Generation) -> AsyncGenerator[AsyncGenerator[Tokens, None], None]:
        """Gives the tokens of an answer as they come, counted; leaving ends the request."""
        responses = self.engine.generate(asked)

        async def counted() -> AsyncGenerator[Tokens, None]:
            with Watch(self.metrics, len(asked.prompt), time.perf_counter()) as watch:
                async for tokens in responses:
                    watch.took(tokens, time.perf_counter())
                    yield tokens

        following = counted()
        try:
            yield following
        finally:
            await following.aclose()
            if (close := getattr(responses, "aclose", None)) is not None:
                await close()

    async def unless_gone(self, receive: Receive, work: Awaitable[Result]) -> Result:
        """Waits for a part of an answer, unless the client goes meanwhile.

        Args:
            receive: ASGI's, of the request, whose body has been read.
            work: The part; it is cancelled when the client goes.

        Raises:
            ClientGone: It went.
            ApiError: The gateway stops and waits no longer.
        """
        task = asyncio.ensure_future(work)
        watch = asyncio.ensure_future(_gone(receive))
        self._works.add(task)
        try:
            if self._given_up:
                raise cut_off()
            await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientGone
            if task.cancelled() and self._given_up:
                raise cut_off()
            return task.result()
        finally:
            self._works.discard(task)
            watch.cancel()
            task.cancel()
            await asyncio.gather(task, watch, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

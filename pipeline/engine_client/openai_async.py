"""The asyncio client of a server with OpenAI's API: what load tests and crowds need."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pipeline.engine_client.openai_answer import (
    Answer,
    Lines,
    completion_of,
    error_of,
    event_of,
    object_of,
)
from pipeline.engine_client.openai_client import closed, encoded, hang_up
from pipeline.engine_client.openai_request import as_it_is, body_of, named, text_of, with_fields
from pipeline.engine_client.openai_settings import (
    COMPLETIONS,
    INFO_TIMEOUT_S,
    MODELS,
    PROPS,
    TOKENIZE,
    Served,
    Settings,
    checked,
    late,
    transport_error,
)
from trtllm_client import Cancelled, Chunk, ClientError, Completion, GenerateRequest, InvalidRequest

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from trtllm_client import ModelMetadata, Tls
    from trtllm_client._request import SamplingOptions

Piece = Chunk | ClientError | None


class AsyncOpenAiClient:
    """A connection to a server with OpenAI's API; arguments as for ``OpenAiClient``.

    Make it inside the running event loop that uses it.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        timeout: float | None = 300.0,
        stall_timeout: float | None = 60.0,
        tls: Tls | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._settings = Settings.build(
            url, timeout=timeout, stall_timeout=stall_timeout, tls=tls, headers=headers
        )
        import httpx2

        self.url, self.model = self._settings.url, model or ""
        self._begin: str | None = None
        self._http = httpx2.AsyncClient(**self._settings.connection())
        self._streams: weakref.WeakSet[AsyncOpenAiStream] = weakref.WeakSet()
        self._closed = False

    async def generate(
        self,
        request: GenerateRequest | str | bytes,
        *,
        timeout: float | None = None,
        model: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Completion:
        """Returns the whole answer in one response."""
        asked = named(with_fields(request, sampling))
        body = await self._whole(asked, body_of(asked, model=model or self.model, stream=False))
        limit = self._settings.read_timeout(timeout, stream=False)
        content = await self._send("POST", COMPLETIONS, encoded(body), limit)
        answer = Answer.of(asked, self.url, whole=True)
        chunk = answer.feed(object_of(content, self.url))
        answer.end()
        return completion_of([chunk], asked.request_id or "")

    def stream(
        self,
        request: GenerateRequest | str | bytes,
        *,
        timeout: float | None = None,
        model: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> AsyncOpenAiStream:
        """Starts an answer in pieces, and returns at once; errors come with the pieces.

        Raises:
            InvalidRequest: The request is wrong.
        """
        if self._closed:
            raise closed(self.url)
        asked = named(with_fields(request, sampling))
        body = body_of(asked, model=model or self.model, stream=True)
        stream = AsyncOpenAiStream(
            self._http,
            partial(self._whole, asked, body),
            asked.request_id or "",
            Answer.of(asked, self.url, whole=False),
            self.url,
            read_timeout=self._settings.read_timeout(timeout, stream=True),
            deadline=self._settings.deadline(timeout),
        )
        self._streams.add(stream)
        return stream

    async def model_metadata(self, model: str | None = None) -> ModelMetadata:
        """Asks the server about a model.

        Raises:
            InvalidRequest: There is no such model.
            ClientError: The server does not answer.
        """
        return (await self._served(model)).model_metadata()

    async def cancel(self, request_id: str) -> None:
        """Does nothing: such a server knows no ids, and closing a stream ends its request."""

    async def close(self) -> None:
        """Closes the connection; running requests end as cancelled."""
        self._closed = True
        for stream in tuple(self._streams):
            stream.cancel()
        await self._http.aclose()

    async def _served(self, model: str | None = None) -> Served:
        models = object_of(await self._send("GET", MODELS, None, INFO_TIMEOUT_S), self.url)
        try:
            props = object_of(await self._send("GET", PROPS, None, INFO_TIMEOUT_S), self.url)
        except InvalidRequest:  # not llama.cpp's
            props = None
        served = Served.read(models, props, model or self.model or None, self.url)
        self.model = self.model or served.name
        self._begin = served.begin
        return served

    async def _whole(self, request: GenerateRequest, body: dict[str, Any]) -> dict[str, Any]:
        """The body with the prompt as token ids, where nothing is to be put around it."""
        if self._begin is None:
            await self._served()
        if not as_it_is(request, self._begin or ""):
            return body
        asked = {"content": text_of(request), "add_special": False, "parse_special": True}
        answer = await self._send("POST", TOKENIZE, encoded(asked), INFO_TIMEOUT_S)
        return {**body, "prompt": object_of(answer, self.url).get("tokens")}

    async def _send(
        self, method: str, path: str, content: bytes | None, limit: float | None
    ) -> bytes:
        import httpx2

        try:
            response = await self._http.request(method, path, content=content, timeout=limit)
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise transport_error(error, self.url) from error
        except RuntimeError as error:  # so says httpx2 of a closed client
            raise closed(self.url) from error
        return checked(response.status_code, response.content, self.url)

    async def __aenter__(self) -> AsyncOpenAiClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


class AsyncOpenAiStream:
    """A running request; iterate it with ``async for``.

    :meth:`cancel`, dropping the object or cancelling the task that iterates ends the request on the
    server and frees its slot.

    Attributes:
        request_id: The client's name of the request.
    """

    def __init__(
        self,
        http: Any,
        body: Callable[[], Awaitable[dict[str, Any]]],
        request_id: str,
        answer: Answer,
        address: str,
        *,
        read_timeout: float | None,
        deadline: float,
    ) -> None:
        self.request_id = request_id
        self._address = address
        self._pieces: asyncio.Queue[Piece] = asyncio.Queue()
        self._cancelled = self._done = False
        loop = asyncio.get_running_loop()
        # It knows the queue and not this object, so that one that is dropped ends it.
        self._task = loop.create_task(
            _pump(
                http,
                body=body,
                answer=answer,
                address=address,
                pieces=self._pieces,
                read_timeout=read_timeout,
                deadline=deadline,
            )
        )
        self._end = weakref.finalize(self, self._task.cancel)
        self._end.atexit = False

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        """Returns the next chunk.

        Raises:
            StopAsyncIteration: The answer is complete, or the stream was closed.
            ClientError: The request failed.
        """
        if self._done:
            raise StopAsyncIteration
        try:
            piece = await self._pieces.get()
        except BaseException:
            self._finish()
            raise
        if isinstance(piece, Chunk):
            return piece
        cancelled = self._cancelled
        self._finish()
        if piece is None:
            raise StopAsyncIteration
        if cancelled:
            raise Cancelled("the request was cancelled", where=self._address)
        raise piece

    async def completion(self) -> Completion:
        """Collects what is left of the answer.

        Raises:
            ClientError: The request failed.
        """
        return completion_of([chunk async for chunk in self], self.request_id)

    def cancel(self) -> None:
        """Ends the request; a task that waits for a chunk gets :class:`Cancelled`."""
        if self._task.done():
            return
        self._cancelled = True
        self._task.cancel()
        self._pieces.put_nowait(Cancelled("the request was cancelled", where=self._address))

    def _finish(self) -> None:
        self._done = True
        self._task.cancel()


async def _pump(
    http: Any,
    *,
    body: Callable[[], Awaitable[dict[str, Any]]],
    answer: Answer,
    address: str,
    pieces: asyncio.Queue[Piece],
    read_timeout: float | None,
    deadline: float,
) -> None:
    """Reads an answer into a queue: its chunks, and then None or an error."""
    import httpx2

    loop = asyncio.get_running_loop()
    received = 0
    try:
        content = encoded(await body())
        async with http.stream(
            "POST", COMPLETIONS, content=content, timeout=read_timeout
        ) as response:
            if response.status_code >= 400:
                raise error_of(response.status_code, await response.aread(), address)
            lines = Lines()
            try:
                async for some in response.aiter_raw():
                    if loop.time() >= deadline:
                        raise late(address, received)
                    for line in lines.feed(some):
                        if (event := event_of(line, address)) is not None:
                            received += 1
                            pieces.put_nowait(answer.feed(event))
            except asyncio.CancelledError:
                # At once, whatever is still to be read: the server sees it with its next piece.
                hang_up(response)
                raise
        answer.end()
    except (httpx2.HTTPError, httpx2.StreamError) as error:
        failed = loop.time() >= deadline
        pieces.put_nowait(
            late(address, received)
            if failed
            else transport_error(error, address, received=received)
        )
    except ClientError as error:
        pieces.put_nowait(error)
    except RuntimeError:  # so says httpx2 of a closed client
        pieces.put_nowait(closed(address))
    else:
        pieces.put_nowait(None)

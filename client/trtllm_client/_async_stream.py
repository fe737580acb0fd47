"""A running request of the asyncio client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any

from trtllm_client._answer import StreamState, collect
from trtllm_client._errors import Cancelled, ClientError, error_from_status, went_silent
from trtllm_client._grpc import Message, grpc, grpc_aio
from trtllm_client._request import Chunk, Completion
from trtllm_client._settings import CLOSE_TIMEOUT_S, Prepared
from trtllm_client._traits import Traits
from trtllm_client._wire import Tensors

Ask = Callable[[Prepared], Awaitable[tuple[Prepared, Traits]]]
"""Asks the server what has to be known before a message is sent; returns the message to send, and
how its model answers."""


class AsyncStream:
    """A running request; iterate it with ``async for``.

    Leaving the ``async with`` block, :meth:`cancel`, dropping the object or cancelling the task
    that iterates ends the request on the server and frees its slot.

    Attributes:
        request_id: The id the request runs under.
    """

    def __init__(
        self,
        call: Callable[[AsyncIterator[Message]], Any],
        prepared: Prepared,
        address: str,
        ask: Ask | None = None,
    ) -> None:
        self.request_id: str = prepared.message.id
        self._prepared = prepared
        self._deadline = prepared.deadline()
        self._address = address
        self._state = StreamState(address, expects_data=prepared.expects_data)
        self._stalled = self._cancelled = self._closed = False
        self._refused: ClientError | ImportError | None = None
        self._call = call(self._messages(ask))

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        """Returns the next chunk.

        Raises:
            StopAsyncIteration: The answer is complete, or the stream was closed.
            ClientError: The request failed.
        """
        if self._closed:
            raise StopAsyncIteration
        try:
            return await self._read()
        except BaseException:
            await self.close()
            raise

    async def tensors(self) -> Tensors | None:
        """Returns the tensors of the next response, in the place of a chunk; None at the end.

        Raises:
            ClientError: The request failed.
        """
        try:
            while not self._closed:
                tensors = self._state.feed_tensors(await self._wait())
                if tensors is not None:
                    return tensors
        except StopAsyncIteration:
            await self.close()
        except BaseException:
            await self.close()
            raise
        return None

    async def completion(self) -> Completion:
        """Collects what is left of the answer: all of it if nothing was read before.

        Raises:
            ClientError: The request failed.
        """
        chunks = [chunk async for chunk in self]
        return collect(chunks, self.request_id, self._prepared.max_tokens)

    def cancel(self) -> None:
        """Ends the request; a task that waits for a chunk gets :class:`Cancelled`."""
        self._cancelled = True
        self._call.cancel()

    async def close(self) -> None:
        """Ends the request if it is still running."""
        self._closed = True
        self._call.cancel()

    async def _messages(self, ask: Ask | None) -> AsyncIterator[Message]:
        if ask is not None:
            try:
                prepared, traits = await ask(self._prepared)
            except (ClientError, ImportError) as error:
                self._refused = error
                self._call.cancel()
                return
            self._prepared = prepared.suited_to(traits)
            if traits.accumulates:
                self._state.accumulates()
        yield self._prepared.message

    async def _read(self) -> Chunk:
        while True:
            response = await self._wait()
            chunk = self._state.feed(response)
            if chunk is not None:
                return chunk

    async def _wait(self) -> Any:
        limit = CLOSE_TIMEOUT_S if self._state.complete else self._prepared.stall_timeout
        loop = asyncio.get_running_loop()
        alarm = None if limit is None else loop.call_later(limit, self._give_up)
        try:
            response = await self._call.read()
        except asyncio.CancelledError as error:
            # gRPC raises it for a cancelled call as well as for a cancelled task.
            if self._state.complete and self._stalled:
                raise StopAsyncIteration from None
            if self._refused:
                raise self._refused from error
            if self._stalled or self._cancelled or self._cancelled_late():
                raise self._failure(None) from error
            raise
        except grpc.RpcError as error:
            if self._state.complete:
                # The whole answer is here; how the connection ended changes nothing.
                raise StopAsyncIteration from None
            raise self._failure(error) from error
        finally:
            if alarm:
                alarm.cancel()
        if response is grpc_aio.EOF:
            self._state.end()
            raise StopAsyncIteration
        return response

    def _give_up(self) -> None:
        if not self._state.complete and self._prepared.stall_timeout is None:
            return  # meanwhile it is known that the model answers once, at the end
        self._stalled = True
        self._call.cancel()

    def _cancelled_late(self) -> bool:
        """Whether gRPC cancelled the call by itself: its deadline passed while it was set up.

        Python 3.10 cannot tell that from a task that was cancelled at the same moment.
        """
        cancelling = getattr(asyncio.current_task(), "cancelling", None)
        return cancelling is not None and not cancelling() and self._late()

    def _late(self) -> bool:
        return time.monotonic() >= self._deadline

    def _failure(self, error: Any) -> ClientError:
        """The error for a call that ended with a gRPC error; None stands for a cancelled call."""
        received = self._state.received
        if self._stalled:
            return went_silent(self._address, self._prepared.stall_timeout, received)
        if self._cancelled:
            return Cancelled("the request was cancelled", where=self._address)
        code, details = ("DEADLINE_EXCEEDED", "") if error is None else _status(error)
        return error_from_status(code, details, self._address, answered=received, late=self._late())

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


def _status(error: Any) -> tuple[str, str]:
    return error.code().name, error.details() or ""

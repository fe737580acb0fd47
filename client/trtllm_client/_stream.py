"""A running request of the synchronous client."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from trtllm_client._answer import StreamState, collect
from trtllm_client._errors import Cancelled, ClientError, error_from_status, went_silent
from trtllm_client._grpc import grpc
from trtllm_client._request import Chunk, Completion
from trtllm_client._settings import CLOSE_TIMEOUT_S, Prepared
from trtllm_client._stall_timer import StallTimer


class Stream:
    """A running request; iterate it for its chunks.

    Leaving the ``with`` block, :meth:`cancel` or dropping the object ends the request on the server
    and frees its slot. One thread may iterate while others cancel.

    Attributes:
        request_id: The id the request runs under.
        give_up_at: When the present wait is too long, in ``time.monotonic`` seconds.
    """

    def __init__(
        self, call: Any, prepared: Prepared, address: str, stall_timer: StallTimer
    ) -> None:
        self.request_id: str = prepared.message.id
        self.give_up_at: float | None = None
        self._call = call
        self._prepared = prepared
        self._deadline = prepared.deadline()
        self._address = address
        self._stall_timer = stall_timer
        self._state = StreamState(address, expects_data=prepared.expects_data)
        self._stalled = self._cancelled = self._closed = False
        # The wait for the end of the stream is limited even where that for an answer is not.
        stall_timer.watch(self, min(prepared.stall_timeout or CLOSE_TIMEOUT_S, CLOSE_TIMEOUT_S))

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        """Returns the next chunk.

        Raises:
            StopIteration: The answer is complete, or the stream was closed.
            ClientError: The request failed.
        """
        if self._closed:
            raise StopIteration
        try:
            return self._read()
        except BaseException:
            self.close()
            raise

    def accumulates(self) -> None:
        """Says, before anything is read, that each response holds the whole text so far."""
        self._state.accumulates()

    def completion(self) -> Completion:
        """Collects what is left of the answer: all of it if nothing was read before.

        Raises:
            ClientError: The request failed.
        """
        return collect(self, self.request_id, self._prepared.max_tokens)

    def cancel(self) -> None:
        """Ends the request; a thread that waits for a chunk gets :class:`Cancelled`."""
        self._cancelled = True
        self._call.cancel()

    def close(self) -> None:
        """Ends the request if it is still running."""
        self._closed = True
        self._call.cancel()
        self._stall_timer.release(self)

    def give_up(self) -> None:
        """Ends a wait that lasted too long."""
        self._stalled = True
        self._call.cancel()

    def _read(self) -> Chunk:
        while True:
            response = self._wait()
            chunk = self._state.feed(response)
            if chunk is not None:
                return chunk

    def _wait(self) -> Any:
        limit = CLOSE_TIMEOUT_S if self._state.complete else self._prepared.stall_timeout
        self.give_up_at = None if limit is None else time.monotonic() + limit
        try:
            return next(self._call)
        except StopIteration:
            self._state.end()
            raise
        except grpc.RpcError as error:
            if self._state.complete:
                # The whole answer is here; how the connection ended changes nothing.
                raise StopIteration from None
            raise self._failure(error) from error
        finally:
            self.give_up_at = None

    def _failure(self, error: Any) -> ClientError:
        received = self._state.received
        if self._stalled:
            return went_silent(self._address, self._prepared.stall_timeout, received)
        if self._cancelled:
            return Cancelled("the request was cancelled", where=self._address)
        return error_from_status(
            error.code().name,
            error.details() or "",
            self._address,
            answered=received,
            late=time.monotonic() >= self._deadline,
        )

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

"""What every client of a served engine does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import Self

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from trtllm_client import (
        ChatTemplate,
        Chunk,
        Completion,
        GenerateRequest,
        ModelMetadata,
        ServerMetadata,
    )
    from trtllm_client._request import SamplingOptions


class TextStream(Protocol):
    """A running request; iterate it for its chunks. Leaving its ``with`` block ends the request."""

    request_id: str

    def __iter__(self) -> Iterator[Chunk]: ...

    def __next__(self) -> Chunk: ...

    def completion(self) -> Completion:
        """Collects what is left of the answer.

        Raises:
            ClientError: The request failed.
        """

    def cancel(self) -> None:
        """Ends the request; a thread that waits for a chunk gets ``Cancelled``."""

    def close(self) -> None:
        """Ends the request if it is still running."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class TextClient(Protocol):
    """A connection to a server; safe to share between threads.

    Attributes:
        url: The server's address.
        model: The model that takes the requests.
    """

    url: str
    model: str

    def generate(
        self,
        request: GenerateRequest | str | bytes,
        *,
        timeout: float | None = None,
        model: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Completion:
        """Returns the whole answer in one response.

        Raises:
            ClientError: The request failed.
        """

    def stream(
        self,
        request: GenerateRequest | str | bytes,
        *,
        timeout: float | None = None,
        model: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> TextStream:
        """Starts an answer in pieces, as it is generated.

        Raises:
            ClientError: The request is wrong, or the server does not answer.
        """

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: ChatTemplate | None = None,
        template_variables: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        model: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> TextStream:
        """Starts the assistant's next message in pieces.

        Raises:
            ClientError: There is no template, it refuses the messages, or the request is wrong.
        """

    def chat_template(self, model: str | None = None) -> ChatTemplate:
        """Returns the chat template of the served model.

        Raises:
            InvalidRequest: The server does not say one.
            ClientError: The server does not answer.
        """

    def is_ready(self) -> bool:
        """Asks whether the server and the client's model are ready; no answer is False as well."""

    def metadata(self) -> ServerMetadata:
        """Asks the server about itself.

        Raises:
            ClientError: The server does not answer.
        """

    def model_metadata(self, model: str | None = None) -> ModelMetadata:
        """Asks the server about a model, the client's if none is named.

        Raises:
            InvalidRequest: There is no such model.
            ClientError: The server does not answer.
        """

    def cancel(self, request_id: str) -> None:
        """Ends a request by its id, where the server knows ids.

        Raises:
            ClientError: The server did not take the call.
        """

    def close(self) -> None:
        """Closes the connection; running requests end as cancelled."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class AsyncTextStream(Protocol):
    """A running request; iterate it with ``async for``."""

    request_id: str

    def __aiter__(self) -> AsyncIterator[Chunk]: ...

    async def __anext__(self) -> Chunk: ...

    def cancel(self) -> None:
        """Ends the request; a task that waits for a chunk gets ``Cancelled``."""


class AsyncTextClient(Protocol):
    """A connection to a server for asyncio, with the methods of :class:`TextClient`."""

    url: str
    model: str

    async def generate(
        self,
        request: GenerateRequest | str | bytes,
        *,
        timeout: float | None = None,
        model: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Completion:
        """Returns the whole answer in one response.

        Raises:
            ClientError: The request failed.
        """

    def stream(
        self,
        request: GenerateRequest | str | bytes,
        *,
        timeout: float | None = None,
        model: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> AsyncTextStream:
        """Starts an answer in pieces, and returns at once.

        Raises:
            InvalidRequest: The request is wrong; all other errors come with the pieces.
        """

    async def model_metadata(self, model: str | None = None) -> ModelMetadata:
        """Asks the server about a model, the client's if none is named.

        Raises:
            ClientError: The server does not answer, or has no such model.
        """

    async def cancel(self, request_id: str) -> None:
        """Ends a request by its id, where the server knows ids.

        Raises:
            ClientError: The server did not take the call.
        """

    async def close(self) -> None:
        """Closes the connection; running requests end as cancelled."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

"""The asyncio client: the methods of the synchronous one, awaited."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from trtllm_client._async_stream import Ask, AsyncStream
from trtllm_client._chat import Chats, check_fields, placeholder
from trtllm_client._chat_template import ChatTemplate
from trtllm_client._config import DEFAULT_URL, Tls, open_channel
from trtllm_client._contract import DEFAULT_MODEL
from trtllm_client._errors import CallRestricted, ClientError, client_closed, error_from_status
from trtllm_client._grpc import GRPCInferenceServiceStub, Message, grpc, grpc_aio, messages
from trtllm_client._info import ModelMetadata, ServerMetadata, model_metadata, server_metadata
from trtllm_client._request import Completion, GenerateRequest
from trtllm_client._settings import INFO_TIMEOUT_S, Prepared, Settings
from trtllm_client._traits import Traits
from trtllm_client._wire import Outputs, Tensors, decode_outputs, decode_tensors, stop_request

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from trtllm_client._chat import Result, Steps
    from trtllm_client._request import SamplingOptions

# Rounds of the loop when a client is closed: more than gRPC's socket of events holds on Linux (277
# bytes, each charged with 768 of 212,992), and than a cancelled call has still to tell.
_UNHEARD_EVENTS = 512
_EVENTS_OF_A_CALL = 16


class AsyncClient:
    """A connection to a Triton server for asyncio; arguments as for :class:`Client`.

    Make it inside the running event loop that uses it.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        model: str = DEFAULT_MODEL,
        timeout: float | None = 300.0,
        stall_timeout: float | None = 60.0,
        tls: Tls | None = None,
        headers: Mapping[str, str] | None = None,
        validate: bool = True,
        accumulate_tokens: bool | None = None,
    ) -> None:
        self._settings = Settings.build(
            url,
            model=model,
            timeout=timeout,
            stall_timeout=stall_timeout,
            tls=tls,
            headers=headers,
            validate=validate,
            accumulate_tokens=accumulate_tokens,
        )
        self.url = self._settings.endpoint.url
        self.model = model
        self._channel = open_channel(self._settings.endpoint, tls, grpc_aio)
        self._stub = GRPCInferenceServiceStub(self._channel)
        self._streams: weakref.WeakSet[AsyncStream] = weakref.WeakSet()
        self._traits: dict[str, asyncio.Task[Traits]] = {}
        self._chats = Chats(self.url)
        self._closed = False

    async def generate(
        self,
        request: GenerateRequest | str | bytes,
        *,
        model: str | None = None,
        timeout: float | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Completion:
        """Returns the whole answer in one response, as :meth:`Client.generate` does."""
        prepared = self._settings.prepare(
            request, sampling, model=model, timeout=timeout, stream=False
        )
        async with self._start(prepared) as stream:
            return await stream.completion()

    def stream(
        self,
        request: GenerateRequest | str | bytes,
        *,
        model: str | None = None,
        timeout: float | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> AsyncStream:
        """Starts an answer in pieces, as :meth:`Client.stream` does, and returns at once.

        What goes wrong at the server comes with the pieces.

        Raises:
            InvalidRequest: The request is wrong.
        """
        prepared = self._settings.prepare(
            request, sampling, model=model, timeout=timeout, stream=True
        )
        return self._start(prepared, self._ask_how(model))

    async def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: ChatTemplate | None = None,
        template_variables: Mapping[str, Any] | None = None,
        model: str | None = None,
        timeout: float | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Completion:
        """Returns the assistant's next message, whole, as :meth:`Client.chat` does."""
        request = await self._follow(
            self._chats.request(
                messages,
                sampling,
                tools=tools,
                template=template,
                variables=template_variables,
                model=model or self.model,
            )
        )
        return await self.generate(request, model=model, timeout=timeout)

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: ChatTemplate | None = None,
        template_variables: Mapping[str, Any] | None = None,
        model: str | None = None,
        timeout: float | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> AsyncStream:
        """Starts the assistant's next message in pieces, and returns at once.

        Arguments as of :meth:`Client.chat`. What goes wrong with the messages, their template or
        at the server comes with the pieces.

        Raises:
            InvalidRequest: A field of the request is wrong.
        """
        check_fields(sampling, template, template_variables)
        request = placeholder(sampling, uuid.uuid4().hex)
        prepared = self._settings.prepare(request, {}, model=model, timeout=timeout, stream=True)
        steps = self._chats.request(
            messages,
            sampling,
            tools=tools,
            template=template,
            variables=template_variables,
            model=model or self.model,
        )

        async def ask(_: Prepared) -> tuple[Prepared, Traits]:
            rendered = dataclasses.replace(await self._follow(steps), request_id=request.request_id)
            message = self._settings.prepare(
                rendered, {}, model=model, timeout=timeout, stream=True
            )
            return message, await self._traits_of(model or self.model)

        return self._start(prepared, ask)

    async def chat_template(self, model: str | None = None) -> ChatTemplate:
        """Returns the chat template of the served model; see :meth:`Client.chat_template`."""
        return await self._follow(self._chats.template(model or self.model))

    def send(self, message: Message, *, timeout: float | None = None) -> AsyncStream:
        """Sends a ``ModelInferRequest`` as it is; see :meth:`Client.send`."""
        limit = self._settings.limit(timeout)
        return self._start(Prepared(message, limit, self._settings.stall_timeout))

    async def responses(
        self, message: Message, *, timeout: float | None = None
    ) -> AsyncGenerator[Tensors, None]:
        """Yields the responses to a ``ModelInferRequest``; see :meth:`Client.responses`."""
        async with self.send(message, timeout=timeout) as stream:
            while (tensors := await stream.tensors()) is not None:
                yield tensors

    async def infer_tensors(self, message: Message, *, timeout: float | None = None) -> Tensors:
        """Returns the outputs of a model that answers once; see :meth:`Client.infer_tensors`."""
        limit = self._settings.limit(timeout)
        return decode_tensors(await self._call("ModelInfer", message, limit))

    async def infer(self, message: Message, *, timeout: float | None = None) -> Outputs:
        """Returns the outputs of a model that answers once; see :meth:`Client.infer`."""
        limit = self._settings.limit(timeout)
        return decode_outputs(await self._call("ModelInfer", message, limit))

    async def cancel(self, request_id: str) -> None:
        """Ends a request by its id; see :meth:`Client.cancel`."""
        message = stop_request(request_id)
        prepared = Prepared(message, INFO_TIMEOUT_S, None, expects_data=False)
        async with self._start(prepared) as stream:
            async for _ in stream:
                pass

    async def is_ready(self) -> bool:
        """Asks whether the server and the client's model are ready; see :meth:`Client.is_ready`."""
        try:
            server = await self._call("ServerReady", messages.ServerReadyRequest())
            model = await self._call("ModelReady", messages.ModelReadyRequest(name=self.model))
        except ClientError:
            return False
        return bool(server.ready and model.ready)

    async def metadata(self) -> ServerMetadata:
        """Asks the server about itself; see :meth:`Client.metadata`."""
        return server_metadata(await self._call("ServerMetadata", messages.ServerMetadataRequest()))

    async def model_metadata(self, model: str | None = None) -> ModelMetadata:
        """Asks the server about a model; see :meth:`Client.model_metadata`."""
        name = model or self.model
        metadata = await self._call("ModelMetadata", messages.ModelMetadataRequest(name=name))
        config = await self._call("ModelConfig", messages.ModelConfigRequest(name=name))
        return model_metadata(metadata, config)

    async def close(self) -> None:
        """Closes the connection; running requests end as cancelled."""
        self._closed = True
        # grpc.aio lets the calls of a closed channel run on.
        streams = tuple(self._streams)
        for stream in streams:
            stream.cancel()
        await self._channel.close()
        # gRPC tells the loop of each event with a byte through a socket, of which a round of the
        # loop reads one. A loop that ends while the socket is full never returns: with the last
        # call it joins gRPC's thread, which waits for room to write.
        for _ in range(_UNHEARD_EVENTS + _EVENTS_OF_A_CALL * len(streams)):
            await asyncio.sleep(0)

    def _start(self, prepared: Prepared, ask: Ask | None = None) -> AsyncStream:
        self._check_open()

        def call(messages: AsyncIterator[Message]) -> Any:
            return self._stub.ModelStreamInfer(
                messages, timeout=prepared.timeout, metadata=self._settings.headers
            )

        stream = AsyncStream(call, prepared, self.url, ask)
        self._streams.add(stream)
        return stream

    def _ask_how(self, model: str | None) -> Ask:
        async def ask(prepared: Prepared) -> tuple[Prepared, Traits]:
            return prepared, await self._traits_of(model or self.model)

        return ask

    async def _traits_of(self, model: str) -> Traits:
        """Asks once, however many streams begin together."""
        task = self._traits.get(model)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = asyncio.get_running_loop().create_task(self._ask_traits(model))
            self._traits[model] = task
        # One stream that is cancelled must not end the question for the others.
        return await asyncio.shield(task)

    async def _ask_traits(self, model: str) -> Traits:
        try:
            return self._settings.traits(await self.model_metadata(model))
        except CallRestricted:
            return self._settings.assumed_traits()

    async def _follow(self, steps: Steps[Result]) -> Result:
        """Makes the calls that steps ask for, and returns what they come to."""
        try:
            step = next(steps)
            while True:
                try:
                    answer = await self._call(*step)
                except ClientError as error:  # noqa: PERF203 -- the steps decide
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as done:
            result: Result = done.value
            return result

    async def _call(
        self, method: str, request: Message, timeout: float | None = INFO_TIMEOUT_S
    ) -> Message:
        self._check_open()
        try:
            return await getattr(self._stub, method)(
                request, timeout=timeout, metadata=self._settings.headers
            )
        except grpc.RpcError as error:
            raise error_from_status(error.code().name, error.details() or "", self.url) from error

    def _check_open(self) -> None:
        if self._closed:
            raise client_closed(self.url)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

"""The synchronous client."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from trtllm_client._chat import Chats
from trtllm_client._chat_template import ChatTemplate
from trtllm_client._config import DEFAULT_URL, Tls, open_channel
from trtllm_client._contract import DEFAULT_MODEL
from trtllm_client._errors import (
    CallRestricted,
    ClientError,
    ConnectionFailed,
    client_closed,
    error_from_message,
    error_from_status,
)
from trtllm_client._grpc import GRPCInferenceServiceStub, Message, grpc, messages
from trtllm_client._info import ModelMetadata, ServerMetadata, model_metadata, server_metadata
from trtllm_client._request import Completion, GenerateRequest
from trtllm_client._settings import INFO_TIMEOUT_S, Prepared, Settings
from trtllm_client._stall_timer import StallTimer
from trtllm_client._stream import Stream
from trtllm_client._traits import Traits
from trtllm_client._wire import Outputs, Tensors, decode_outputs, decode_tensors, stop_request

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from trtllm_client._chat import Result, Steps
    from trtllm_client._request import SamplingOptions


class Client:
    """A connection to a Triton server; safe to share between threads.

    Args:
        url: ``host:port``, ``grpc://host:port`` or ``grpcs://host:port`` (TLS).
        model: The Triton model that takes text: ``tensorrt_llm_bls`` or ``ensemble``.
        timeout: Seconds for a whole request; None and infinity are no limit.
        stall_timeout: Seconds between two responses of a stream; likewise.
        tls: Certificates; also turns TLS on for an address without a scheme.
        headers: gRPC metadata sent with every call, such as an authorization.
        validate: Whether requests are checked before they are sent.
        accumulate_tokens: Whether each response of a stream holds the whole text so far; the pieces
            that this client hands out are new text either way. None takes the model's word.

    Attributes:
        url: The address with its scheme.
        model: As given.

    Raises:
        InvalidRequest: The address, a limit or a certificate is not usable.
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
        self._channel = open_channel(self._settings.endpoint, tls, grpc)
        self._stub = GRPCInferenceServiceStub(self._channel)
        self._stall_timer = StallTimer()
        self._traits: dict[str, Traits] = {}
        self._chats = Chats(self.url)

    def generate(
        self,
        request: GenerateRequest | str | bytes,
        *,
        model: str | None = None,
        timeout: float | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Completion:
        """Returns the whole answer in one response.

        Args:
            request: A request, or a prompt.
            model: Instead of the client's.
            timeout: Seconds, instead of the client's.
            sampling: Fields of :class:`GenerateRequest`.

        Raises:
            ClientError: The request failed.
        """
        prepared = self._settings.prepare(
            request, sampling, model=model, timeout=timeout, stream=False
        )
        with self._start(prepared) as stream:
            return stream.completion()

    def stream(
        self,
        request: GenerateRequest | str | bytes,
        *,
        model: str | None = None,
        timeout: float | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Stream:
        """Starts an answer in pieces, as it is generated; arguments as for :meth:`generate`.

        The first stream of a model asks the server how the model answers: whether each response
        holds the new text or all of it, and whether it can stream at all. Where it cannot, there is
        one piece.

        Raises:
            InvalidRequest: The request is wrong.
            ClientError: The server does not say how the model answers; all other errors come with
                the pieces.
        """
        prepared = self._settings.prepare(
            request, sampling, model=model, timeout=timeout, stream=True
        )
        traits = self._traits_of(model or self.model)
        stream = self._start(prepared.suited_to(traits))
        if traits.accumulates:
            stream.accumulates()
        return stream

    def chat(
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
        """Returns the assistant's next message, whole.

        The messages go through the model's own chat template, and nothing else is put around the
        text. It ends where the model ends its turn.

        Args:
            messages: The conversation so far, such as ``[{"role": "user", "content": "Hello"}]``.
            tools: JSON schemas of the functions that the model may call.
            template: Instead of the one that the server says.
            template_variables: What else the template knows, such as ``enable_thinking``.
            model: Instead of the client's.
            timeout: Seconds, instead of the client's.
            sampling: Fields of :class:`GenerateRequest`.

        Raises:
            InvalidRequest: The server has no template, the template refuses the messages, or the
                request is wrong.
            ImportError: jinja2 is not installed.
            ClientError: The request failed.
        """
        request = self._follow(
            self._chats.request(
                messages,
                sampling,
                tools=tools,
                template=template,
                variables=template_variables,
                model=model or self.model,
            )
        )
        return self.generate(request, model=model, timeout=timeout)

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
    ) -> Stream:
        """Starts the assistant's next message in pieces; arguments and errors as of :meth:`chat`.

        What goes wrong after the messages were rendered comes with the pieces, as of
        :meth:`stream`.
        """
        request = self._follow(
            self._chats.request(
                messages,
                sampling,
                tools=tools,
                template=template,
                variables=template_variables,
                model=model or self.model,
            )
        )
        return self.stream(request, model=model, timeout=timeout)

    def chat_template(self, model: str | None = None) -> ChatTemplate:
        """Returns the chat template of the served model; asked for once a minute at most.

        Args:
            model: Instead of the client's.

        Raises:
            InvalidRequest: The server does not say it: it has none, or keeps its configuration to
                itself.
            ClientError: The server does not answer.
        """
        return self._follow(self._chats.template(model or self.model))

    def send(self, message: Message, *, timeout: float | None = None) -> Stream:
        """Sends a ``ModelInferRequest`` as it is, for tools that need what ``stream`` refuses."""
        limit = self._settings.limit(timeout)
        return self._start(Prepared(message, limit, self._settings.stall_timeout))

    def infer(self, message: Message, *, timeout: float | None = None) -> Outputs:
        """Returns the outputs of a model that answers once (``preprocessing``), by name, flattened.

        Args:
            message: A ``ModelInferRequest``; see :func:`new_message`.
            timeout: Seconds, instead of the client's.

        Raises:
            ClientError: The request failed.
        """
        limit = self._settings.limit(timeout)
        return decode_outputs(self._call("ModelInfer", message, limit))

    def responses(
        self, message: Message, *, timeout: float | None = None
    ) -> Generator[Tensors, None, None]:
        """Yields the responses to a ``ModelInferRequest`` as they arrive, tensors with their shape.

        For tools that look at the wire itself. Closing the iterator cancels the request; responses
        without a tensor are left out.

        Args:
            message: See :func:`new_message`.
            timeout: Seconds, instead of the client's.

        Raises:
            ClientError: The request failed.
        """
        limit = self._settings.limit(timeout)
        call = self._stub.ModelStreamInfer(
            iter([message]), timeout=limit, metadata=self._settings.headers
        )
        return self._read(call)

    def infer_tensors(self, message: Message, *, timeout: float | None = None) -> Tensors:
        """Returns the outputs of a model that answers once, by name and with their shapes.

        Args:
            message: See :func:`new_message`.
            timeout: Seconds, instead of the client's.

        Raises:
            ClientError: The request failed.
        """
        return decode_tensors(self._call("ModelInfer", message, self._settings.limit(timeout)))

    def cancel(self, request_id: str) -> None:
        """Ends a request to ``ensemble`` or ``tensorrt_llm`` by its id, also one of another client.

        Closing a stream is enough on ``tensorrt_llm_bls``, which runs requests under ids of its
        own. Triton does not tell the engine that a stream of ``ensemble`` was closed; this does.

        Raises:
            ClientError: The server did not take the call.
        """
        message = stop_request(request_id)
        prepared = Prepared(message, INFO_TIMEOUT_S, None, expects_data=False)
        with self._start(prepared) as stream:
            for _ in stream:
                pass

    def is_ready(self) -> bool:
        """Asks whether the server and the client's model are ready; no answer is False as well."""
        try:
            server = self._call("ServerReady", messages.ServerReadyRequest())
            model = self._call("ModelReady", messages.ModelReadyRequest(name=self.model))
        except ClientError:
            return False
        return bool(server.ready and model.ready)

    def metadata(self) -> ServerMetadata:
        """Asks the server about itself.

        Raises:
            ClientError: It does not answer.
        """
        return server_metadata(self._call("ServerMetadata", messages.ServerMetadataRequest()))

    def model_metadata(self, model: str | None = None) -> ModelMetadata:
        """Asks the server about a model; the client's if none is named.

        Raises:
            InvalidRequest: There is no such model.
            ClientError: The server does not answer.
        """
        name = model or self.model
        metadata = self._call("ModelMetadata", messages.ModelMetadataRequest(name=name))
        config = self._call("ModelConfig", messages.ModelConfigRequest(name=name))
        return model_metadata(metadata, config)

    def close(self) -> None:
        """Closes the connection; running requests end as cancelled."""
        self._channel.close()

    def _read(self, call: Any) -> Generator[Tensors, None, None]:
        count = 0
        try:
            for response in call:
                if response.error_message:
                    raise error_from_message(response.error_message, self.url)
                count += 1
                if response.infer_response.outputs:
                    yield decode_tensors(response.infer_response)
        except grpc.RpcError as error:
            code, details = error.code().name, error.details() or ""
            raise error_from_status(code, details, self.url, answered=count) from error
        finally:
            call.cancel()

    def _traits_of(self, model: str) -> Traits:
        if model not in self._traits:
            try:
                metadata = self.model_metadata(model)
            except ConnectionFailed:
                # The stream itself will say so, in its own words.
                return Traits()
            except CallRestricted:
                return self._settings.assumed_traits()
            self._traits[model] = self._settings.traits(metadata)
        return self._traits[model]

    def _start(self, prepared: Prepared) -> Stream:
        try:
            call = self._stub.ModelStreamInfer(
                iter([prepared.message]), timeout=prepared.timeout, metadata=self._settings.headers
            )
        except ValueError as error:  # so says gRPC of a closed channel
            raise client_closed(self.url) from error
        return Stream(call, prepared, self.url, self._stall_timer)

    def _follow(self, steps: Steps[Result]) -> Result:
        """Makes the calls that steps ask for, and returns what they come to."""
        try:
            step = next(steps)
            while True:
                try:
                    answer = self._call(*step)
                except ClientError as error:  # noqa: PERF203 -- the steps decide
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as done:
            result: Result = done.value
            return result

    def _call(
        self, method: str, request: Message, timeout: float | None = INFO_TIMEOUT_S
    ) -> Message:
        try:
            return getattr(self._stub, method)(
                request, timeout=timeout, metadata=self._settings.headers
            )
        except ValueError as error:  # so says gRPC of a closed channel
            raise client_closed(self.url) from error
        except grpc.RpcError as error:
            raise error_from_status(error.code().name, error.details() or "", self.url) from error

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

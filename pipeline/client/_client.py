"""The synchronous client."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from pipeline.client._config import DEFAULT_MODEL, DEFAULT_URL, Tls, open_channel
from pipeline.client._errors import ClientError, client_closed, error_from_status
from pipeline.client._grpc import GRPCInferenceServiceStub, Message, grpc, messages
from pipeline.client._info import ModelMetadata, ServerMetadata, model_metadata, server_metadata
from pipeline.client._request import Completion, GenerateRequest
from pipeline.client._settings import INFO_TIMEOUT_S, Prepared, Settings
from pipeline.client._stream import Stream
from pipeline.client._watchdog import Watchdog
from pipeline.client._wire import Outputs, decode_outputs, stop_request

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pipeline.client._request import Sampling


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
    ) -> None:
        self._settings = Settings.build(
            url,
            model=model,
            timeout=timeout,
            stall_timeout=stall_timeout,
            tls=tls,
            headers=headers,
            validate=validate,
        )
        self.url = self._settings.endpoint.url
        self.model = model
        self._channel = open_channel(self._settings.endpoint, tls, grpc)
        self._stub = GRPCInferenceServiceStub(self._channel)
        self._watchdog = Watchdog()

    def generate(
        self,
        request: GenerateRequest | str | bytes,
        *,
        model: str | None = None,
        timeout: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> Completion:
        """The whole answer in one response.

        Args:
            request: A request, or a prompt.
            model: Instead of the client's.
            timeout: Instead of the client's.
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
        **sampling: Unpack[Sampling],
    ) -> Stream:
        """The answer in pieces, as it is generated; arguments as for :meth:`generate`.

        Raises:
            InvalidRequest: The request is wrong; all other errors come with the pieces.
        """
        return self._start(
            self._settings.prepare(request, sampling, model=model, timeout=timeout, stream=True)
        )

    def send(self, message: Message, *, timeout: float | None = None) -> Stream:
        """Sends a ``ModelInferRequest`` as it is, for tools that need what ``stream`` refuses."""
        limit = self._settings.limit(timeout)
        return self._start(Prepared(message, limit, self._settings.stall_timeout))

    def infer(self, message: Message, *, timeout: float | None = None) -> Outputs:
        """The outputs, by name and flattened, of a model that answers once (``preprocessing``).

        Args:
            message: A ``ModelInferRequest``; see :func:`new_message`.
            timeout: Instead of the client's.

        Raises:
            ClientError: The request failed.
        """
        limit = self._settings.limit(timeout)
        return decode_outputs(self._call("ModelInfer", message, limit))

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
        """Whether the server answers and both it and the client's model are ready."""
        try:
            server = self._call("ServerReady", messages.ServerReadyRequest())
            model = self._call("ModelReady", messages.ModelReadyRequest(name=self.model))
        except ClientError:
            return False
        return bool(server.ready and model.ready)

    def metadata(self) -> ServerMetadata:
        """What the server says about itself.

        Raises:
            ClientError: It does not answer.
        """
        return server_metadata(self._call("ServerMetadata", messages.ServerMetadataRequest()))

    def model_metadata(self, model: str | None = None) -> ModelMetadata:
        """What the server says about a model; the client's if none is named.

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

    def _start(self, prepared: Prepared) -> Stream:
        try:
            call = self._stub.ModelStreamInfer(
                iter([prepared.message]), timeout=prepared.timeout, metadata=self._settings.headers
            )
        except ValueError as error:  # so says gRPC of a closed channel
            raise client_closed(self.url) from error
        return Stream(call, prepared, self.url, self._watchdog)

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

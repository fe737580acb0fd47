"""A gRPC client for the text models of the repository.

Needs tritonclient and nothing else of the pipeline::

    from pipeline.client import Client

    with Client("127.0.0.1:8001") as client:
        print(client.generate("Once upon a time", max_tokens=32).text)
        with client.stream("Once upon a time", max_tokens=32, stop_words=(".",)) as stream:
            for chunk in stream:
                print(chunk.text, end="", flush=True)

:class:`AsyncClient` has the same methods, awaited.
"""

from pipeline.client._async_client import AsyncClient
from pipeline.client._async_stream import AsyncStream
from pipeline.client._client import Client
from pipeline.client._config import DEFAULT_MODEL, DEFAULT_URL, Tls
from pipeline.client._errors import (
    Cancelled,
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    InvalidRequest,
    ServerBusy,
    ServerFailed,
)
from pipeline.client._info import ModelMetadata, ServerMetadata, TensorMetadata
from pipeline.client._metrics import PERF_METRICS, PerfMetrics
from pipeline.client._request import Chunk, Completion, GenerateRequest
from pipeline.client._stream import Stream
from pipeline.client._wire import (
    OutputTensor,
    Tensors,
    add_input,
    encode_request,
    new_message,
)

__all__ = [
    "DEFAULT_MODEL",
    "DEFAULT_URL",
    "PERF_METRICS",
    "AsyncClient",
    "AsyncStream",
    "Cancelled",
    "Chunk",
    "Client",
    "ClientError",
    "Completion",
    "ConnectionFailed",
    "DeadlineExceeded",
    "GenerateRequest",
    "InvalidRequest",
    "ModelMetadata",
    "OutputTensor",
    "PerfMetrics",
    "ServerBusy",
    "ServerFailed",
    "ServerMetadata",
    "Stream",
    "TensorMetadata",
    "Tensors",
    "Tls",
    "add_input",
    "encode_request",
    "new_message",
]

"""A gRPC client for the text models of TensorRT-LLM's Triton repositories.

Those that ``trtllm-pipeline`` writes, and NVIDIA's own. Needs tritonclient alone::

    from trtllm_client import Client

    with Client("127.0.0.1:8001") as client:
        print(client.generate("Once upon a time", max_tokens=32).text)
        with client.stream("Once upon a time", max_tokens=32, stop_words=(".",)) as stream:
            for chunk in stream:
                print(chunk.text, end="", flush=True)

:class:`AsyncClient` has the same methods, awaited.
"""

from trtllm_client._answer import finish_reason
from trtllm_client._async_client import AsyncClient
from trtllm_client._async_stream import AsyncStream
from trtllm_client._client import Client
from trtllm_client._config import DEFAULT_URL, Tls
from trtllm_client._contract import DEFAULT_MODEL
from trtllm_client._errors import (
    Cancelled,
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    InvalidRequest,
    ServerBusy,
    ServerFailed,
)
from trtllm_client._info import ModelMetadata, ServerMetadata, TensorMetadata
from trtllm_client._metrics import PERF_METRICS, PerfMetrics
from trtllm_client._request import Chunk, Completion, GenerateRequest
from trtllm_client._stream import Stream
from trtllm_client._wire import (
    OutputTensor,
    Tensors,
    add_input,
    encode_request,
    new_message,
)

__version__ = "0.1.0"

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
    "finish_reason",
    "new_message",
]

"""A gRPC client for the text models of TensorRT-LLM's Triton repositories.

Those that ``trtllm-pipeline`` writes, and NVIDIA's own. Needs tritonclient alone::

    from trtllm_client import Client

    with Client("127.0.0.1:8001") as client:
        print(client.generate("Once upon a time", max_tokens=32).text)
        with client.stream("Once upon a time", max_tokens=32, stop_words=(".",)) as stream:
            for chunk in stream:
                print(chunk.text, end="", flush=True)

:class:`AsyncClient` has the same methods, awaited. :class:`ChatTemplate` writes conversations as a
model was trained on them; it needs jinja2 (the extra ``[chat]``), and no gRPC.

Names are imported when they are first used: a program that only renders templates needs no gRPC.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trtllm_client._answer import finish_reason
    from trtllm_client._async_client import AsyncClient
    from trtllm_client._async_stream import AsyncStream
    from trtllm_client._chat_template import ChatTemplate
    from trtllm_client._client import Client
    from trtllm_client._config import DEFAULT_URL, Tls
    from trtllm_client._contract import DEFAULT_MODEL
    from trtllm_client._errors import (
        CallRestricted,
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

_PLACES = {
    "_answer": ("finish_reason",),
    "_async_client": ("AsyncClient",),
    "_async_stream": ("AsyncStream",),
    "_chat_template": ("ChatTemplate",),
    "_client": ("Client",),
    "_config": ("DEFAULT_URL", "Tls"),
    "_contract": ("DEFAULT_MODEL",),
    "_errors": (
        "CallRestricted",
        "Cancelled",
        "ClientError",
        "ConnectionFailed",
        "DeadlineExceeded",
        "InvalidRequest",
        "ServerBusy",
        "ServerFailed",
    ),
    "_info": ("ModelMetadata", "ServerMetadata", "TensorMetadata"),
    "_metrics": ("PERF_METRICS", "PerfMetrics"),
    "_request": ("Chunk", "Completion", "GenerateRequest"),
    "_stream": ("Stream",),
    "_wire": ("OutputTensor", "Tensors", "add_input", "encode_request", "new_message"),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [
    "DEFAULT_MODEL",
    "DEFAULT_URL",
    "PERF_METRICS",
    "AsyncClient",
    "AsyncStream",
    "CallRestricted",
    "Cancelled",
    "ChatTemplate",
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


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

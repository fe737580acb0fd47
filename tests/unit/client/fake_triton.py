"""A server that speaks Triton's protocol and answers whatever a test wants."""

# ruff: noqa: ARG002 -- gRPC decides the arguments

from __future__ import annotations

import copy
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from pipeline.triton.contract import ENGINE, MODELS

CODES = {
    "INT32": "i", "INT64": "q", "UINT64": "Q", "UINT8": "B", "FP16": "e", "FP32": "f", "BOOL": "?",
}  # fmt: skip
Answer = Callable[["Asked", Any], Iterable[pb.ModelStreamInferResponse]]


class Asked:
    """A request as the server sees it.

    Attributes:
        id: Its id.
        model: The model's name.
        values: Values by tensor name.
        shapes: Shapes by tensor name.
        parameters: Names of the request parameters that are not Triton's.
        wanted: Names of the outputs asked for.
        metadata: gRPC metadata.
        message: All of it.
    """

    def __init__(self, message: Any, metadata: Iterable[tuple[str, str]] = ()) -> None:
        self.id, self.model, self.message = message.id, message.model_name, message
        self.wanted = [output.name for output in message.outputs]
        self.metadata = dict(metadata)
        self.values: dict[str, tuple[Any, ...]] = {}
        self.datatypes: dict[str, str] = {}
        self.shapes = {tensor.name: tuple(tensor.shape) for tensor in message.inputs}
        self.parameters = {name for name in message.parameters if not name.startswith("triton_")}
        for tensor, raw in zip(message.inputs, message.raw_input_contents, strict=True):
            self.datatypes[tensor.name] = tensor.datatype
            self.values[tensor.name] = tuple(_decode(tensor.datatype, raw))

    def one(self, name: str, default: Any = None) -> Any:
        """The first value of a tensor."""
        return self.values.get(name, (default,))[0]

    def rows(self) -> Iterator[Asked]:
        """The requests that a batch is made of."""
        count = max((shape[0] for shape in self.shapes.values() if shape), default=1)
        for row in range(count):
            one = copy.copy(self)
            one.values = {
                name: values[row * len(values) // count : (row + 1) * len(values) // count]
                for name, values in self.values.items()
            }
            yield one

    @property
    def prompt(self) -> str:
        return self.one("text_input").decode()


def _decode(datatype: str, raw: bytes) -> Iterator[Any]:
    if datatype != "BYTES":
        code = CODES[datatype]
        yield from struct.unpack(f"<{len(raw) // struct.calcsize('<' + code)}{code}", raw)
        return
    while raw:
        (length,) = struct.unpack_from("<I", raw)
        yield raw[4 : 4 + length]
        raw = raw[4 + length :]


def add_output(infer: Any, name: str, datatype: str, shape: list[int], values: Any) -> None:
    """Adds an output tensor to a ``ModelInferResponse``."""
    infer.outputs.add(name=name, datatype=datatype, shape=shape)
    if datatype == "BYTES":
        raw = b"".join(struct.pack("<I", len(value)) + value for value in values)
    else:
        raw = struct.pack(f"<{len(values)}{CODES[datatype]}", *values)
    infer.raw_output_contents.append(raw)


def piece(
    text: str | bytes, *, final: bool = False, shape: tuple[int, ...] = (1,), **numbers: int
) -> Any:
    """A streamed response with text and, by name, INT32 outputs."""
    response = pb.ModelStreamInferResponse()
    infer = response.infer_response
    data = text.encode() if isinstance(text, str) else text
    # One dimension, as upstream's Python models send it.
    add_output(infer, "text_output", "BYTES", list(shape), [data])
    for name, value in numbers.items():
        add_output(infer, name, "INT32", [1, 1], [value])
    infer.parameters["triton_final_response"].bool_param = final
    return response


def empty_final() -> Any:
    """A response that only marks the end."""
    response = pb.ModelStreamInferResponse()
    response.infer_response.parameters["triton_final_response"].bool_param = True
    return response


def refusal(message: str) -> Any:
    """An error, as Triton streams it."""
    response = pb.ModelStreamInferResponse(error_message=message)
    response.infer_response.parameters["triton_final_response"].bool_param = True
    return response


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """A server on a free port of this machine, inside a ``with`` block.

    Args:
        answer: Yields the responses to a streamed request.
        infer: Answers a request that is not streamed.
        credentials: Server credentials for TLS.
        workers: Requests served at once.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        infer: Callable[[Asked], Any] | None = None,
        credentials: Any = None,
        workers: int = 16,
    ) -> None:
        self.answer, self.infer = answer, infer
        self.asked: list[Asked] = []
        self.cancelled = threading.Event()
        self.ready = True
        self.models = dict(MODELS)
        self.parameters: dict[str, str] = {"tokenizer_dir": "preprocessing/1/tokenizer"}
        self.parameters_of: dict[str, dict[str, str]] = {}
        self.restricted: set[str] = set()
        self.configs_told: list[str] = []
        self._pool = ThreadPoolExecutor(workers)
        self._server = grpc.server(self._pool)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        if credentials is None:
            self.port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self._server.add_secure_port("127.0.0.1:0", credentials)

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> FakeTriton:
        self._server.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.stop(0).wait()
        self._pool.shutdown()

    def ModelStreamInfer(self, request_iterator: Any, context: Any) -> Iterator[Any]:
        for message in request_iterator:
            asked = Asked(message, context.invocation_metadata())
            self.asked.append(asked)
            try:
                yield from self.answer(asked, context)
            finally:
                if not context.is_active():
                    self.cancelled.set()

    def ModelInfer(self, request: Any, context: Any) -> Any:
        if self.infer is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "the model is decoupled")
        return self.infer(Asked(request))

    def ServerReady(self, request: Any, context: Any) -> Any:
        return pb.ServerReadyResponse(ready=self.ready)

    def ModelReady(self, request: Any, context: Any) -> Any:
        return pb.ModelReadyResponse(ready=self.ready and request.name in self.models)

    def ServerMetadata(self, request: Any, context: Any) -> Any:
        return pb.ServerMetadataResponse(name="triton", version="0.0", extensions=["statistics"])

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        model = self._model(request.name, context)
        response = pb.ModelMetadataResponse(name=model.name, versions=["1"], platform="python")
        for kind, tensors in ((response.inputs, model.inputs), (response.outputs, model.outputs)):
            for tensor in tensors:
                datatype = tensor.data_type.removeprefix("TYPE_").replace("STRING", "BYTES")
                kind.add(name=tensor.name, datatype=datatype, shape=[-1, *tensor.dims])
        return response

    def ModelConfig(self, request: Any, context: Any) -> Any:
        self._allow("ModelConfig", context)
        self.configs_told.append(request.name)
        model = self._model(request.name, context)
        response = pb.ModelConfigResponse()
        response.config.max_batch_size = self.max_batch_size
        response.config.backend = self.backend if model.name == ENGINE else "python"
        # Triton reports an ensemble as what its steps are.
        response.config.model_transaction_policy.decoupled = model.decoupled or (
            bool(model.steps) and any(self.models[s.model].decoupled for s in model.steps)
        )
        for step in model.steps:
            told = response.config.ensemble_scheduling.step.add(model_name=step.model)
            told.input_map.update(step.input_map)
        for name, value in {**self.parameters, **self.parameters_of.get(model.name, {})}.items():
            response.config.parameters[name].string_value = value
        return response

    def _allow(self, call: str, context: Any) -> None:
        """As of a server that was started with ``--grpc-restricted-protocol``."""
        if call in self.restricted:
            header = "triton-grpc-protocol-admin-key"
            told = f"This protocol is restricted, expecting header '{header}'"
            context.abort(grpc.StatusCode.UNAVAILABLE, told)

    max_batch_size = 4
    backend = "python"

    def _model(self, name: str, context: Any) -> Any:
        if name not in self.models:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}'")
        return self.models[name]

"""KServe messages from requests, and values from KServe messages.

The framing of a tensor is KServe's: little-endian numbers; a text is a 4-byte length and its bytes.
"""

from __future__ import annotations

import reprlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from trtllm_client._contract import ENGINE, INPUT_TYPES
from trtllm_client._errors import InvalidRequest, ServerFailed
from trtllm_client._grpc import INFER, Message
from trtllm_client._metrics import PERF_METRICS
from trtllm_client._request import GenerateRequest

# struct's code for KServe's name of an element type; texts are framed apart.
_STRUCT_CODES = {"INT32": "i", "INT64": "q", "UINT64": "Q", "FP32": "f", "BOOL": "?"}
_PLAIN_FIELDS = (
    "temperature",
    "top_k",
    "top_p",
    "seed",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "length_penalty",
    "min_tokens",
    "end_id",
    "pad_id",
    "guided_decoding_guide_type",
    "guided_decoding_guide",
    "lora_task_id",
    "num_draft_tokens",
    "add_special_tokens",
    "exclude_input_in_output",
)

Value = str | bytes | int | float | bool
Outputs = Mapping[str, tuple[bytes | int | float, ...]]


@dataclass(frozen=True)
class OutputTensor:
    """An output as it arrived.

    Attributes:
        datatype: KServe's name of the element type, such as ``INT32``.
        shape: As the server sent it, with the batch dimension where it has one.
        values: The elements, row by row.
    """

    datatype: str
    shape: tuple[int, ...]
    values: tuple[bytes | int | float, ...]


Tensors = Mapping[str, OutputTensor]


def encode_request(
    request: GenerateRequest, *, model: str, request_id: str, stream: bool
) -> Message:
    """Makes the ``ModelInferRequest`` for a request; only values that were given are sent.

    Args:
        request: What to generate; not validated here.
        model: Name of a Triton model with the wire contract's text tensors.
        request_id: The id to run under.
        stream: Whether the answer comes in pieces.
    """
    message = new_message(model, request_id=request_id)
    add_input(message, "text_input", [request.prompt])
    if request.max_tokens is not None:
        add_input(message, "max_tokens", [request.max_tokens])
    for name in _PLAIN_FIELDS:
        value = getattr(request, name)
        if value is not None:
            add_input(message, name, [value])
    for name in ("stop_words", "bad_words"):
        if words := getattr(request, name):
            add_input(message, name, words)
    add_input(message, "stream", [stream])
    outputs = ["text_output"]
    if request.return_log_probs:
        add_input(message, "return_log_probs", [True])
        outputs += ["cum_log_probs", "output_log_probs"]
    if request.return_num_tokens:
        for name in ("num_input_tokens", "num_output_tokens"):
            add_input(message, f"return_{name}", [True])
            outputs.append(name)
    if request.return_perf_metrics:
        add_input(message, "return_perf_metrics", [True])
        outputs += PERF_METRICS
    for name in outputs:
        message.outputs.add(name=name)
    return message


def new_message(model: str, *, request_id: str = "", outputs: Iterable[str] = ()) -> Message:
    """Makes a ``ModelInferRequest`` without inputs.

    Args:
        model: Name of a Triton model.
        request_id: The id to run under.
        outputs: Names of the outputs to send; none is all.

    Raises:
        InvalidRequest: A name or the id is not text.
    """
    try:
        message = INFER(model_name=model, id=request_id)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(
            f"the model {model!r} or the request id {request_id!r} cannot be sent", why=str(error)
        ) from error
    # Without it Triton keeps an empty final response to itself and the end cannot be told.
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    for name in outputs:
        message.outputs.add(name=name)
    return message


def stop_request(request_id: str) -> Message:
    """Makes the ``ModelInferRequest`` that tells the engine to end the request of this id."""
    message = new_message(ENGINE, request_id=request_id)
    for name in ("input_ids", "input_lengths", "request_output_len"):
        add_input(message, name, [1], datatype="INT32")
    add_input(message, "stop", [True], datatype="BOOL")
    return message


def add_input(
    message: Message,
    name: str,
    values: Sequence[Value],
    *,
    datatype: str | None = None,
    shape: Sequence[int] | None = None,
) -> None:
    """Adds a tensor to a ``ModelInferRequest``.

    Args:
        message: Changed in place.
        name: The tensor's name.
        values: Its elements.
        datatype: KServe's name of the element type; None takes the wire contract's.
        shape: Its shape; None is ``[1, len(values)]``.

    Raises:
        InvalidRequest: The element type is not known, or a value does not fit into it.
    """
    if datatype is None:
        datatype = INPUT_TYPES.get(name)
        if datatype is None:
            raise InvalidRequest(
                f"the wire contract has no input {name!r} of a type this client sends"
            )
    try:
        count = len(values)
        if datatype == "BYTES":
            raw = b"".join(_frame(value) for value in values)
        else:
            raw = struct.pack(f"<{count}{_STRUCT_CODES[datatype]}", *values)
    except (struct.error, TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(
            f"{name} {reprlib.repr(values)} does not fit into {datatype}", why=str(error)
        ) from error
    message.inputs.add(name=name, datatype=datatype, shape=shape or [1, count])
    message.raw_input_contents.append(raw)


def _frame(value: Value) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    if not isinstance(data, bytes):
        msg = f"{value!r} is not text"
        raise TypeError(msg)
    return struct.pack("<I", len(data)) + data


def answer_whole(message: Message) -> None:
    """Takes back that a ``ModelInferRequest`` asks for a stream."""
    for place, tensor in enumerate(message.inputs):
        if tensor.name == "stream":
            message.raw_input_contents[place] = struct.pack("?", False)


def decode_outputs(response: Message) -> Outputs:
    """Reads the values of a ``ModelInferResponse`` by name, flattened.

    Raises:
        ServerFailed: A tensor's bytes do not match its type.
    """
    return {name: tensor.values for name, tensor in decode_tensors(response).items()}


def decode_tensors(response: Message) -> Tensors:
    """Reads the tensors of a ``ModelInferResponse`` by name, each with its shape.

    Raises:
        ServerFailed: A tensor's bytes do not match its type.
    """
    if len(response.outputs) != len(response.raw_output_contents):
        raise ServerFailed(
            f"the answer has {len(response.outputs)} tensors and "
            f"{len(response.raw_output_contents)} contents"
        )
    return {
        output.name: OutputTensor(
            output.datatype,
            tuple(output.shape),
            _decode(output.name, output.datatype, raw),
        )
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def _decode(name: str, datatype: str, raw: bytes) -> tuple[bytes | int | float, ...]:
    if datatype == "BYTES":
        return tuple(_unframe(name, raw))
    code = _STRUCT_CODES.get(datatype)
    if code is None or len(raw) % struct.calcsize(f"<{code}"):
        raise ServerFailed(f"the answer's tensor {name} of {len(raw)} bytes is not {datatype}")
    return struct.unpack(f"<{len(raw) // struct.calcsize(f'<{code}')}{code}", raw)


def _unframe(name: str, raw: bytes) -> Iterable[bytes]:
    place = 0
    while place < len(raw):
        if place + 4 > len(raw):
            raise ServerFailed(f"the answer's text tensor {name} is cut off")
        (length,) = struct.unpack_from("<I", raw, place)
        place += 4 + length
        if place > len(raw):
            raise ServerFailed(f"the answer's text tensor {name} is cut off")
        yield raw[place - length : place]

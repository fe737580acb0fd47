"""Requests for the checks that look at the wire itself, by NVIDIA's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.triton.contract import BLS, ENGINE, MODELS, POSTPROCESSING
from trtllm_client import Tensors, add_input, new_message

NO_END = -1
# What a text has in place of bytes that are no character, or not yet.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
ALL_DETAILS: Mapping[str, bool] = dict.fromkeys(
    (
        "return_log_probs",
        "return_num_input_tokens",
        "return_num_output_tokens",
        "return_perf_metrics",
    ),
    True,
)

Value = str | bytes | int | float | bool


def request(
    model: str,
    inputs: Mapping[str, Sequence[Value]],
    *,
    rows: int = 1,
    outputs: Sequence[str] = (),
    request_id: str = "",
    parameters: Mapping[str, bool | int | str] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Any:
    """A ``ModelInferRequest``.

    Args:
        model: Its name; one that is not of the wire contract is taken for a text model.
        inputs: Values by name, those of all rows one after the other.
        rows: The batch size.
        outputs: Names of the outputs to send; none is all.
        request_id: The id to run under.
        parameters: Request parameters, which are no inputs.
        shapes: Shapes of inputs that have more dimensions than two.
    """
    message = new_message(model, request_id=request_id, outputs=outputs)
    tensors = {tensor.name: tensor for tensor in MODELS.get(model, MODELS[BLS]).inputs}
    for name, values in inputs.items():
        datatype = tensors[name].data_type.removeprefix("TYPE_").replace("STRING", "BYTES")
        shape = (shapes or {}).get(name, [rows, len(values) // rows])
        add_input(message, name, values, datatype=datatype, shape=shape)
    for name, value in (parameters or {}).items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(message.parameters[name], kind, value)
    return message


def text_inputs(
    prompts: Sequence[str], max_tokens: int, *, stream: bool, **more: Value
) -> dict[str, Sequence[Value]]:
    """The inputs of a greedy text request that only its length ends, for one or more prompts."""
    values: dict[str, Value] = {
        "max_tokens": max_tokens,
        "top_k": 1,
        "end_id": NO_END,
        "stream": stream,
        **more,
    }
    return {
        "text_input": list(prompts),
        **{name: [value] * len(prompts) for name, value in values.items()},
    }


def engine_inputs(
    ids: Sequence[int], max_tokens: int, *, stream: bool, **more: Value
) -> dict[str, Sequence[Value]]:
    """The inputs of a greedy request to ``tensorrt_llm`` that only its length ends."""
    values: dict[str, Value] = {
        "input_lengths": len(ids),
        "request_output_len": max_tokens,
        "runtime_top_k": 1,
        "end_id": NO_END,
        "streaming": stream,
        **more,
    }
    return {"input_ids": list(ids), **{name: [value] for name, value in values.items()}}


def stop_message(request_id: str, parameters: Mapping[str, bool | int | str]) -> Any:
    """What NVIDIA's client sends to end a request (``inflight_batcher_llm_client.py``).

    Its lengths are 0 and its one token id is whatever the memory held.
    """
    inputs: dict[str, Sequence[Value]] = {
        "input_ids": [-(2**31)],
        "input_lengths": [0],
        "request_output_len": [0],
        "stop": [True],
    }
    return request(ENGINE, inputs, request_id=request_id, parameters=parameters)


def decoding_request(rows: list[list[int]]) -> Any:
    """A request to ``postprocessing`` for the texts of equally long rows of ids."""
    length = len(rows[0])
    message = new_message(POSTPROCESSING, outputs=("OUTPUT",))
    ids = [token for row in rows for token in row]
    add_input(message, "TOKENS_BATCH", ids, datatype="INT32", shape=[len(rows), 1, length])
    lengths = [length] * len(rows)
    add_input(message, "SEQUENCE_LENGTH", lengths, datatype="INT32", shape=[len(rows), 1])
    return message


def text_of(tensors: Tensors) -> str:
    """The text of a response; empty where it has none."""
    tensor = tensors.get("text_output")
    return bytes(tensor.values[0]).decode(errors="replace") if tensor else ""  # type: ignore[arg-type]


def number_of(tensors: Tensors, name: str, default: int = 0) -> int:
    """The first value of a whole-number output."""
    tensor = tensors.get(name)
    return int(tensor.values[0]) if tensor and tensor.values else default

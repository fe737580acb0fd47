"""What the client sends, against the contract that the repository is written by."""

from __future__ import annotations

import pytest

from pipeline.triton.contract import BLS, ENGINE, ENSEMBLE, MODELS, served_models
from trtllm_client import DEFAULT_MODEL, GenerateRequest, encode_request
from trtllm_client import _contract as client
from trtllm_client._wire import stop_request

# KServe's names of Triton's element types, from the protocol's "Tensor Data Types".
KSERVE = {
    "TYPE_STRING": "BYTES",
    "TYPE_INT32": "INT32",
    "TYPE_UINT64": "UINT64",
    "TYPE_FP32": "FP32",
    "TYPE_BOOL": "BOOL",
    "TYPE_FP16": "FP16",
}


def declared(model: str) -> dict[str, str]:
    """The inputs of a model with KServe's names of their types."""
    return {tensor.name: KSERVE[tensor.data_type] for tensor in MODELS[model].inputs}


def test_the_models_have_the_same_names() -> None:
    assert (client.ENGINE, client.DEFAULT_MODEL) == (ENGINE, BLS)
    assert DEFAULT_MODEL == BLS


def test_every_input_of_the_text_model_is_known_with_its_type() -> None:
    wanted = {name: kind for name, kind in declared(BLS).items() if kind != "FP16"}
    assert wanted == client.INPUT_TYPES


@pytest.mark.parametrize("model", [*served_models("both")])
def test_no_model_has_an_input_of_this_name_and_another_type(model: str) -> None:
    for tensor in served_models("both")[model].inputs:
        if tensor.name in client.INPUT_TYPES:
            assert client.INPUT_TYPES[tensor.name] == KSERVE[tensor.data_type], tensor.name


@pytest.mark.parametrize("model", [BLS, ENSEMBLE])
def test_a_request_has_inputs_that_either_text_model_declares(model: str) -> None:
    request = GenerateRequest(
        "Hi",
        temperature=1.0,
        top_k=1,
        top_p=0.5,
        stop_words=["a"],
        bad_words=["b"],
        seed=1,
        repetition_penalty=1.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        length_penalty=1.0,
        min_tokens=0,
        end_id=2,
        pad_id=2,
        exclude_input_in_output=True,
        return_log_probs=True,
        return_perf_metrics=True,
    )
    message = encode_request(request, model=model, request_id="1", stream=True)
    sent = {tensor.name: tensor.datatype for tensor in message.inputs}
    assert sent.items() <= declared(model).items()
    outputs = {tensor.name for tensor in MODELS[model].outputs}
    assert {tensor.name for tensor in message.outputs} <= outputs


def test_a_stop_request_has_inputs_that_the_engine_declares() -> None:
    message = stop_request("1")
    sent = {tensor.name: tensor.datatype for tensor in message.inputs}
    engine = {tensor.name: KSERVE.get(tensor.data_type) for tensor in MODELS[ENGINE].inputs}
    assert message.model_name == ENGINE
    assert sent.items() <= engine.items()
    required = {tensor.name for tensor in MODELS[ENGINE].inputs if not tensor.optional}
    assert required <= sent.keys()

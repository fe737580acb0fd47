"""What must not be taken for something else, through every protocol and both text models."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient

from pipeline.triton.tensors import BLS, ENSEMBLE
from trtllm_client import Client, InvalidRequest

PROMPT = "Once upon a time"
BODY = {"text_input": PROMPT, "max_tokens": 4}


def generate(server: Any, model: str, **more: Any) -> dict[str, Any]:
    """The answer of the generate endpoint, or its error."""
    request = urllib.request.Request(
        f"{server.http_url}/v2/models/{model}/generate", data=json.dumps(BODY | more).encode()
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        return dict(json.load(error))


@pytest.mark.parametrize("model", [BLS, ENSEMBLE])
def test_a_misspelt_input_is_not_ignored(server: Any, model: str) -> None:
    wrong = generate(server, model, temprature=0.5)
    assert "invalid parameter temprature: there is no such input" in wrong["error"]
    right = generate(server, model, id="mine", temperature=0.5, bad_words="", stop_words="")
    assert right["id"] == "mine"
    assert right["text_output"]


def test_what_grpc_clients_add_to_a_request_is_no_parameter(server: Any) -> None:
    answers = []
    with grpcclient.InferenceServerClient(server.grpc_url) as client:
        tensors = []
        for name, kind, value in (
            ("text_input", "BYTES", np.array([[PROMPT.encode()]], object)),
            ("max_tokens", "INT32", np.array([[4]], np.int32)),
        ):
            tensors.append(grpcclient.InferInput(name, [1, 1], kind))
            tensors[-1].set_data_from_numpy(value)
        client.start_stream(lambda result, error: answers.append(error or result))
        client.async_stream_infer(
            BLS,
            tensors,
            request_id="mine",
            priority=1,
            timeout=60_000_000,
            sequence_id=7,
            sequence_start=True,
            sequence_end=True,
            enable_empty_final_response=True,
        )
        deadline = time.monotonic() + 60
        while not answers and time.monotonic() < deadline:
            time.sleep(0.01)
        client.stop_stream()
    assert not isinstance(answers[0], Exception), answers[0]
    assert answers[0].as_numpy("text_output").item()


@pytest.mark.parametrize("model", [BLS, ENSEMBLE])
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("x" * 4_000_000,), "stop_words is too long: its 4000000 bytes"),
        (tuple(f"word{n}" for n in range(100_000)), "stop_words has 100000 words"),
    ],
)
def test_words_that_would_hold_up_everybody_else(
    server: Any, model: str, words: tuple[str, ...], reason: str
) -> None:
    with (
        Client(server.grpc_url, model=model) as client,
        pytest.raises(InvalidRequest, match=reason),
    ):
        client.generate(PROMPT, max_tokens=4, stop_words=words)

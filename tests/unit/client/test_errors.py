"""Which error a server's words become."""

from __future__ import annotations

import pytest

from pipeline.client_errors import client_errors
from pipeline.errors import ServerError, UsageError
from trtllm_client import (
    Cancelled,
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    InvalidRequest,
    ServerBusy,
    ServerFailed,
)
from trtllm_client._errors import error_from_message, error_from_status

# Texts of Triton 2.51, TensorRT-LLM's executor and this repository's models.
MESSAGES = [
    (InvalidRequest, "expected 2 inputs but got 1 inputs for model 'm'. Got input(s) ['a'], but"),
    (InvalidRequest, "expected number of inputs between 2 and 36 but got 1, missing required"),
    (InvalidRequest, "unexpected inference input 'nope' for model 'ensemble'"),
    (InvalidRequest, "inference input 'max_tokens' data-type is 'INT64', but expects 'INT32'"),
    (InvalidRequest, "unexpected shape for input 'max_tokens'. Expected [-1,1], got [1,2]"),
    (InvalidRequest, "Request for unknown model: 'zz' is not found"),
    (InvalidRequest, "inference request batch-size must be <= 64 for 'ensemble'"),
    (InvalidRequest, "unexpected total byte size 3 for input: input byte size mismatch"),
    (InvalidRequest, "Streaming is only supported if model is deployed using decoupled mode."),
    (InvalidRequest, "the prompt is empty: input_ids must hold at least one token"),
    (InvalidRequest, "request_output_len (max_tokens) must be at least 1, got -5"),
    (InvalidRequest, "input_ids holds the token id 9; this model's ids are 0 to 7"),
    (InvalidRequest, "the prompt has 9 tokens; the engine was compiled for at most 8 (max_input"),
    (InvalidRequest, "the request needs 9 KV cache blocks of 32 tokens; the cache has 8"),
    (InvalidRequest, "min_tokens 9 is above request_output_len (max_tokens) 8"),
    (InvalidRequest, "text_input is not valid UTF-8: byte 0xff at position 0"),
    (InvalidRequest, "in ensemble 'ensemble', [request id: 7] temperature must be at least 0"),
    (InvalidRequest, "beam_width 64: tensorrt_llm_bls has no beam search"),
    (InvalidRequest, "bad_words_list: the CPU engine has no bad words"),
    # peftCacheManager.cpp, addRequestPeft.
    (
        InvalidRequest,
        "LoRA task 7 not found in cache. Please send LoRA weights with request",
    ),
    (InvalidRequest, "lora_task_id 1 is not supported: this repository serves no LoRA adapters"),
    (
        InvalidRequest,
        "Model m - Error when running inference: [request id: <id_unknown>] x is empty",
    ),
    (InvalidRequest, "[INVALID_ARG] something is odd"),
    (ServerBusy, "[request id: 7] Exceeds maximum queue size"),
    (ServerBusy, "Maximum queue size of 256 has been reached, please try again later"),
    (DeadlineExceeded, "Request timeout expired"),
    (Cancelled, "The request was cancelled"),
    (ServerFailed, "Stub process 'tensorrt_llm_0_0' is not healthy."),
    (ServerFailed, "Request for model 'm' has no available versions"),
    (ServerFailed, "Failed to increase the shared memory pool size"),
    (ServerFailed, "[INTERNAL] the value must be here"),
    # model_instance_state.cc, fillTritonResponse: what a model asked the engine for was wrong.
    (ServerFailed, "Error encountered while populating response: x tensor must be present in list"),
]


@pytest.mark.parametrize(("kind", "message"), MESSAGES)
def test_streamed_errors(kind, message):
    error = error_from_message(message, "grpc://h:1")
    assert type(error) is kind
    assert error.where == "grpc://h:1"
    assert "request id" not in error.what
    assert "in ensemble" not in error.what
    assert "Error when running" not in error.what


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        ("UNAVAILABLE", "failed to connect; last error: UNKNOWN: ipv4:1.2.3.4:5: refused", None),
        ("UNAVAILABLE", "Ssl handshake failed: certificate is invalid", None),
        ("UNAVAILABLE", "Exceeds maximum queue size", ServerBusy),
        ("UNAVAILABLE", "Server exiting", ServerFailed),
        ("UNAVAILABLE", "Request timeout expired", DeadlineExceeded),
        ("RESOURCE_EXHAUSTED", "Received message larger than max (9 vs. 8)", InvalidRequest),
        ("RESOURCE_EXHAUSTED", "no memory", ServerBusy),
        ("NOT_FOUND", "Request for unknown model: 'm'", InvalidRequest),
        ("INVALID_ARGUMENT", "no", InvalidRequest),
        ("UNIMPLEMENTED", "", InvalidRequest),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", DeadlineExceeded),
        ("CANCELLED", "", Cancelled),
        ("INTERNAL", "boom", ServerFailed),
        ("DATA_LOSS", "", ServerFailed),
    ],
)
def test_statuses(code, details, kind):
    error = error_from_status(code, details, "grpc://h:1")
    assert type(error) is (kind or ConnectionFailed)


def test_the_reason_of_a_failed_connection_is_its_last_clause():
    error = error_from_status(
        "UNAVAILABLE",
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: "
        "Failed to connect to remote host: connect: Connection refused (111)",
        "grpc://127.0.0.1:1",
    )
    assert error.why == "Failed to connect to remote host: connect: Connection refused (111)"


SERVERS = (Cancelled, ConnectionFailed, DeadlineExceeded, ServerBusy, ServerFailed)


def test_every_error_is_known_here():
    assert {*SERVERS, InvalidRequest} == set(ClientError.__subclasses__())


@pytest.mark.parametrize(
    ("kind", "ours", "code"),
    [*((kind, ServerError, 6) for kind in SERVERS), (InvalidRequest, UsageError, 2)],
)
def test_the_command_line_tells_the_users_fault_from_the_servers(kind, ours, code):
    with pytest.raises(ours, match="it broke") as caught, client_errors():
        raise kind("it broke", where="grpc://h:1", why="a cause", fix="Mend it")
    assert caught.value.as_dict() == {
        "error": kind.__name__,
        "what": "it broke",
        "where": "grpc://h:1",
        "why": "a cause",
        "fix": "Mend it",
        "exit_code": code,
    }
    assert type(caught.value.__cause__) is kind


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"where": "grpc://h:1", "why": "connection refused", "fix": "Start one"},
        {"why": "int8_sq is odd!", "fix": "chmod 644 FILE"},
    ],
)
def test_an_error_reads_the_same_here_and_on_the_command_line(facts):
    error = ConnectionFailed("it broke", **facts)
    with pytest.raises(ServerError, match="it broke") as caught, client_errors():
        raise error
    assert str(caught.value) == str(error)


def test_an_error_is_one_paragraph():
    error = ServerFailed("it broke", where="grpc://h:1", why="no room", fix="Make some")
    assert str(error) == "grpc://h:1: it broke. No room. Make some."


def test_other_errors_pass_as_they_are():
    for error in (OSError("x"), ServerError("y"), ModuleNotFoundError("z", name="other")):
        with pytest.raises(type(error), match=str(error)) as caught, client_errors():
            raise error
        assert caught.value is error


@pytest.mark.parametrize(
    ("late", "details", "kind"),
    [
        (True, "Internal error from Core", DeadlineExceeded),
        (False, "Internal error from Core", ServerFailed),
        (True, "the engine is out of order", ServerFailed),
    ],
)
def test_a_deadline_that_passes_while_a_call_is_set_up_is_one(
    late: bool, details: str, kind: type[ClientError]
) -> None:
    error = error_from_status("INTERNAL", details, "here", late=late)
    assert type(error) is kind


def test_an_input_of_the_old_contract_is_told_its_new_name():
    error = error_from_message("unexpected inference input 'random_seed' for model 'm'", "here")
    assert error.fix == "This input's name is seed now"
    assert (
        error_from_message("unexpected inference input 'other' for model 'm'", "here").fix is None
    )

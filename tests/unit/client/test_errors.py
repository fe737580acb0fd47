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
    # Words of a request may be in the answer.
    (InvalidRequest, "bad_words has the token 'CUDA', which only the tokenizer knows: its id is 9"),
    (
        InvalidRequest,
        "guided_decoding_guide cannot be followed as regex: it is too complex: it ran out of stack",
    ),
    (InvalidRequest, "[INVALID_ARG] something is odd"),
    (ServerFailed, "the guide cannot be tried: guided decoding needs a Python interpreter on PATH"),
    (ServerFailed, "CUDA out of memory"),
    # What a text repeats of a request says nothing about the server.
    (InvalidRequest, "guided_decoding_guide cannot be followed as regex: it ran out of memory or"),
    (
        InvalidRequest,
        'guided_decoding_guide cannot be followed as json_schema: Unsupported type "CUDA"',
    ),
    (InvalidRequest, "guided_decoding_guide: after the text so far no token of this model can fo"),
    (InvalidRequest, "in ensemble 'ensemble', invalid parameter CUDA: there is no such input; ch"),
    (InvalidRequest, "unexpected inference input 'CUDA' for model 'ensemble'"),
    (InvalidRequest, "bad_words has the token '<CUDA>', which only the tokenizer knows: its id i"),
    (ServerFailed, "the guide cannot be tried: the process that tries guides for guided decoding"),
    (ServerBusy, "[request id: 7] Exceeds maximum queue size"),
    (ServerBusy, "Maximum queue size of 256 has been reached, please try again later"),
    (DeadlineExceeded, "Request timeout expired"),
    (Cancelled, "The request was cancelled"),
    (ServerFailed, "Stub process 'tensorrt_llm_0_0' is not healthy."),
    (ServerFailed, "Request for model 'm' has no available versions"),
    (ServerFailed, "Failed to increase the shared memory pool size"),
    (ServerFailed, "[INTERNAL] the value must be here"),
    (ServerFailed, "the request failed: KeyError('x is empty')"),
    (ServerFailed, "[TensorRT-LLM][ERROR] CUDA runtime error in cudaMalloc: invalid argument"),
    # model_instance_state.cc, fillTritonResponse: what a model asked the engine for was wrong.
    (ServerFailed, "Error encountered while populating response: x tensor must be present in list"),
]


# What TensorRT-LLM's own checks say of a request, as they are written in its sources.
CHECKS = [
    # cpp/tensorrt_llm/executor/samplingConfig.cpp, of two releases
    "Assertion failed: beamWidth > 0",
    "Assertion failed: beamWidth > 0 && beamWidth <= static_cast<SizeType32 const>(",
    "Assertion failed: topK.value() >= 0",
    "Assertion failed: topP.value() > 0.f",
    "Assertion failed: topP.value() <= 1.f",
    "Assertion failed: topPMin.value() >= 0.f",
    "Assertion failed: topPResetIds.value() >= 0",
    "Assertion failed: topPDecay.value() > 0.f",
    "Assertion failed: temperature.value() >= 0.f",
    "Assertion failed: minTokens.value() >= 0",
    "Assertion failed: beamSearchDiversityRate.value() >= 0.f",
    "Assertion failed: repetitionpenalty.value() > 0.f",
    "Repetition penalty should be strictly greater than zero. Provided value was 0.000000",
    "Assertion failed: lengthPenalty.value() >= 0.f",
    "Assertion failed: earlyStopping.value() >= 0",
    "Assertion failed: noRepeatNgramSize.value() > 0",
    "Assertion failed: numReturnSequences.value() > 0",
    "Assertion failed: beamWidth == 1 || numReturnSequences.value() <= beamWidth",
    "Assertion failed: minP.value() >= 0.f && minP.value() <= 1.0f",
    # executor/requestImpl.h
    "Assertion failed: !mInputTokenIds.empty()",
    "Assertion failed: mMaxNewTokens > 0",
    "Assertion failed: bias.value().getShape().size() == 1",
    "Guided decoding does not support with beam search.",
    # batch_manager/llmRequest.cpp
    "EndId (152064) is not within acceptable range [-1, 152064).",
    "Prompt length (5000) exceeds maximum input length (4096). Set log level to info and check",
    "Draft tokens length (9) exceeds maximum draft tokens length (0).",
    "Assertion failed: Incorrect sampling config",
    "Input token extra ids must be provided when enabling kv cache reuse with prompt table",
    # executor/executorImpl.cpp
    "Request sequence length is potentially greater than max input length. This cannot be run",
    "Return context logit need to build engine with gather_context_logits",
    "To return generation logits, gather_generation_logits must be enabled in ExecutorConfig",
    "Request is specified with GuidedDecodingParams, but GuidedDecoder is not setup. Please",
    # batch_manager/peftCacheManager.cpp
    "LoRA task 10 not found in cache. Please send LoRA weights with request",
    # triton_backend/inflight_batcher_llm/src/utils.cc, utils.h and model_instance_state.cc
    "Batch size > 1 requires the tensorrt_llm backend to be using decoupled transaction policy",
    "Streaming is only supported if model is deployed using decoupled mode.",
    "Sparse list must not have additional -1s: 5 6 -1 2 ",
    "Sparse list must not have non-increasing offsets: 5 6 2 1 ",
    "input lengths tensor not provided",
    "request_output_len is not present in the request",
    "Invalid size for tensor temperature",
    "Cannot set the request lookahead decoding configuration when model instance lookahead",
    "Trying to stop a request but request ID is not provided",
]
STACK = (
    " (/src/tensorrt_llm/cpp/tensorrt_llm/executor/somewhere.cpp:123)\n"
    "1       0x7f8be4f0d0c4 tensorrt_llm::common::throwRuntimeError(char const*, int) + 78\n"
    "2       0x7f8be4f2e9b1 /opt/tritonserver/backends/tensorrtllm/libtensorrt_llm.so(+0x7b1)"
)
QUEUED = (
    "Executor failed process requestId 7 due to the following error: "
    "Encountered an error when fetching new request: "
)


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_of_tensorrt_llm_is_about_the_request(check: str) -> None:
    """Its backend answers every refusal with the code INTERNAL (sendEnqueueResponse)."""
    for text in (check, f"[TensorRT-LLM][ERROR] {check}{STACK}", f"{QUEUED}{check}{STACK}"):
        for error in (error_from_message(text, "here"), error_from_status("INTERNAL", text, "h")):
            assert type(error) is InvalidRequest
            assert error.what == f"the server refused: {check.strip()}"


def test_what_one_request_does_to_all_others_is_not_their_fault() -> None:
    """executorImpl.cpp, forwardAsync and terminateActiveRequests."""
    for cause in (
        "The embedding bias shape is not as expected. Expected last dimension to be same as",
        "Requested beam width 4 is larger than configured max beam width 1",
        "[TensorRT-LLM][ERROR] Assertion failed: topK.value() >= 0",
        "Prompt length exceeds something",
    ):
        text = (
            "Executor failed process requestId 7 due to the following error: "
            f"Encountered an error in forwardAsync function: {cause}{STACK}"
        )
        for error in (error_from_message(text, "here"), error_from_status("INTERNAL", text, "h")):
            assert type(error) is ServerFailed
            assert "0x7f" not in error.what


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
    told = {"key": None, "what": "it broke", "where": "grpc://h:1"}
    told |= {"why": "a cause", "fix": "Mend it"}
    found = caught.value.as_dict()
    # A user's mistakes come as a list, of which this is the only one.
    assert found.pop("errors", None) == ([told] if code == 2 else None)
    assert found == {
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

"""The synchronous client against a server that behaves as Triton was seen to behave."""

from __future__ import annotations

import gc
import threading
import time

import grpc
import pytest

from tests.unit.client.fake_triton import FakeTriton, empty_final, piece, refusal
from trtllm_client import (
    Cancelled,
    Client,
    ConnectionFailed,
    DeadlineExceeded,
    GenerateRequest,
    InvalidRequest,
    ServerBusy,
    ServerFailed,
)


def story(asked, context):
    """Three pieces, the last one marked final, as the engine and the BLS model send them."""
    yield piece("Once", num_input_tokens=2, num_output_tokens=1)
    yield piece(" upon", num_input_tokens=2, num_output_tokens=2)
    yield piece(" a time", final=True, num_input_tokens=2, num_output_tokens=1)


def endless(asked, context):
    """Pieces until the client goes away."""
    while context.is_active():
        yield piece("more ")
        time.sleep(0.01)


def silent(asked, context):
    """One piece and then nothing, like a model process that was killed."""
    yield piece("Once")
    while context.is_active():
        time.sleep(0.01)


def test_pieces_come_in_order_and_join_to_the_completion():
    with FakeTriton(story) as server, Client(server.url) as client:
        with client.stream("Hi") as stream:
            chunks = list(stream)
        whole = client.stream("Hi", max_tokens=9).completion()
    assert [chunk.text for chunk in chunks] == ["Once", " upon", " a time"]
    assert [chunk.index for chunk in chunks] == [0, 1, 2]
    assert [chunk.is_final for chunk in chunks] == [False, False, True]
    assert whole.text == "Once upon a time"
    assert (whole.num_input_tokens, whole.num_output_tokens) == (2, 4)
    assert whole.finish_reason == "stop"
    assert whole.request_id == server.asked[1].id


def test_as_many_tokens_as_asked_for_is_the_reason_length():
    with FakeTriton(story) as server, Client(server.url) as client:
        assert client.generate("Hi", max_tokens=4).finish_reason == "length"


def test_an_empty_final_response_ends_the_stream_without_a_piece():
    def answer(asked, context):
        yield piece("Once")
        yield empty_final()

    with FakeTriton(answer) as server, Client(server.url) as client:
        assert [chunk.text for chunk in client.stream("Hi")] == ["Once"]


def test_only_what_was_given_is_sent():
    with FakeTriton(story) as server, Client(server.url, model="ensemble") as client:
        client.generate("Hé", return_num_tokens=False)
        request = GenerateRequest("Hi", request_id="mine", return_log_probs=True)
        client.generate(request, max_tokens=5, end_id=-1)
        whole = server.asked[0]
    assert whole.model == "ensemble"
    assert whole.values == {
        "text_input": ("Hé".encode(),),
        "max_tokens": (64,),
        "stream": (False,),
    }
    assert whole.wanted == ["text_output"]
    assert whole.message.parameters["triton_enable_empty_final_response"].bool_param
    named = next(asked for asked in server.asked if asked.id == "mine")
    assert named.one("end_id") == -1
    assert named.one("max_tokens") == 5
    assert named.wanted == [
        "text_output",
        "cum_log_probs",
        "output_log_probs",
        "num_input_tokens",
        "num_output_tokens",
    ]


def test_types_on_the_wire_are_those_of_the_contract():
    with FakeTriton(story) as server, Client(server.url) as client:
        client.stream(
            "Hi", top_p=0.5, seed=2**64 - 1, stop_words=(".", "né"), top_k=3, end_id=2
        ).completion()
    (asked,) = server.asked
    assert asked.datatypes == {
        "text_input": "BYTES",
        "max_tokens": "INT32",
        "top_k": "INT32",
        "top_p": "FP32",
        "seed": "UINT64",
        "end_id": "INT32",
        "stop_words": "BYTES",
        "stream": "BOOL",
        "return_num_input_tokens": "BOOL",
        "return_num_output_tokens": "BOOL",
    }
    assert asked.values["seed"] == (2**64 - 1,)
    assert asked.values["stop_words"] == (b".", "né".encode())


def test_ids_differ_between_requests():
    with FakeTriton(story) as server, Client(server.url) as client:
        for _ in range(3):
            client.generate("Hi")
    assert len({asked.id for asked in server.asked}) == 3


def test_headers_go_with_every_call():
    with (
        FakeTriton(story) as server,
        Client(server.url, headers={"Authorization": "Bearer x"}) as client,
    ):
        client.generate("Hi")
    assert server.asked[0].metadata["authorization"] == "Bearer x"
    # Servers of the 24.10 line crash under load when this header is sent.
    assert "triton_grpc_error" not in server.asked[0].metadata


@pytest.mark.parametrize("leave", ["close", "block", "garbage", "cancel"])
def test_leaving_a_stream_early_reaches_the_server(leave):
    with FakeTriton(endless) as server, Client(server.url) as client:
        stream = client.stream("Hi")
        next(stream)
        if leave == "block":
            with stream:
                next(stream)
        elif leave == "garbage":
            del stream
            gc.collect()
        else:
            getattr(stream, leave)()
        assert server.cancelled.wait(30)


def test_a_closed_stream_has_no_more_pieces():
    with FakeTriton(endless) as server, Client(server.url) as client:
        stream = client.stream("Hi")
        next(stream)
        stream.close()
        assert list(stream) == []


def test_cancel_from_another_thread_wakes_the_one_that_waits():
    with FakeTriton(silent) as server, Client(server.url) as client:
        stream = client.stream("Hi")
        next(stream)
        threading.Timer(0.1, stream.cancel).start()
        with pytest.raises(Cancelled, match="the request was cancelled"):
            next(stream)


def test_silence_is_an_error_after_the_stall_limit_though_the_deadline_is_far():
    with FakeTriton(silent) as server, Client(server.url, stall_timeout=0.3) as client:
        started = time.monotonic()
        stream = client.stream("Hi")
        assert next(stream).text == "Once"
        with pytest.raises(DeadlineExceeded, match=r"silent for 0\.3 s") as caught:
            next(stream)
        assert 0.25 < time.monotonic() - started < 30
        assert server.cancelled.wait(30)
    assert "1 responses had arrived" in str(caught.value)


def test_a_slow_reader_is_no_stall():
    with FakeTriton(story) as server, Client(server.url, stall_timeout=0.2) as client:
        texts = []
        for chunk in client.stream("Hi"):
            time.sleep(0.4)
            texts.append(chunk.text)
    assert "".join(texts) == "Once upon a time"


def test_a_single_response_may_take_longer_than_the_stall_limit():
    def slow(asked, context):
        time.sleep(0.5)
        yield piece("Once", final=True)

    with FakeTriton(slow) as server, Client(server.url, stall_timeout=0.1) as client:
        assert client.generate("Hi").text == "Once"


def test_the_deadline_covers_the_whole_request():
    with FakeTriton(endless) as server, Client(server.url) as client:
        with pytest.raises(DeadlineExceeded, match="not finished in time"):
            client.stream("Hi", timeout=0.3).completion()
        assert server.cancelled.wait(30)


def test_a_server_that_never_answers_is_told_apart():
    def never(asked, context):
        while context.is_active():
            time.sleep(0.01)
        yield from ()

    with (
        FakeTriton(never) as server,
        Client(server.url, timeout=0.3) as client,
        pytest.raises(DeadlineExceeded, match="no answer in time"),
    ):
        client.generate("Hi")


def test_an_error_in_the_middle_comes_after_the_pieces_before_it():
    def answer(asked, context):
        yield piece("Once")
        yield refusal("[request id: x] in ensemble 'ensemble', the engine is gone")

    with FakeTriton(answer) as server, Client(server.url) as client:
        stream = client.stream("Hi")
        assert next(stream).text == "Once"
        with pytest.raises(ServerFailed, match="the server refused: the engine is gone") as caught:
            next(stream)
    assert caught.value.where == f"grpc://{server.url}"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (ServerBusy, "Exceeds maximum queue size"),
        (ServerBusy, "Maximum queue size of 4 has been reached, please try again later"),
        (InvalidRequest, "max_tokens must be at least 1, got -5"),
        (ServerFailed, "Stub process 'tensorrt_llm_0_0' is not healthy."),
    ],
)
def test_refusals_have_the_type_that_says_what_to_do(kind, message):
    with (
        FakeTriton(lambda *_: [refusal(message)]) as server,
        Client(server.url) as client,
        pytest.raises(kind, match=message.rstrip(".")),
    ):
        client.generate("Hi")


def test_a_stream_that_ends_before_its_final_response_is_not_taken_for_complete():
    with (
        FakeTriton(lambda *_: [piece("Once"), piece(" upon")]) as server,
        Client(server.url) as client,
        pytest.raises(ServerFailed, match="before its final response"),
    ):
        client.generate("Hi")


def test_a_server_that_holds_the_stream_open_after_the_end_does_not_hold_the_client():
    def answer(asked, context):
        yield piece("Once", final=True)
        while context.is_active():
            time.sleep(0.01)

    with FakeTriton(answer) as server, Client(server.url, timeout=60, stall_timeout=60) as client:
        for ask in (client.generate, lambda prompt: client.stream(prompt).completion()):
            started = time.monotonic()
            assert ask("Hi").text == "Once"
            assert time.monotonic() - started < 30
    with FakeTriton(answer) as server, Client(server.url, stall_timeout=None) as client:
        assert client.generate("Hi").text == "Once"


def test_an_end_without_any_answer_is_an_error():
    # What an ensemble of Triton says to a request without a required input.
    with (
        FakeTriton(lambda *_: [empty_final()]) as server,
        Client(server.url) as client,
        pytest.raises(ServerFailed, match="ended the request without an answer"),
    ):
        client.generate("Hi")


def test_text_that_is_not_utf8_is_an_error():
    with (
        FakeTriton(lambda *_: [piece(b"\xff", final=True)]) as server,
        Client(server.url) as client,
        pytest.raises(ServerFailed, match="not valid UTF-8"),
    ):
        client.generate("Hi")


def test_a_connection_that_breaks_says_how_far_it_came():
    def answer(asked, context):
        yield piece("Once")
        context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    with (
        FakeTriton(answer) as server,
        Client(server.url) as client,
        pytest.raises(ConnectionFailed, match="broke after 1 responses"),
    ):
        client.generate("Hi")


def test_nobody_there_names_the_address_and_the_remedy():
    with Client("127.0.0.1:1") as client:
        assert not client.is_ready()
        with pytest.raises(ConnectionFailed, match="no Triton server answers here") as caught:
            client.generate("Hi")
    text = str(caught.value)
    assert text.startswith("grpc://127.0.0.1:1: ")
    assert "Connection refused" in text
    assert "trtllm-pipeline serve" in text


def test_what_the_server_says_about_itself():
    with FakeTriton(story) as server, Client(server.url) as client:
        assert client.is_ready()
        assert client.metadata().extensions == ("statistics",)
        model = client.model_metadata()
        assert model.decoupled
        assert model.parameters == (("tokenizer_dir", "preprocessing/1/tokenizer"),)
        assert ("text_input", "BYTES", (-1, 1)) in [
            (tensor.name, tensor.datatype, tensor.shape) for tensor in model.inputs
        ]
        with pytest.raises(InvalidRequest, match="unknown model: 'nope'"):
            client.model_metadata("nope")
        server.ready = False
        assert not client.is_ready()


def test_a_closed_client_says_so():
    with FakeTriton(endless) as server:
        client = Client(server.url)
        running = client.stream("Hi")
        next(running)
        client.close()
        client.close()
        with pytest.raises(Cancelled, match="the request was cancelled"):
            running.completion()
        for call in (
            lambda: client.generate("Hi"),
            lambda: client.stream("Hi"),
            client.metadata,
            lambda: client.cancel("1"),
        ):
            with pytest.raises(InvalidRequest, match="this client was closed"):
                call()
        assert client.is_ready() is False
        assert server.cancelled.wait(30)


def test_cancel_by_id_asks_the_engine_to_stop():
    with FakeTriton(lambda *_: [empty_final()]) as server, Client(server.url) as client:
        client.cancel("abc")
    (asked,) = server.asked
    assert (asked.model, asked.id, asked.one("stop")) == ("tensorrt_llm", "abc", True)


def test_many_threads_share_a_client():
    def echo(asked, context):
        for word in asked.prompt.split():
            yield piece(word)
            time.sleep(0.002)
        yield empty_final()

    texts = {}
    with FakeTriton(echo, workers=20) as server, Client(server.url) as client:

        def one(number):
            texts[number] = client.stream(f"{number} " * 20).completion().text

        threads = [threading.Thread(target=one, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert texts == {number: str(number) * 20 for number in range(16)}


def test_wrong_requests_never_leave():
    with FakeTriton(story) as server, Client(server.url) as client:
        with pytest.raises(InvalidRequest, match="max_tokens must be between 1"):
            client.stream("Hi", max_tokens=0)
        assert server.asked == []
        with Client(server.url, validate=False) as unchecked:
            unchecked.generate("", max_tokens=-3)
        assert server.asked[0].one("max_tokens") == -3


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(monkeypatch, host):
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with FakeTriton(story) as server:
        port = server.url.rpartition(":")[2]
        with Client(f"{host}:{port}") as client:
            assert client.generate("Hi", max_tokens=9).text == "Once upon a time"

"""What the client of OpenAI's API sends and reads, against bodies written out by hand."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

pytest.importorskip("httpx2", reason="httpx2 is in the extra http")
from pipeline.engine_client.connect import connect, speaks_openai
from pipeline.engine_client.openai_answer import Answer, Lines, error_of, event_of
from pipeline.engine_client.openai_request import as_it_is, body_of, with_fields
from trtllm_client import (
    CallRestricted,
    ClientError,
    ConnectionFailed,
    GenerateRequest,
    InvalidRequest,
    ServerBusy,
    ServerFailed,
)

MODELS = {"object": "list", "data": [{"id": "one", "object": "model", "owned_by": "vllm"}]}


def body(prompt: str = "a", *, stream: bool = False, **fields: Any) -> dict[str, Any]:
    return body_of(with_fields(prompt, fields), model="m", stream=stream)


def test_every_setting_that_decides_a_text_is_sent() -> None:
    """llama.cpp's server samples with 40 tokens, min_p 0.05 and 0.8 where it is not told."""
    greedy = body()
    assert (greedy["temperature"], greedy["min_p"], greedy["cache_prompt"]) == (0.0, 0.0, False)
    assert greedy["ignore_eos"] is False
    sampled = body(top_k=20, temperature=0.7, seed=7, end_id=-1, repetition_penalty=1.2)
    assert sampled["samplers"] == ["penalties", "temperature", "top_k", "top_p"]
    assert (sampled["top_k"], sampled["temperature"], sampled["top_p"]) == (20, 0.7, 1.0)
    assert (sampled["seed"], sampled["ignore_eos"], sampled["repeat_penalty"]) == (7, True, 1.2)
    # A temperature alone changes nothing, as with Triton's models.
    assert body(temperature=0.7)["temperature"] == 0.0
    assert body(top_p=0.9)["temperature"] == 1.0
    # 2^32 - 1 would be one of the server's own choice.
    assert body(seed=2**32 - 1)["seed"] == 0
    assert body(stream=True)["stream_options"] == {"include_usage": True}
    schema = '{"type": "object"}'
    kept = body(guided_decoding_guide_type="json_schema", guided_decoding_guide=schema)
    assert kept["json_schema"] == {"type": "object"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"bad_words": ("the",)}, "has no bad_words"),
        ({"min_tokens": 3}, "has no min_tokens"),
        ({"lora_task_id": 1}, "has no lora_task_id"),
        ({"end_id": 5}, "end_id cannot be 5"),
        ({"exclude_input_in_output": False}, "gives the answer alone"),
        ({"max_tokens": 0}, "max_tokens must be between 1"),
        ({"top_p": 1.5}, "top_p must be between 0 and 1"),
        (
            {"guided_decoding_guide_type": "regex", "guided_decoding_guide": "a+"},
            "cannot keep a text to a regular expression",
        ),
        ({"no_such": 1}, "a field of the request is unknown"),
    ],
)
def test_what_the_server_has_no_word_for_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        body(**fields)


def test_a_text_is_given_no_second_begin_token() -> None:
    def asked(text: str, begin: str = "<s>", added: bool | None = None) -> bool:
        return as_it_is(GenerateRequest(text, add_special_tokens=added), begin)

    assert asked("<s>Hello")
    assert not asked("Hello")
    assert not asked("<s>Hello", added=True)
    assert asked("Hello", added=False)
    assert not asked("Hello", begin="")


def event(**fields: Any) -> str:
    return f"data: {json.dumps(fields)}"


def test_tokens_are_counted_with_the_pieces_that_they_make() -> None:
    """A character of two tokens comes in one piece, and only the end has the usage."""
    answer = Answer("here", counts=True, scores=True, whole=False)
    lines = [
        event(
            choices=[{"text": "é", "logprobs": {"content": [{"logprob": -0.5}]}}],
            timings={"predicted_n": 2},
        ),
        event(
            choices=[{"text": "!", "logprobs": {"content": [{"logprob": -0.25}]}}],
            timings={"predicted_n": 3},
        ),
        event(
            choices=[{"text": "", "finish_reason": "length", "logprobs": None}],
            usage={"completion_tokens": 3, "prompt_tokens": 5},
        ),
        "data: [DONE]",
        ": a comment",
    ]
    events = [found for line in lines if (found := event_of(line, "here")) is not None]
    chunks = [answer.feed(one) for one in events]
    answer.end()
    assert [chunk.text for chunk in chunks] == ["é", "!", ""]
    assert [chunk.num_output_tokens for chunk in chunks] == [2, 1, 0]
    assert [chunk.output_log_probs for chunk in chunks] == [(-0.5,), (-0.25,), ()]
    last = chunks[-1]
    assert (last.cum_log_probs, last.num_input_tokens, last.finish_reason) == (-0.75, 5, "length")
    assert [chunk.is_final for chunk in chunks] == [False, False, True]


def test_a_stream_that_is_cut_is_no_answer() -> None:
    answer = Answer("here", counts=True, scores=False, whole=False)
    answer.feed({"choices": [{"text": "a"}]})
    with pytest.raises(ServerFailed, match="closed the stream before its final response"):
        answer.end()
    with pytest.raises(ServerFailed, match="another form than OpenAI's completions"):
        answer.feed({"choices": [{"delta": {}}]})


def test_bytes_become_lines_wherever_they_are_cut() -> None:
    text = 'data: {"text": "漢字"}\r\n\n: ping\ndata: [DONE]\n\n'.encode()
    whole = Lines().feed(text)
    for size in (1, 2, 7):
        lines = Lines()
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert [line for piece in pieces for line in lines.feed(piece)] == whole
    assert len(whole) == 3


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (400, InvalidRequest, "the server refused: no such thing"),
        (401, CallRestricted, "only those who send its key"),
        (404, InvalidRequest, "no OpenAI API at this address"),
        (503, ServerBusy, "no such thing"),
        (500, ServerFailed, "no such thing"),
    ],
)
def test_each_status_is_an_error_of_the_client(
    status: int, kind: type[ClientError], said: str
) -> None:
    error = error_of(status, b'{"error": {"message": "no such thing"}}', "here")
    assert type(error) is kind
    assert said in str(error)
    # In the middle of a stream the code is in the event.
    line = event(error={"code": 400, "message": "no such thing"})
    with pytest.raises(InvalidRequest, match="no such thing"):
        event_of(line, "here")


def test_the_address_picks_the_client() -> None:
    assert speaks_openai("http://h:1")
    assert speaks_openai("HTTPS://h")
    assert not speaks_openai("h:8001")
    assert not speaks_openai("grpcs://h:8001")
    for url in ("http://", "http://user:secret@h:1", "http://h:0"):
        with pytest.raises(InvalidRequest, match="the address of the server cannot be used"):
            connect(url)
    with connect("http://127.0.0.1:9/v1") as client:
        assert client.url == "http://127.0.0.1:9"
        assert not client.is_ready()
        with pytest.raises(ConnectionFailed, match="no server answers"):
            client.metadata()


@contextmanager
def scripted(answers: dict[str, tuple[int, Any]]) -> Iterator[tuple[str, list[Any]]]:
    """A server that gives written answers by path, and keeps what it was sent."""
    seen: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, sent: Any) -> None:
            seen.append((self.path, sent, self.headers.get("Authorization")))
            status, content = answers.get(self.path, (404, {"error": "nothing"}))
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_server_that_is_not_llama_cpps_is_asked_too() -> None:
    """Without pages of its own, such as vLLM: usage at the end, and OpenAI's log probabilities."""
    answer = {
        "choices": [
            {"text": " there", "finish_reason": "stop", "logprobs": {"token_logprobs": [-0.5]}}
        ],
        "usage": {"completion_tokens": 1, "prompt_tokens": 2},
    }
    answers = {"/v1/models": (200, MODELS), "/v1/completions": (200, answer)}
    with (
        scripted(answers) as (url, seen),
        connect(url, headers={"triton-grpc-protocol-api-key": "a-secret"}) as client,
    ):
        assert client.metadata().name == "vllm"
        assert client.model_metadata().name == client.model == "one"
        got = client.generate("Hello", max_tokens=8, return_log_probs=True)
        assert (got.text, got.finish_reason, got.output_log_probs) == (" there", "stop", (-0.5,))
        assert (got.num_input_tokens, got.num_output_tokens) == (2, 1)
        with pytest.raises(InvalidRequest, match=r"no model two\. It has one"):
            client.model_metadata("two")
        with pytest.raises(InvalidRequest, match="says no chat template"):
            client.chat_template()
    assert {key for _, _, key in seen} == {"Bearer a-secret"}
    assert [sent["model"] for path, sent, _ in seen if path == "/v1/completions"] == ["one"]


def test_chatml_that_a_server_makes_up_is_no_template() -> None:
    made_up = (
        "{%- for message in messages -%}\n"
        "  {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}\n"
        "{%- endfor -%}\n"
        "{%- if add_generation_prompt -%}\n"
        "  {{- '<|im_start|>assistant\n' -}}\n"
        "{%- endif -%}"
    )
    own = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}"
    for template, works in ((made_up, False), (own, True)):
        props = {"chat_template": template, "bos_token": "<s>", "total_slots": 3}
        answers = {"/v1/models": (200, MODELS), "/props": (200, props)}
        with scripted(answers) as (url, _), connect(url) as client:
            assert client.model_metadata().max_batch_size == 3
            if works:
                text = client.chat_template().render([{"role": "user", "content": "Hi"}])
                assert text == "<s>[Hi]"
            else:
                with pytest.raises(InvalidRequest, match="says no chat template"):
                    client.chat_template()

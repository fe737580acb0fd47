"""What the gateway refuses: with which status, and which part of the request it names."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from pipeline.gateway.desk import Options
from trtllm_client import (
    CallRestricted,
    Cancelled,
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    InvalidRequest,
    ServerBusy,
    ServerFailed,
)

from .scripted import Gateway, ScriptedEngine, demo, spoken

HELLO = [{"role": "user", "content": "Hello"}]
SECRET = "a secret that nobody may repeat"
CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"

# The path, what the body has besides, the part that is named, and words of the message.
WRONG: list[tuple[str, dict[str, Any], str | None, str]] = [
    (CHAT, {"n": 2}, "n", "must be 1"),
    (CHAT, {"logit_bias": {"5": 1.0}}, "logit_bias", "not supported"),
    # What other servers know, or the other path, would change the answer here as well.
    (CHAT, {"min_p": 0.1}, "min_p", "not supported"),
    (CHAT, {"skip_special_tokens": False}, "skip_special_tokens", "not supported"),
    (CHAT, {"guided_json": {"type": "object"}}, "guided_json", "not supported"),
    (CHAT, {"stop_token_ids": [5]}, "stop_token_ids", "not supported"),
    (CHAT, {"add_special_tokens": True}, "add_special_tokens", "not supported"),
    (PLAIN, {"response_format": {"type": "json_object"}}, "response_format", "not supported"),
    (PLAIN, {"tools": [{}]}, "tools", "not supported"),
    (PLAIN, {"max_completion_tokens": 5}, "max_completion_tokens", "send max_tokens"),
    (CHAT, {"logprobs": True, "top_logprobs": 3}, "top_logprobs", "must be 0"),
    (CHAT, {"stop": list("abcde")}, "stop", "at most 4"),
    (CHAT, {"stop": ""}, "stop", "none of them empty"),
    (CHAT, {"temperature": 3}, "temperature", "less than or equal to 2"),
    (CHAT, {"temperature": "1"}, "temperature", "valid number"),
    (CHAT, {"top_p": 1.5}, "top_p", "less than or equal to 1"),
    (CHAT, {"top_k": 2000}, "top_k", "1024"),
    (CHAT, {"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
    (CHAT, {"max_tokens": 0}, "max_tokens", "at least 1"),
    (CHAT, {"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "differ"),
    (CHAT, {"max_tokens": 100}, "max_tokens", "context is 64 tokens"),
    (CHAT, {"functions": [{}]}, "functions", "tools"),
    (CHAT, {"function_call": "auto"}, "function_call", "tools"),
    (CHAT, {"modalities": ["text", "audio"]}, "modalities", "text alone"),
    (CHAT, {"audio": {}}, "audio", "not supported"),
    (CHAT, {"stream_options": {"include_usage": True}}, "stream_options", "set stream to true"),
    (CHAT, {"response_format": {"type": "json_object"}}, "response_format", "guided"),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "not supported"),
    (
        CHAT,
        {"chat_template_kwargs": {"tools": []}},
        "chat_template_kwargs.tools",
        "the gateway's to set",
    ),
    (
        CHAT,
        {"chat_template_kwargs": {"x": 1, "add_generation_prompt": False}},
        "chat_template_kwargs.add_generation_prompt",
        "leave it out",
    ),
    (CHAT, {"messages": []}, "messages", "at least one"),
    (CHAT, {"messages": None}, "messages", "valid array"),
    (CHAT, {"messages": [{"content": "x"}]}, "messages[0].role", "one of"),
    (CHAT, {"messages": [{"role": "function", "content": "x"}]}, "messages[0].role", "one of"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "a text"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0]",
        "no images",
    ),
    (CHAT, {"messages": [{"role": "user", "content": "cat " * 60}]}, "messages", "at most 48"),
    (PLAIN, {"best_of": 2}, "best_of", "must be 1"),
    (PLAIN, {"suffix": "x"}, "suffix", "not supported"),
    (PLAIN, {"logprobs": 5}, "logprobs", "0 or 1"),
    (PLAIN, {"max_tokens": 0}, "max_tokens", "with echo"),
    (PLAIN, {"prompt": [2**20]}, "prompt", "0 to 1023"),
    (PLAIN, {"prompt": []}, "prompt", "none may be empty"),
    (PLAIN, {"prompt": ["a"] * 257}, "prompt", "at most 256"),
    (PLAIN, {"prompt": [-1]}, "prompt", "token ids"),
    (PLAIN, {"prompt": 5}, "prompt", "token ids"),
    (PLAIN, {"prompt": [["a"]]}, "prompt", "token ids"),
    (PLAIN, {"prompt": ["a", "cat " * 60]}, "prompt[1]", "at most 48"),
    (PLAIN, {"seed": 1.5}, "seed", "valid integer"),
    (PLAIN, {"stream": "yes"}, "stream", "valid boolean"),
]


@pytest.mark.parametrize(("path", "more", "param", "words"), WRONG)
def test_a_wrong_request_is_400_and_names_its_part(
    path: str, more: dict[str, Any], param: str | None, words: str
) -> None:
    async def run() -> None:
        engine = ScriptedEngine()
        async with Gateway(engine, demo()) as gateway:
            start = {"messages": HELLO} if path == CHAT else {"prompt": "Once"}
            got = await gateway.http.post(path, json={**start, "user": SECRET, **more})
            assert got.status_code == 400, got.text
            error = got.json()["error"]
            assert error["param"] == param
            assert words in error["message"]
            assert error["type"] == "invalid_request_error"
            assert error["request_id"] == got.headers["x-request-id"]
            assert engine.asked == []

    asyncio.run(run())


def test_what_nobody_knows_and_what_changes_nothing_is_ignored() -> None:
    async def run() -> None:
        model = demo()
        async with Gateway(ScriptedEngine(*spoken(model, "A girl.")), model) as gateway:
            body = {
                "messages": HELLO, "n": 1, "logit_bias": {}, "top_logprobs": 0, "store": True,
                "metadata": {"a": "b"}, "service_tier": "auto", "unheard_of": {"x": [1]},
                "parallel_tool_calls": None, "presence_penalty": 0, "stop": [], "tools": None,
                "response_format": {"type": "text"}, "modalities": ["text"],
                "min_p": 0.0, "length_penalty": 1.0, "skip_special_tokens": True,
                "use_beam_search": False, "stop_token_ids": [], "guided_json": None,
                "check": 1, "stops": 2, "model_extra": {}, "echo": False,
            }  # fmt: skip
            got = await gateway.http.post(CHAT, json=body)
            assert got.status_code == 200, got.text

    asyncio.run(run())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"{", "no JSON"),
        (b"[]", "JSON object"),
        (b'{"prompt": "\xff"}', "no JSON"),
        (b'{"prompt": "\\ud800"}', "no JSON"),
        (b'{"prompt": "x", "temperature": NaN}', "temperature"),
        (b"[" * 100_000, "no JSON"),
    ],
)
def test_a_body_that_is_no_json_object_is_400(content: bytes, words: str) -> None:
    async def run() -> None:
        async with Gateway(ScriptedEngine(), demo()) as gateway:
            got = await gateway.http.post(
                PLAIN, content=content, headers={"content-type": "application/json"}
            )
            assert got.status_code == 400
            assert words in got.json()["error"]["message"]

    asyncio.run(run())


def test_a_body_that_a_web_page_could_make_a_browser_send_is_415() -> None:
    async def run() -> None:
        async with Gateway(ScriptedEngine(), demo()) as gateway:
            got = await gateway.http.post(PLAIN, content=b'{"prompt": "x"}')
            assert got.status_code == 415
            assert "application/json" in got.json()["error"]["message"]

    asyncio.run(run())


def test_a_model_that_is_not_served_and_a_path_that_is_not_there_are_404() -> None:
    async def run() -> None:
        async with Gateway(ScriptedEngine(), demo(aliases=("other",))) as gateway:
            with pytest.raises(openai.NotFoundError, match="not served here") as caught:
                await gateway.openai.completions.create(model="gpt-9", prompt="x")
            assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
            with pytest.raises(openai.NotFoundError, match="not served here"):
                await gateway.openai.models.retrieve("gpt-9")
            listed = [model.id async for model in gateway.openai.models.list()]
            assert listed == ["demo", "other"]
            assert (await gateway.openai.models.retrieve("other")).id == "other"
            got = await gateway.http.post("/v1/embeddings", json={})
            assert (got.status_code, got.json()["error"]["code"]) == (404, "unknown_url")
            got = await gateway.http.get(PLAIN)
            assert (got.status_code, got.json()["error"]["code"]) == (405, "method_not_allowed")

    asyncio.run(run())


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (ServerBusy("the server refused: queue is full"), openai.RateLimitError, 429),
        (ConnectionFailed("no server answers", where="10.0.0.7:8001"), openai.APIStatusError, 503),
        (DeadlineExceeded("no answer in time"), openai.APIStatusError, 504),
        (ServerFailed("the server refused: oops"), openai.InternalServerError, 500),
        (Cancelled("the request was cancelled"), openai.APIStatusError, 503),
        (CallRestricted("a header is missing"), openai.APIStatusError, 502),
        (InvalidRequest("the server refused: no"), openai.BadRequestError, 400),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_says_becomes_a_status(
    error: ClientError, kind: type[openai.APIStatusError], status: int, stream: bool
) -> None:
    async def run() -> None:
        async with Gateway(ScriptedEngine(error), demo()) as gateway:
            with pytest.raises(kind, match=r".") as caught:
                await gateway.openai.completions.create(model="demo", prompt="x", stream=stream)
            assert caught.value.status_code == status
            # Where the server is concerns nobody outside.
            assert "10.0.0.7" not in str(caught.value)
            if status in (429, 503) and not isinstance(error, Cancelled):
                assert int(caught.value.response.headers["retry-after"]) >= 1
            metrics = (await gateway.http.get("/metrics")).text
            line = f'llm_requests_total{{code="{status}",endpoint="/v1/completions"}} 1.0'
            assert line in metrics

    asyncio.run(run())


def test_a_refusal_by_the_server_names_the_request_s_own_parameter() -> None:
    async def run() -> None:
        refusal = InvalidRequest("the server refused: presence_penalty: the CPU engine has none")
        async with Gateway(ScriptedEngine(refusal), demo()) as gateway:
            with pytest.raises(openai.BadRequestError, match="CPU engine") as caught:
                await gateway.openai.completions.create(
                    model="demo", prompt="x", presence_penalty=1
                )
            assert caught.value.param == "presence_penalty"

    asyncio.run(run())


def test_a_defect_of_the_gateway_is_500_without_a_word_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def run() -> None:
        async with Gateway(ScriptedEngine(RuntimeError(SECRET)), demo()) as gateway:
            got = await gateway.http.post(PLAIN, json={"prompt": "x"})
            assert got.status_code == 500
            assert SECRET not in got.text
            # The log has it, under the id that the client was told.
            assert got.headers["x-request-id"] in caplog.text

    asyncio.run(run())


def test_no_prompt_is_in_a_log(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        model = demo()
        caplog.set_level("DEBUG")
        async with Gateway(ScriptedEngine(*spoken(model, "A girl.")), model) as gateway:
            for path, more in ((CHAT, {}), (PLAIN, {}), (CHAT, {"n": 2}), (PLAIN, {"stop": [""]})):
                body = {"messages": [{"role": "user", "content": SECRET}], "prompt": SECRET, **more}
                await gateway.http.post(path, json=body)
            await gateway.http.post(PLAIN, json={"prompt": [SECRET, 5]})
            await gateway.http.post(f"/v1/{SECRET}", json={})
            assert len(gateway.lines) == 6
            assert SECRET not in "\n".join(gateway.lines)
        ours = [r.getMessage() for r in caplog.records if r.name.startswith("pipeline")]
        assert SECRET not in "\n".join(ours)

    asyncio.run(run())


KEYS = ("k" * 32, "l" * 32)


def test_only_those_with_a_key_are_let_in() -> None:
    async def run() -> None:
        model = demo()
        engine = ScriptedEngine(*spoken(model, "A girl."))
        async with Gateway(engine, model, Options(keys=KEYS)) as gateway:
            for given in (None, "", "k" * 32, f"Bearer {'m' * 32}", f"Bearer {'k' * 31}"):
                headers = {} if given is None else {"authorization": given}
                got = await gateway.http.post(PLAIN, json={"prompt": "x"}, headers=headers)
                assert got.status_code == 401
                assert got.headers["www-authenticate"] == "Bearer"
                assert got.json()["error"]["code"] == "invalid_api_key"
            for key in KEYS:
                headers = {"authorization": f"Bearer {key}"}
                got = await gateway.http.post(PLAIN, json={"prompt": "x"}, headers=headers)
                assert got.status_code == 200
            assert (await gateway.http.get("/v1/models")).status_code == 401
            # Probes and Prometheus are given no secrets.
            for path in ("/health/live", "/health/ready", "/health", "/metrics"):
                assert (await gateway.http.get(path)).status_code == 200
            with pytest.raises(openai.AuthenticationError, match="Bearer KEY"):
                await gateway.openai.completions.create(model="demo", prompt="x")

    asyncio.run(run())


def test_a_browser_of_another_site_may_read_nothing() -> None:
    async def run() -> None:
        async with Gateway(ScriptedEngine(), demo()) as gateway:
            asked = {"origin": "https://elsewhere", "access-control-request-method": "POST"}
            got = await gateway.http.options(PLAIN, headers=asked)
            assert got.status_code == 405
            listed = await gateway.http.get("/v1/models", headers=asked)
            for answer in (got, listed):
                assert not [h for h in answer.headers if h.startswith("access-control")]

    asyncio.run(run())


def test_a_body_that_is_too_large_is_413_however_it_says_its_size() -> None:
    async def run() -> None:
        async with Gateway(ScriptedEngine(), demo(), Options(most_bytes=1000)) as gateway:
            body = json.dumps({"prompt": "x" * 1000}).encode()

            async def pieces() -> Any:
                for start in range(0, len(body), 100):
                    yield body[start : start + 100]

            for content in (body, pieces()):
                got = await gateway.http.post(
                    PLAIN, content=content, headers={"content-type": "application/json"}
                )
                assert got.status_code == 413
                assert got.json()["error"]["code"] == "request_too_large"

    asyncio.run(run())


def test_an_id_of_the_client_is_kept_unless_it_could_be_anything_else() -> None:
    async def run() -> None:
        async with Gateway(ScriptedEngine(), demo()) as gateway:
            for given, kept in (("mine-1", True), ("a\tb", False), ("x" * 200, False)):
                got = await gateway.http.get("/v1/models", headers={"x-request-id": given})
                assert (got.headers["x-request-id"] == given) is kept

    asyncio.run(run())


def test_readiness_is_the_engine_s_and_liveness_the_gateway_s_own() -> None:
    async def run() -> None:
        engine = ScriptedEngine()
        async with Gateway(engine, demo()) as gateway:
            assert (await gateway.http.get("/health/ready")).json() == {"status": "ready"}
            engine.is_ready = False
            got = await gateway.http.get("/health/ready")
            assert (got.status_code, got.json()["status"]) == (503, "not ready")
            assert (await gateway.http.get("/health/live")).status_code == 200
            engine.is_ready = True
            gateway.desk.trouble = "The tokenizers were not compared yet."
            assert (await gateway.http.get("/health/ready")).status_code == 503
            got = await gateway.http.post(PLAIN, json={"prompt": "x"})
            assert (got.status_code, engine.asked) == (503, [])

    asyncio.run(run())

"""``/v1/chat/completions`` with a scripted engine, as the official client reads it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import TypeAdapter

from pipeline.gateway.engine import Tokens
from trtllm_client import ServerFailed

from .scripted import END, Gateway, ScriptedEngine, demo, spoken

MESSAGES: Any = [{"role": "user", "content": "Who?"}]


def strictly(kind: Any, content: Any) -> Any:
    """What the client would build without looking, looked at."""
    return TypeAdapter(kind).validate_python(content)


def test_an_answer_is_what_the_engine_said_and_its_end_id_is_no_part_of_it() -> None:
    async def run() -> None:
        model = demo()
        engine = ScriptedEngine(*spoken(model, "A girl named Zoë."))
        async with Gateway(engine, model) as gateway:
            got = await gateway.openai.chat.completions.with_raw_response.create(
                model="demo", messages=MESSAGES
            )
            answer = strictly(ChatCompletion, json.loads(got.content))
            choice = answer.choices[0]
            assert (choice.message.role, choice.message.content) == (
                "assistant",
                "A girl named Zoë.",
            )
            assert choice.finish_reason == "stop"
            # The template's text once tokenized, with one bos, and the tokens that were said.
            prompt = model.tokenizer.encode(
                "<s>user: Who?\nassistant:", add_special_tokens=False
            ).ids
            assert engine.asked[0].prompt == tuple(prompt)
            said = len(model.tokenizer.encode("A girl named Zoë.", add_special_tokens=False).ids)
            assert answer.usage.prompt_tokens == len(prompt)
            assert answer.usage.completion_tokens == said
            assert answer.usage.total_tokens == len(prompt) + said
            # Without a limit of its own the answer may have all that the context leaves.
            assert engine.asked[0].max_tokens == 64 - len(prompt)

    asyncio.run(run())


def test_a_stream_has_the_same_text_and_its_usage_at_the_end() -> None:
    async def run() -> None:
        model = demo()
        engine = ScriptedEngine(*spoken(model, "A girl named Zoë."))
        async with Gateway(engine, model) as gateway:
            stream = await gateway.openai.chat.completions.create(
                model="demo",
                messages=MESSAGES,
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [strictly(ChatCompletionChunk, chunk.model_dump()) async for chunk in stream]
            assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
            *answers, last = chunks
            assert answers[0].choices[0].delta.role == "assistant"
            assert all(chunk.choices[0].delta.role is None for chunk in answers[1:])
            text = "".join(chunk.choices[0].delta.content or "" for chunk in answers)
            assert text == "A girl named Zoë."
            reasons = [chunk.choices[0].finish_reason for chunk in answers]
            assert reasons == [*[None] * (len(answers) - 1), "stop"]
            assert last.choices == []
            assert last.usage is not None
            assert last.usage.completion_tokens == len(
                model.tokenizer.encode("A girl named Zoë.", add_special_tokens=False).ids
            )
            assert all(chunk.usage is None for chunk in answers)

    asyncio.run(run())


def test_a_stream_is_events_with_done_behind_them() -> None:
    async def run() -> None:
        model = demo()
        async with Gateway(ScriptedEngine(*spoken(model, "A girl.")), model) as gateway:
            body = {"messages": MESSAGES, "stream": True}
            got = await gateway.http.post("/v1/chat/completions", json=body)
            assert got.headers["content-type"].startswith("text/event-stream")
            assert got.headers["x-accel-buffering"] == "no"
            *events, done, rest = got.text.split("\n\n")
            assert (done, rest) == ("data: [DONE]", "")
            contents = [json.loads(event.removeprefix("data: ")) for event in events]
            assert all("usage" not in content for content in contents)
            assert all(content["id"].startswith("chatcmpl-") for content in contents)

    asyncio.run(run())


def test_an_answer_that_its_limit_ends_says_so() -> None:
    async def run() -> None:
        model = demo()
        some = spoken(model, "A girl named Zoë.")[:3]
        async with Gateway(ScriptedEngine(*some), model) as gateway:
            for name in ("max_tokens", "max_completion_tokens"):
                answer = await gateway.openai.chat.completions.create(
                    model="demo", messages=MESSAGES, **{name: 3}
                )
                assert answer.choices[0].finish_reason == "length"
                assert gateway.desk.engine.asked[-1].max_tokens == 3  # type: ignore[attr-defined]

    asyncio.run(run())


@pytest.mark.parametrize("stop", [" named", [" named", "Zoë"]])
def test_a_stop_word_is_cut_off_and_ends_the_work_of_the_engine(stop: Any) -> None:
    async def run() -> None:
        model = demo()
        engine = ScriptedEngine(*spoken(model, "A girl named Zoë."))
        async with Gateway(engine, model) as gateway:
            whole = await gateway.openai.chat.completions.create(
                model="demo", messages=MESSAGES, stop=stop
            )
            assert whole.choices[0].message.content == "A girl"
            assert whole.choices[0].finish_reason == "stop"
            assert engine.left == 1
            text = ""
            async for chunk in await gateway.openai.chat.completions.create(
                model="demo", messages=MESSAGES, stop=stop, stream=True
            ):
                text += chunk.choices[0].delta.content or ""
            assert (text, engine.left) == ("A girl", 2)

    asyncio.run(run())


def test_log_probs_are_of_each_token_with_the_bytes_that_make_up_the_text() -> None:
    async def run() -> None:
        model = demo()
        text = " Zoë 🐌."
        engine = ScriptedEngine(*spoken(model, text, score=-0.25))
        async with Gateway(engine, model) as gateway:
            whole = await gateway.openai.chat.completions.create(
                model="demo", messages=MESSAGES, logprobs=True
            )
            scores = whole.choices[0].logprobs
            assert scores is not None
            assert scores.content is not None
            assert b"".join(bytes(token.bytes or ()) for token in scores.content).decode() == text
            assert {token.logprob for token in scores.content} == {-0.25}
            assert len(scores.content) == whole.usage.completion_tokens  # type: ignore[union-attr]
            streamed = []
            async for chunk in await gateway.openai.chat.completions.create(
                model="demo", messages=MESSAGES, logprobs=True, stream=True
            ):
                if chunk.choices[0].logprobs:
                    streamed += chunk.choices[0].logprobs.content or []
            assert [(s.token, s.bytes, s.logprob) for s in streamed] == [
                (s.token, s.bytes, s.logprob) for s in scores.content
            ]
            assert engine.asked[0].inputs["return_log_probs"] is True

    asyncio.run(run())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"temperature": 0}, {"runtime_top_k": 1}),
        ({"top_p": 0}, {"runtime_top_k": 1}),
        ({"temperature": 0.5, "seed": 7}, {"temperature": 0.5, "runtime_top_p": 1.0, "seed": 7}),
        ({"top_p": 0.9, "seed": 7}, {"temperature": 1.0, "runtime_top_p": 0.9, "seed": 7}),
        ({"seed": -1}, {"temperature": 1.0, "runtime_top_p": 1.0, "seed": 2**64 - 1}),
        (
            {"seed": 3, "presence_penalty": 1.5, "frequency_penalty": 0},
            {"temperature": 1.0, "runtime_top_p": 1.0, "seed": 3, "presence_penalty": 1.5},
        ),
    ],
)
def test_sampling_reaches_the_engine_by_the_names_of_the_wire(
    given: dict[str, Any], expected: dict[str, Any]
) -> None:
    async def run() -> None:
        model = demo()
        engine = ScriptedEngine(*spoken(model, "A girl."))
        async with Gateway(engine, model) as gateway:
            await gateway.openai.chat.completions.create(model="demo", messages=MESSAGES, **given)
        inputs = dict(engine.asked[0].inputs)
        assert inputs.pop("end_id") == END
        assert inputs == expected

    asyncio.run(run())


def test_a_request_that_samples_without_a_seed_gets_one_of_its_own() -> None:
    async def run() -> list[Any]:
        model = demo()
        engine = ScriptedEngine(*spoken(model, "A girl."))
        async with Gateway(engine, model) as gateway:
            for _ in range(4):
                await gateway.openai.chat.completions.create(model="demo", messages=MESSAGES)
        return [asked.inputs["seed"] for asked in engine.asked]

    seeds = asyncio.run(run())
    assert len(set(seeds)) == 4


def test_parts_of_text_and_the_newer_role_become_what_a_template_knows() -> None:
    async def run() -> None:
        model = demo()
        engine = ScriptedEngine(*spoken(model, "A girl."))
        messages: Any = [
            {"role": "developer", "content": "Be kind."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "Who"}, {"type": "text", "text": "is it?"}],
            },
        ]
        async with Gateway(engine, model) as gateway:
            await gateway.openai.chat.completions.create(model="demo", messages=messages)
        text = "<s>system: Be kind.\nuser: Who\nis it?\nassistant:"
        expected = model.tokenizer.encode(text, add_special_tokens=False).ids
        assert engine.asked[0].prompt == tuple(expected)

    asyncio.run(run())


async def _read(gateway: Gateway, texts: list[str]) -> None:
    async for chunk in await gateway.openai.chat.completions.create(
        model="demo", messages=MESSAGES, stream=True
    ):
        texts.append(chunk.choices[0].delta.content or "")  # noqa: PERF401 -- it may break off


def test_a_failure_in_the_middle_of_a_stream_is_an_error_event_that_the_client_raises() -> None:
    import openai

    async def run() -> None:
        model = demo()
        engine = ScriptedEngine(*spoken(model, "A girl")[:2], ServerFailed("the engine broke"))
        async with Gateway(engine, model) as gateway:
            texts: list[str] = []
            with pytest.raises(openai.APIError, match="The engine broke") as caught:
                await _read(gateway, texts)
            assert "".join(texts) == "A girl"
            assert caught.value.type == "server_error"
            # What was sent as 200 is counted and logged as what became of it.
            assert " 500 in " in gateway.lines[-1]
            body = {"messages": MESSAGES, "stream": True}
            got = await gateway.http.post("/v1/chat/completions", json=body)
            assert got.status_code == 200
            assert "[DONE]" not in got.text
            event = json.loads(got.text.split("\n\n")[-2].removeprefix("data: "))
            assert event["error"]["request_id"] == got.headers["x-request-id"]

    asyncio.run(run())


def test_a_failure_before_the_first_token_has_a_status_of_its_own_in_a_stream_too() -> None:
    import openai

    async def run() -> None:
        model = demo()
        engine = ScriptedEngine(ServerFailed("the engine broke"))
        async with Gateway(engine, model) as gateway:
            with pytest.raises(openai.InternalServerError, match="The engine broke"):
                await gateway.openai.chat.completions.create(
                    model="demo", messages=MESSAGES, stream=True
                )

    asyncio.run(run())


def test_several_tokens_in_a_response_are_one_piece_and_count_each() -> None:
    async def run() -> None:
        model = demo()
        ids = tuple(model.encode("A girl named Zoë.", "text", add_special_tokens=False))
        async with Gateway(ScriptedEngine(Tokens((*ids, END))), model) as gateway:
            answer = await gateway.openai.chat.completions.create(model="demo", messages=MESSAGES)
        assert answer.choices[0].message.content == "A girl named Zoë."
        assert answer.usage is not None
        assert answer.usage.completion_tokens == len(ids)

    asyncio.run(run())

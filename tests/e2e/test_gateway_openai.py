"""OpenAI's own client against the gateway: on a real server, and on a script.

The script says what no small model says. The client is whichever major is installed;
``make operate-proof`` runs the same with the other one. Most of the cases of Triton's own frontend
(python/openai/tests) are among them.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import jsonschema
import pytest
from pydantic import BaseModel

from pipeline.triton.parameters import TOKENIZER_DIR
from trtllm_client import Client, ServerFailed

from ..processes import started
from .scripted_gateway import FORMS, Scripted, scripted

openai = pytest.importorskip("openai")

KEY = "sk-test-0123456789"
CONTEXT = 512
PROMPT = "Once there was a gentle boy named Jack, and he lived by the sea."
CHAT = [{"role": "user", "content": "Tell me of Jack."}]
# Knows tools, and is short enough for a small context.
TEMPLATE = (
    "{% for one in messages %}{{ one.role }}: {{ one.content or '' }}\n{% endfor %}"
    "{% for tool in tools or [] %}<tool_call>{{ tool.function.name }}\n{% endfor %}"
    "Once there was a boy"
)
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Says the weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"unit": {"enum": ["C", "F"]}, "days": {"enum": [1, 2, 3]}},
            "required": ["unit", "days"],
            "additionalProperties": False,
        },
    },
}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now", "parameters": {}}}
TOOLS = [WEATHER, NOW]
WANTS_WEATHER = {"type": "function", "function": {"name": "get_weather"}}
ARGUMENTS = {"unit": "C", "days": 2}


@pytest.fixture(scope="module")
def model_dir(guided: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's tokenizer with a chat template."""
    folder = tmp_path_factory.mktemp("gateway") / "jack"
    shutil.copytree(guided / TOKENIZER_DIR, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def url(guided_url: str, model_dir: Path) -> Iterator[str]:
    """A gateway in a process of its own, in front of a real server."""
    command = [sys.executable, "-m", "pipeline", "gateway", "--url", guided_url, "--port", "0"]
    command += ["--tokenizer", str(model_dir), "--context-length", str(CONTEXT)]
    command += ["--key-from", "GATEWAY_TEST_KEY", "--max-body", "1", "--json", "--quiet"]
    environment = {**os.environ, "GATEWAY_TEST_KEY": KEY}
    with started(command, env=environment, text=True) as process:
        assert process.stdout
        url = str(json.loads(process.stdout.readline())["openai"])
        with openai.OpenAI(api_key=KEY, base_url=url, max_retries=30) as client:
            client.completions.create(model="jack", prompt="A", max_tokens=1)
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Any]:
    with openai.OpenAI(api_key=KEY, base_url=url, max_retries=0, timeout=60) as client:
        yield client


def asynchronous(url: str, ask: Callable[[Any], Any]) -> Any:
    """What a function makes of an asynchronous client."""

    async def asked() -> Any:
        async with openai.AsyncOpenAI(
            api_key=KEY, base_url=url, max_retries=0, timeout=60
        ) as client:
            return await ask(client)

    return asyncio.run(asked())


def text_of(stream: Any) -> tuple[str, list[str | None], Any]:
    """Text, finish reasons and the last chunk of a stream of either kind."""
    text, reasons, last = "", [], None
    for chunk in stream:
        last = chunk
        for choice in chunk.choices:
            text += (choice.delta.content if hasattr(choice, "delta") else choice.text) or ""
            reasons.append(choice.finish_reason)
    return text, reasons, last


class TestModels:
    def test_the_model_is_listed(self, client: Any) -> None:
        (model,) = client.models.list()
        assert (model.id, model.object) == ("jack", "model")
        assert client.models.retrieve("jack") == model

    def test_also_asynchronously(self, url: str) -> None:
        async def ask(client: Any) -> list[str]:
            return [model.id async for model in client.models.list()]

        assert asynchronous(url, ask) == ["jack"]

    def test_another_one_is_not_found(self, client: Any) -> None:
        with pytest.raises(openai.NotFoundError, match="is not served here") as caught:
            client.models.retrieve("jill")
        assert caught.value.code == "model_not_found"


class TestCompletions:
    def test_the_text_is_the_one_that_the_servers_text_model_gives(
        self, client: Any, guided_url: str
    ) -> None:
        with Client(guided_url, timeout=60) as direct:
            wanted = direct.generate(PROMPT, max_tokens=60)
        done = client.completions.create(model="jack", prompt=PROMPT, max_tokens=60, temperature=0)
        (choice,) = done.choices
        assert choice.text == wanted.text
        assert choice.finish_reason == wanted.finish_reason
        assert done.usage.completion_tokens == wanted.num_output_tokens
        assert done.usage.prompt_tokens > 0
        assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens

    @pytest.mark.parametrize(
        "options",
        [{}, {"stop": "."}, {"stop": ["sea", " One"]}, {"stop": []}, {"seed": 5, "temperature": 1}],
        ids=str,
    )
    def test_a_stream_has_the_same_text(self, client: Any, options: dict[str, Any]) -> None:
        asked = {"model": "jack", "prompt": PROMPT, "max_tokens": 60, "temperature": 0, **options}
        (whole,) = client.completions.create(**asked).choices
        text, reasons, last = text_of(client.completions.create(**asked, stream=True))
        assert text == whole.text
        assert len(reasons) > 2
        assert [reason for reason in reasons if reason] == [whole.finish_reason]
        assert last.usage is None
        for stop in options.get("stop", []):
            assert stop not in text
        assert whole.finish_reason == ("stop" if options.get("stop") else "length")

    def test_a_stream_says_how_many_tokens_it_were(self, client: Any) -> None:
        asked = {"model": "jack", "prompt": PROMPT, "max_tokens": 16, "temperature": 0}
        whole = client.completions.create(**asked)
        without = list(client.completions.create(**asked, stream=True))
        counted = list(
            client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        )
        assert counted[-1].choices == []
        assert counted[-1].usage == whole.usage
        assert {chunk.usage for chunk in counted[:-1]} == {None}
        assert text_of(counted)[0] == text_of(without)[0] == whole.choices[0].text

    def test_a_seed_makes_an_answer_repeatable(self, client: Any) -> None:
        def sampled(seed: int) -> str:
            done = client.completions.create(
                model="jack", prompt=PROMPT, max_tokens=40, temperature=1, seed=seed
            )
            return str(done.choices[0].text)

        assert sampled(1) == sampled(1)
        assert len({sampled(seed) for seed in range(2, 6)}) > 1

    def test_answers_without_a_seed_differ(self, client: Any) -> None:
        asked = {"model": "jack", "prompt": PROMPT, "max_tokens": 40, "temperature": 1.5}
        assert len({client.completions.create(**asked).choices[0].text for _ in range(4)}) > 1

    def test_echo_puts_the_prompt_in_front(self, client: Any) -> None:
        asked = {"model": "jack", "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
        plain = client.completions.create(**asked).choices[0].text
        assert PROMPT not in plain
        assert client.completions.create(**asked, echo=True).choices[0].text == PROMPT + plain

    def test_log_probabilities_belong_to_the_text(self, client: Any) -> None:
        done = client.completions.create(
            model="jack", prompt=PROMPT, max_tokens=20, temperature=0, logprobs=0
        )
        (choice,) = done.choices
        scores = choice.logprobs
        assert "".join(scores.tokens) == choice.text
        assert len(scores.tokens) == len(scores.token_logprobs) == done.usage.completion_tokens
        assert all(score <= 0 for score in scores.token_logprobs)
        for token, offset in zip(scores.tokens, scores.text_offset, strict=True):
            assert choice.text[offset - scores.text_offset[0] :].startswith(token)

    def test_several_prompts_and_token_ids(self, client: Any) -> None:
        both = client.completions.create(
            model="jack", prompt=[PROMPT, "The dog"], max_tokens=12, temperature=0
        )
        assert [choice.index for choice in both.choices] == [0, 1]
        for choice, prompt in zip(both.choices, (PROMPT, "The dog"), strict=True):
            alone = client.completions.create(
                model="jack", prompt=prompt, max_tokens=12, temperature=0
            )
            assert choice.text == alone.choices[0].text
        ids = client.completions.create(model="jack", prompt=[5, 6, 7], max_tokens=3)
        assert ids.usage.prompt_tokens == 3

    def test_one_token_is_one_token(self, client: Any) -> None:
        done = client.completions.create(model="jack", prompt=PROMPT, max_tokens=1)
        assert done.usage.completion_tokens == 1
        assert done.choices[0].finish_reason == "length"

    def test_any_text_is_taken(self, client: Any) -> None:
        for prompt in ("Zürich “漢字” 😀\n\0", " " * 50):
            assert client.completions.create(model="jack", prompt=prompt, max_tokens=2).usage

    def test_streams_run_beside_each_other(self, url: str) -> None:
        async def ask(client: Any) -> list[str]:
            async def one(number: int) -> str:
                text = ""
                stream = await client.completions.create(
                    model="jack", prompt=PROMPT, max_tokens=20 + number, stream=True, temperature=0
                )
                async for chunk in stream:
                    text += chunk.choices[0].text
                return text

            return list(await asyncio.gather(*(one(number) for number in range(12))))

        texts = asynchronous(url, ask)
        assert all(
            longer.startswith(shorter) and len(longer) > len(texts[0])
            for shorter, longer in pairwise(texts)
        )


class TestChat:
    @pytest.mark.parametrize(
        "messages",
        [
            CHAT,
            [{"role": "system", "content": "You tell stories."}, *CHAT],
            [{"role": "developer", "content": "You tell stories."}, *CHAT],
            [{"role": "system", "content": "You tell stories."}],
            [{"role": "user", "content": [{"type": "text", "text": "Tell me."}]}],
            [*CHAT, {"role": "assistant", "content": "No."}, *CHAT],
        ],
    )
    def test_a_conversation_is_answered(self, client: Any, messages: Any) -> None:
        done = client.chat.completions.create(model="jack", messages=messages, max_tokens=24)
        (choice,) = done.choices
        assert choice.message.role == "assistant"
        assert choice.message.content.strip()
        assert choice.message.tool_calls is None
        assert choice.finish_reason in ("stop", "length")

    @pytest.mark.parametrize(
        "options",
        [
            {"temperature": 0.7},
            {"top_p": 0.9},
            {"n": 1},
            {"stop": "."},
            {"stop": []},
            {"stop": [".", ","]},
            {"logprobs": True},
            {"logit_bias": {}},
            {"frequency_penalty": 0},
            {"presence_penalty": 0.0},
            {"user": "somebody"},
            {"seed": 7},
            {"metadata": {"a": "b"}},
            {"service_tier": "auto"},
            {"store": False},
            {"response_format": {"type": "text"}},
            {"extra_body": {"min_tokens": 16}},
            {"extra_body": {"ignore_eos": True}},
            {"extra_body": {"top_k": 5}},
        ],
        ids=str,
    )
    def test_options_are_taken(self, client: Any, options: dict[str, Any]) -> None:
        done = client.chat.completions.create(
            model="jack", messages=CHAT, max_completion_tokens=24, **options
        )
        assert done.choices[0].message.content

    @pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
    def test_an_answer_has_no_more_tokens_than_asked_for(self, client: Any, limit: str) -> None:
        for tokens in (1, 9):
            done = client.chat.completions.create(model="jack", messages=CHAT, **{limit: tokens})
            assert done.usage.completion_tokens == tokens
            assert done.choices[0].finish_reason == "length"

    @pytest.mark.parametrize("options", [{}, {"stop": "."}, {"stop": ["a"]}], ids=str)
    def test_a_stream_has_the_same_text(self, client: Any, options: dict[str, Any]) -> None:
        asked = {"model": "jack", "messages": CHAT, "max_tokens": 40, "temperature": 0, **options}
        whole = client.chat.completions.create(**asked)
        chunks = list(client.chat.completions.create(**asked, stream=True))
        text, reasons, _ = text_of(chunks)
        assert text == whole.choices[0].message.content
        assert [reason for reason in reasons if reason] == [whole.choices[0].finish_reason]
        assert [chunk.choices[0].delta.role for chunk in chunks].count("assistant") == 1
        assert chunks[0].choices[0].delta.role == "assistant"
        assert {chunk.usage for chunk in chunks} == {None}
        assert len({chunk.id for chunk in chunks}) == 1

    def test_a_stream_says_how_many_tokens_it_were(self, client: Any) -> None:
        asked = {"model": "jack", "messages": CHAT, "max_tokens": 16, "temperature": 0}
        whole = client.chat.completions.create(**asked)
        chunks = list(
            client.chat.completions.create(
                **asked, stream=True, stream_options={"include_usage": True}
            )
        )
        assert chunks[-1].choices == []
        assert chunks[-1].usage == whole.usage
        assert {chunk.usage for chunk in chunks[:-1]} == {None}

    def test_log_probabilities_belong_to_the_text(self, client: Any) -> None:
        asked = {"model": "jack", "messages": CHAT, "max_tokens": 20, "temperature": 0}
        done = client.chat.completions.create(**asked, logprobs=True)
        (choice,) = done.choices
        scores = choice.logprobs.content
        assert len(scores) == done.usage.completion_tokens
        said = b"".join(bytes(score.bytes) for score in scores).decode()
        assert said == choice.message.content
        assert all(score.logprob <= 0 for score in scores)
        streamed = [
            score.logprob
            for chunk in client.chat.completions.create(**asked, logprobs=True, stream=True)
            if chunk.choices[0].logprobs
            for score in chunk.choices[0].logprobs.content
        ]
        assert streamed == pytest.approx([score.logprob for score in scores], abs=1e-3)

    def test_the_stream_helper_puts_an_answer_together(self, client: Any) -> None:
        asked = {"model": "jack", "messages": CHAT, "max_tokens": 30, "temperature": 0}
        whole = client.chat.completions.create(**asked)
        with client.chat.completions.stream(
            **asked, stream_options={"include_usage": True}
        ) as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_completion()
        assert {"chunk", "content.delta", "content.done"} <= kinds
        assert final.choices[0].message.content == whole.choices[0].message.content
        assert final.choices[0].finish_reason == whole.choices[0].finish_reason
        assert final.usage == whole.usage

    def test_also_asynchronously(self, url: str, client: Any) -> None:
        asked = {"model": "jack", "messages": CHAT, "max_tokens": 30, "temperature": 0}
        wanted = client.chat.completions.create(**asked).choices[0].message.content

        async def ask(client: Any) -> list[str]:
            whole = await client.chat.completions.create(**asked)
            streamed = ""
            async for chunk in await client.chat.completions.create(**asked, stream=True):
                streamed += chunk.choices[0].delta.content or ""
            async with client.chat.completions.stream(**asked) as stream:
                async for _ in stream:
                    pass
                final = await stream.get_final_completion()
            return [
                whole.choices[0].message.content,
                streamed,
                final.choices[0].message.content,
            ]

        assert asynchronous(url, ask) == [wanted] * 3

    def test_a_request_has_an_id(self, client: Any) -> None:
        raw = client.chat.completions.with_raw_response.create(
            model="jack", messages=CHAT, max_tokens=2, extra_headers={"X-Request-Id": "mine-1"}
        )
        assert raw.headers["x-request-id"] == "mine-1"
        assert raw.parse()._request_id == "mine-1"
        own = client.chat.completions.create(model="jack", messages=CHAT, max_tokens=2)
        assert own._request_id

    def test_raw_lines_end_with_done(self, client: Any) -> None:
        with client.chat.completions.with_streaming_response.create(
            model="jack", messages=CHAT, max_tokens=4, stream=True
        ) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in response.iter_lines() if line]
        assert all(line.startswith("data: ") for line in lines)
        assert lines[-1] == "data: [DONE]"


class Mood(BaseModel):
    """What the demo model is made to say."""

    mood: Literal["glad", "sad"]
    stars: Literal[1, 2, 3]


class TestFormats:
    def test_an_answer_follows_a_schema(self, client: Any) -> None:
        done = client.chat.completions.parse(
            model="jack", messages=CHAT, max_tokens=64, temperature=0, response_format=Mood
        )
        assert isinstance(done.choices[0].message.parsed, Mood)
        assert done.choices[0].finish_reason == "stop"

    def test_a_stream_follows_it_as_well(self, client: Any) -> None:
        with client.chat.completions.stream(
            model="jack", messages=CHAT, max_tokens=64, temperature=0, response_format=Mood
        ) as stream:
            final = stream.get_final_completion()
        assert isinstance(final.choices[0].message.parsed, Mood)

    def test_an_answer_is_an_object(self, client: Any) -> None:
        done = client.chat.completions.create(
            model="jack",
            messages=CHAT,
            max_tokens=12,
            temperature=0,
            response_format={"type": "json_object"},
        )
        # A story teller does not find the end of one.
        assert done.choices[0].message.content.lstrip().startswith("{")

    def test_a_schema_that_nothing_follows_is_refused(self, client: Any) -> None:
        with pytest.raises(openai.BadRequestError, match="nonsense") as caught:
            client.chat.completions.create(
                model="jack",
                messages=CHAT,
                response_format={
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"type": "nonsense"}},
                },
            )
        assert caught.value.param == "response_format"

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_named_function_is_called(self, client: Any, stream: bool) -> None:
        asked = {"model": "jack", "messages": CHAT, "max_tokens": 64, "temperature": 0}
        with client.chat.completions.stream(
            **asked, tools=TOOLS, tool_choice=WANTS_WEATHER
        ) as streamed:
            final = streamed.get_final_completion()
        whole = client.chat.completions.create(**asked, tools=TOOLS, tool_choice=WANTS_WEATHER)
        (choice,) = (final if stream else whole).choices
        (call,) = choice.message.tool_calls
        assert call.function.name == "get_weather"
        assert call.id.startswith("call_")
        jsonschema.validate(json.loads(call.function.arguments), WEATHER["function"]["parameters"])
        assert choice.finish_reason == "stop"
        assert not choice.message.content

    @pytest.mark.parametrize("stream", [False, True])
    def test_some_function_is_called(self, client: Any, stream: bool) -> None:
        asked = {
            "model": "jack",
            "messages": CHAT,
            "max_tokens": 90,
            "temperature": 0,
            "tools": TOOLS,
            "tool_choice": "required",
            "parallel_tool_calls": False,
        }
        if stream:
            with client.chat.completions.stream(**asked) as streamed:
                done = streamed.get_final_completion()
        else:
            done = client.chat.completions.create(**asked)
        (choice,) = done.choices
        (call,) = choice.message.tool_calls
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
        jsonschema.validate(
            json.loads(call.function.arguments), schemas[call.function.name] or {"maxProperties": 0}
        )
        assert choice.finish_reason == "tool_calls"

    def test_a_model_that_may_call_does_not_have_to(self, client: Any) -> None:
        done = client.chat.completions.create(
            model="jack", messages=CHAT, max_tokens=24, temperature=0, tools=TOOLS
        )
        assert done.choices[0].message.content
        assert done.choices[0].message.tool_calls is None


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "param"),
        [
            ({"temperature": 2.1}, "temperature"),
            ({"temperature": -0.1}, "temperature"),
            ({"top_p": 1.1}, "top_p"),
            ({"max_tokens": -1}, "max_tokens"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"max_completion_tokens": -1}, "max_completion_tokens"),
            ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
            ({"frequency_penalty": 3}, "frequency_penalty"),
            ({"frequency_penalty": -3}, "frequency_penalty"),
            ({"presence_penalty": 2.1}, "presence_penalty"),
            ({"presence_penalty": -2.1}, "presence_penalty"),
            ({"n": 2}, "n"),
            ({"logit_bias": {"5": 1}}, "logit_bias"),
            ({"top_logprobs": 3, "logprobs": True}, "top_logprobs"),
            ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
            ({"seed": "x"}, "seed"),
            ({"stream_options": {"include_usage": True}}, "stream_options"),
            ({"extra_body": {"min_tokens": -1}}, "min_tokens"),
            ({"extra_body": {"ignore_eos": 123}}, "ignore_eos"),
            ({"messages": []}, "messages"),
            ({"messages": "Hello"}, "messages"),
            ({"messages": [{"role": "boss", "content": "Hi"}]}, "messages[0].role"),
            ({"messages": [{"role": "user"}]}, "messages[0].content"),
            (
                {
                    "messages": [
                        {
                            "role": "user",
                            "content": [{"type": "image_url", "image_url": {"url": "x"}}],
                        }
                    ]
                },
                "messages[0].content[0]",
            ),
            ({"functions": [{"name": "a"}]}, "functions"),
            ({"tool_choice": "required"}, "tool_choice"),
            ({"tools": [], "tool_choice": "required"}, "tool_choice"),
            ({"tool_choice": WANTS_WEATHER}, "tool_choice"),
            ({"tools": [NOW], "tool_choice": WANTS_WEATHER}, "tool_choice"),
            ({"tools": [{"type": "custom"}]}, "tools[0].type"),
            ({"response_format": {"type": "xml"}}, "response_format"),
            ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "response_format"),
            ({"audio": {"voice": "x", "format": "wav"}}, "audio"),
        ],
        ids=str,
    )
    def test_a_wrong_chat_is_refused_by_name(
        self, client: Any, options: dict[str, Any], param: str
    ) -> None:
        with pytest.raises(openai.BadRequestError, match="Error code: 400") as caught:
            client.chat.completions.create(**{"model": "jack", "messages": CHAT, **options})
        assert caught.value.param == param
        assert caught.value.type == "invalid_request_error"
        assert caught.value.body["message"]
        assert caught.value.request_id

    @pytest.mark.parametrize(
        ("options", "param"),
        [
            ({"prompt": ""}, "prompt"),
            ({"prompt": []}, "prompt"),
            ({"prompt": [[]]}, "prompt"),
            ({"prompt": [10**6]}, "prompt"),
            ({"prompt": {"a": 1}}, "prompt"),
            ({"best_of": 2}, "best_of"),
            ({"n": 2}, "n"),
            ({"n": 2, "best_of": 1}, "n"),
            ({"suffix": "x"}, "suffix"),
            ({"logprobs": 5}, "logprobs"),
            ({"max_tokens": -1}, "max_tokens"),
            ({"temperature": 2.1}, "temperature"),
        ],
        ids=str,
    )
    def test_a_wrong_completion_is_refused_by_name(
        self, client: Any, options: dict[str, Any], param: str
    ) -> None:
        with pytest.raises(openai.BadRequestError, match="Error code: 400") as caught:
            client.completions.create(**{"model": "jack", "prompt": PROMPT, **options})
        assert str(caught.value.param).startswith(param)

    def test_fields_that_are_missing_are_named(self, client: Any) -> None:
        for path, body, param in (
            ("/completions", {"model": "jack"}, "prompt"),
            ("/chat/completions", {"model": "jack"}, "messages"),
            ("/completions", {}, "prompt"),
        ):
            with pytest.raises(openai.BadRequestError, match="is missing") as caught:
                client.post(path, body=body, cast_to=object)
            assert caught.value.param == param

    @pytest.mark.parametrize("kind", ["chat", "completion"])
    def test_a_text_that_is_too_long_is_told_so(self, client: Any, kind: str) -> None:
        long = "story " * CONTEXT
        asked: dict[str, Any] = {"prompt": long}
        if kind == "chat":
            asked = {"messages": [{"role": "user", "content": long}]}
        create = (client.chat if kind == "chat" else client).completions.create
        with pytest.raises(openai.BadRequestError, match="oken") as caught:
            create(model="jack", **asked)
        assert caught.value.code == "context_length_exceeded"

    def test_a_body_that_is_too_large_is_not_read(self, client: Any) -> None:
        with pytest.raises(openai.APIStatusError, match="at most 1,048,576 bytes") as caught:
            client.completions.create(model="jack", prompt="x" * (1 << 20))
        assert caught.value.status_code == 413

    @pytest.mark.parametrize("key", ["", "sk-wrong", KEY + "x"])
    def test_a_wrong_key_opens_nothing(self, url: str, key: str) -> None:
        with openai.OpenAI(api_key=key or "none", base_url=url, max_retries=0) as stranger:
            headers = {} if key else {"Authorization": "Basic x"}
            for ask in (
                lambda: stranger.models.list(extra_headers=headers),
                lambda: stranger.completions.create(
                    model="jack", prompt=PROMPT, extra_headers=headers
                ),
            ):
                with pytest.raises(openai.AuthenticationError, match="asks for a key") as caught:
                    ask()
                assert caught.value.code == "invalid_api_key"

    def test_another_model_is_not_found(self, client: Any) -> None:
        for ask in (
            lambda: client.chat.completions.create(model="jill", messages=CHAT),
            lambda: client.completions.create(model="jill", prompt=PROMPT, stream=True),
        ):
            with pytest.raises(openai.NotFoundError, match="'jill' is not served") as caught:
                ask()
            assert (caught.value.param, caught.value.code) == ("model", "model_not_found")

    def test_what_is_not_offered_is_not_found(self, client: Any) -> None:
        with pytest.raises(openai.NotFoundError, match="There is no /v1/embeddings"):
            client.embeddings.create(model="jack", input="x")
        with pytest.raises(openai.NotFoundError, match="There is no /v1/responses"):
            client.responses.create(model="jack", input="x")


@pytest.fixture(scope="module", params=FORMS)
def tools(request: pytest.FixtureRequest) -> Iterator[tuple[str, Scripted, Any]]:
    """A form of calls, a gateway that plays a model of it, and its client."""
    with (
        scripted(request.param) as gateway,
        openai.OpenAI(api_key="none", base_url=gateway.url, max_retries=0) as client,
    ):
        yield request.param, gateway, client


WRITTEN = {
    "llama3": '{{"name": "get_weather", "parameters": {0}}}; {{"name": "now", "parameters": {{}}}}',
    "hermes": '<tool_call>\n{{"name": "get_weather", "arguments": {0}}}\n</tool_call>\n'
    '<tool_call>\n{{"name": "now", "arguments": {{}}}}\n</tool_call>',
    "mistral": '[TOOL_CALLS][{{"name": "get_weather", "arguments": {0}}}, '
    '{{"name": "now", "arguments": {{}}}}]',
}


class TestTools:
    asked: ClassVar[dict[str, Any]] = {"model": "scripted", "messages": CHAT, "tools": TOOLS}

    def test_calls_are_found_in_an_answer(self, tools: tuple[str, Scripted, Any]) -> None:
        form, gateway, client = tools
        gateway.script.text = "Let me see. " + WRITTEN[form].format(json.dumps(ARGUMENTS))
        whole = client.chat.completions.create(**self.asked)
        with client.chat.completions.stream(**self.asked) as stream:
            events = list(stream)
            final = stream.get_final_completion()
        for done in (whole, final):
            (choice,) = done.choices
            first, second = choice.message.tool_calls
            assert (first.type, first.function.name) == ("function", "get_weather")
            assert json.loads(first.function.arguments) == ARGUMENTS
            assert (second.function.name, second.function.arguments) == ("now", "{}")
            assert first.id.startswith("call_")
            assert first.id != second.id
            assert choice.message.content == "Let me see."
            assert choice.finish_reason == "tool_calls"
        done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
        assert [(event.index, event.name) for event in done] == [(0, "get_weather"), (1, "now")]
        assert "get_weather" in gateway.script.prompt()  # the model is told of its tools

    def test_a_name_comes_once_and_whole(self, tools: tuple[str, Scripted, Any]) -> None:
        form, gateway, client = tools
        gateway.script.text = WRITTEN[form].format(json.dumps(ARGUMENTS))
        deltas = [
            call
            for chunk in client.chat.completions.create(**self.asked, stream=True)
            for call in chunk.choices[0].delta.tool_calls or ()
        ]
        assert [call.function.name for call in deltas if call.function.name] == [
            "get_weather",
            "now",
        ]
        assert [call.index for call in deltas if call.id] == [0, 1]

    def test_only_one_where_only_one_is_wanted(self, tools: tuple[str, Scripted, Any]) -> None:
        form, gateway, client = tools
        gateway.script.text = WRITTEN[form].format(json.dumps(ARGUMENTS))
        done = client.chat.completions.create(**self.asked, parallel_tool_calls=False)
        assert len(done.choices[0].message.tool_calls) == 1

    def test_the_conversation_goes_on_with_the_answers(
        self, tools: tuple[str, Scripted, Any]
    ) -> None:
        form, gateway, client = tools
        gateway.script.text = WRITTEN[form].format(json.dumps(ARGUMENTS)).partition("; ")[0]
        one = {**self.asked, "parallel_tool_calls": False}
        message = client.chat.completions.create(**one).choices[0].message
        (call,) = message.tool_calls
        gateway.script.text = "It is 20 degrees."
        answer = {"role": "tool", "tool_call_id": call.id, "content": "20 C"}
        asked = {**one, "messages": [*CHAT, message, answer]}
        done = client.chat.completions.create(**asked)
        assert done.choices[0].message.content == "It is 20 degrees."
        assert done.choices[0].finish_reason == "stop"
        prompt = gateway.script.prompt()
        assert '"days": 2' in prompt
        assert "20 C" in prompt

    def test_what_is_no_call_is_a_text(self, tools: tuple[str, Scripted, Any]) -> None:
        form, gateway, client = tools
        gateway.script.text = WRITTEN[form].format('{"unit": ')[:-9]
        done = client.chat.completions.create(**self.asked)
        streamed, reasons, _ = text_of(client.chat.completions.create(**self.asked, stream=True))
        assert done.choices[0].message.content == streamed == gateway.script.text
        assert done.choices[0].message.tool_calls is None
        assert reasons[-1] == done.choices[0].finish_reason == "stop"

    def test_none_is_none(self, tools: tuple[str, Scripted, Any]) -> None:
        form, gateway, client = tools
        gateway.script.text = WRITTEN[form].format(json.dumps(ARGUMENTS))
        done = client.chat.completions.create(**self.asked, tool_choice="none")
        assert done.choices[0].message.content == gateway.script.text
        assert "get_weather" not in gateway.script.prompt()

    def test_pydantic_reads_the_arguments(self, tools: tuple[str, Scripted, Any]) -> None:
        class GetWeather(BaseModel):
            """Says the weather."""

            unit: str
            days: int

        form, gateway, client = tools
        gateway.script.text = WRITTEN[form].format(json.dumps(ARGUMENTS))
        tool = openai.pydantic_function_tool(GetWeather, name="get_weather")
        done = client.chat.completions.parse(
            model="scripted", messages=CHAT, tools=[tool], parallel_tool_calls=False
        )
        (call,) = done.choices[0].message.tool_calls
        assert call.function.parsed_arguments == GetWeather(unit="C", days=2)

    def test_without_guides_nothing_is_forced(self, tools: tuple[str, Scripted, Any]) -> None:
        _, _, client = tools
        for choice in ("required", WANTS_WEATHER):
            with pytest.raises(openai.BadRequestError, match="guided decoding") as caught:
                client.chat.completions.create(**self.asked, tool_choice=choice)
            assert caught.value.param == "tool_choice"


@pytest.fixture(scope="module")
def holding() -> Iterator[Scripted]:
    with scripted("hermes", most_requests=1) as holding:
        yield holding


@pytest.fixture
def asking(holding: Scripted) -> Iterator[Any]:
    holding.script.holds, holding.script.error = False, None
    holding.script.text = "A story."
    with openai.OpenAI(api_key="none", base_url=holding.url, max_retries=0) as asking:
        yield asking
    holding.script.holds = False


class TestTrouble:
    def test_one_request_too_many_may_come_again(self, holding: Scripted, asking: Any) -> None:
        holding.script.holds = True
        with asking.chat.completions.create(model="scripted", messages=CHAT, stream=True) as stream:
            next(iter(stream))
            with pytest.raises(openai.RateLimitError, match="Ask again later") as caught:
                asking.chat.completions.create(model="scripted", messages=CHAT)
        assert int(caught.value.response.headers["retry-after"]) >= 1

    def test_a_client_that_goes_ends_its_request(self, holding: Scripted, asking: Any) -> None:
        holding.script.holds = True
        before = holding.script.ended
        with asking.chat.completions.create(model="scripted", messages=CHAT, stream=True) as stream:
            next(iter(stream))
        end = time.monotonic() + 60
        while holding.script.ended == before:
            assert time.monotonic() < end, "the engine still generates"
            time.sleep(0.01)

    def test_a_stream_that_breaks_says_so(self, holding: Scripted, asking: Any) -> None:
        holding.script.error = ServerFailed("the engine has failed")
        chunks = asking.chat.completions.create(model="scripted", messages=CHAT, stream=True)
        texts: list[str] = []
        with pytest.raises(openai.APIError, match="The engine has failed") as caught:
            texts.extend(chunk.choices[0].delta.content or "" for chunk in chunks)
        text = "".join(texts)
        assert text == "A story."[: len(text)]
        assert text
        assert not isinstance(caught.value, openai.APIStatusError)

    def test_an_answer_that_breaks_has_its_status(self, holding: Scripted, asking: Any) -> None:
        holding.script.error = ServerFailed("the engine has failed")
        with pytest.raises(openai.InternalServerError, match="The engine has failed"):
            asking.chat.completions.create(model="scripted", messages=CHAT)

    def test_a_gateway_that_stops_takes_no_more(self, holding: Scripted, asking: Any) -> None:
        holding.desk.draining = True
        try:
            with pytest.raises(openai.InternalServerError, match="is stopping") as caught:
                asking.chat.completions.create(model="scripted", messages=CHAT)
        finally:
            holding.desk.draining = False
        assert caught.value.status_code == 503
        assert caught.value.code == "draining"

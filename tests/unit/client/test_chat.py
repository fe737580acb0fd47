"""Chats: what of the messages reaches the server, on servers of each kind.

What a rendered conversation's tokens are is said by the tokenizers library; the templates' texts
are written down here.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from tokenizers import Tokenizer, processors
from tritonclient.grpc import service_pb2 as pb

from pipeline.triton.contract import BLS, ENSEMBLE, PREPROCESSING
from pipeline.triton.tensors import BOOL, one
from tests.integration.tokenizer_layouts import BOS, CHAT_TEMPLATE, byte_level, metaspace
from tests.unit.client.fake_triton import Asked, FakeTriton, add_output
from tests.unit.client.test_client import endless, story
from trtllm_client import (
    AsyncClient,
    CallRestricted,
    ChatTemplate,
    Client,
    Completion,
    ConnectionFailed,
    InvalidRequest,
)

SETTING = "add_special_tokens"
PLAIN_TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)
HELLO = [{"role": "user", "content": "Hello there"}]


def suited(server: FakeTriton, *, setting: bool) -> FakeTriton:
    """A server whose text models have the input, or have it not."""
    for name in (BLS, ENSEMBLE):
        model = server.models[name]
        inputs = tuple(tensor for tensor in model.inputs if tensor.name != SETTING)
        server.models[name] = replace(
            model, inputs=(*inputs, one(SETTING, BOOL)) if setting else inputs
        )
    return server


@pytest.fixture
def server() -> Iterator[FakeTriton]:
    """One that says its template, with the input."""
    with FakeTriton(story) as fake:
        fake.parameters_of[PREPROCESSING] = {
            "chat_template": CHAT_TEMPLATE,
            "chat_template_tokens": json.dumps({"bos_token": BOS}),
        }
        yield suited(fake, setting=True)


def asynchronously(url: str, use: Any, **settings: Any) -> Any:
    async def main() -> Any:
        async with AsyncClient(url, **settings) as client:
            return await use(client)

    return asyncio.run(main())


def chats(kind: str, url: str, *arguments: Any, model: str = BLS, **options: Any) -> Completion:
    """The answer by each of the four methods."""
    if kind.startswith("async"):

        async def use(client: AsyncClient) -> Completion:
            if kind == "async chat":
                return await client.chat(*arguments, **options)
            async with client.stream_chat(*arguments, **options) as stream:
                return await stream.completion()

        done: Completion = asynchronously(url, use, model=model)
        return done
    with Client(url, model=model) as client:
        if kind == "chat":
            return client.chat(*arguments, **options)
        with client.stream_chat(*arguments, **options) as stream:
            return stream.completion()


EVERY_METHOD = pytest.mark.parametrize(
    "kind", ["chat", "stream_chat", "async chat", "async stream_chat"]
)


@EVERY_METHOD
def test_messages_are_sent_as_the_servers_template_writes_them(
    server: FakeTriton, kind: str
) -> None:
    answer = chats(kind, server.url, HELLO, max_tokens=4, top_k=3, request_id="mine")
    (asked,) = server.asked
    assert asked.prompt == f"{BOS}<|user|>Hello there<|assistant|>"
    assert (asked.one(SETTING), asked.datatypes[SETTING]) == (False, "BOOL")
    assert (asked.one("max_tokens"), asked.one("top_k"), asked.id) == (4, 3, "mine")
    assert asked.one("stream") == kind.endswith("stream_chat")
    assert (answer.text, answer.finish_reason) == ("Once upon a time", "length")
    assert answer.request_id == "mine"


@EVERY_METHOD
def test_tools_and_variables_reach_a_template_of_ones_own(server: FakeTriton, kind: str) -> None:
    chats(
        kind,
        server.url,
        HELLO,
        tools=[{"name": "é"}],
        template=ChatTemplate(PLAIN_TEMPLATE),
        template_variables={"enable_thinking": False},
    )
    (asked,) = server.asked
    expected = '<tools>[{"name": "é"}]<|user|>Hello there<|assistant|><think></think>'
    assert asked.prompt == expected
    assert server.configs_told.count(PREPROCESSING) == 0


def test_the_server_is_asked_once(server: FakeTriton) -> None:
    with Client(server.url) as client:
        for _ in range(2):
            client.chat(HELLO)
        threads = [threading.Thread(target=client.chat, args=(HELLO,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert client.chat_template().source == CHAT_TEMPLATE
    assert len({asked.prompt for asked in server.asked}) == 1
    assert len(server.asked) == 6
    assert server.configs_told.count(PREPROCESSING) == 1


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_another_server_at_the_address_is_heard(
    server: FakeTriton, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server was started again, with another model, while its clients lived on."""
    monkeypatch.setattr("trtllm_client._chat.KEPT_S", -1.0)

    async def use(client: AsyncClient) -> None:
        await client.chat(HELLO)
        server.parameters_of[PREPROCESSING] = {"chat_template": PLAIN_TEMPLATE}
        await client.chat(HELLO)

    if kind == "async":
        asynchronously(server.url, use)
    else:
        with Client(server.url) as client:
            client.chat(HELLO)
            server.parameters_of[PREPROCESSING] = {"chat_template": PLAIN_TEMPLATE}
            client.chat(HELLO)
    assert [asked.prompt for asked in server.asked] == [
        f"{BOS}<|user|>Hello there<|assistant|>",
        "<|user|>Hello there<|assistant|>",
    ]


def test_both_clients_say_the_template(server: FakeTriton) -> None:
    async def use(client: AsyncClient) -> ChatTemplate:
        return await client.chat_template()

    with Client(server.url) as client:
        found = [client.chat_template(), asynchronously(server.url, use)]
    for template in found:
        assert template.source == CHAT_TEMPLATE
        assert template.special_tokens == {"bos_token": BOS}


def test_an_ensemble_says_which_model_takes_its_text(server: FakeTriton) -> None:
    ensemble = server.models[ENSEMBLE]
    first, *others = ensemble.steps
    assert first.model == PREPROCESSING
    steps = (*others, replace(first, model="preprocessing_qwen"))
    server.models[ENSEMBLE] = replace(ensemble, steps=steps)
    server.models["preprocessing_qwen"] = server.models[PREPROCESSING]
    server.parameters_of["preprocessing_qwen"] = {"chat_template": PLAIN_TEMPLATE}
    server.models["preprocessing_qwen"] = replace(
        server.models[PREPROCESSING], name="preprocessing_qwen"
    )
    with Client(server.url, model=ENSEMBLE) as client:
        client.chat(HELLO)
        client.chat(HELLO, model=BLS)
    assert [asked.prompt for asked in server.asked] == [
        "<|user|>Hello there<|assistant|>",
        f"{BOS}<|user|>Hello there<|assistant|>",
    ]


WITHOUT = {
    "no template": "config.pbtxt of preprocessing has no parameter chat_template",
    "no model": "unknown model",
    "restricted": "keeps this call to those who send a header",
}


@EVERY_METHOD
@pytest.mark.parametrize("why", WITHOUT)
def test_a_server_that_does_not_say_its_template(server: FakeTriton, kind: str, why: str) -> None:
    if why == "no template":
        del server.parameters_of[PREPROCESSING]
    elif why == "no model":
        del server.models[PREPROCESSING]
    else:
        server.restricted.add("ModelConfig")
    with pytest.raises(InvalidRequest, match="does not say the chat template") as caught:
        chats(kind, server.url, HELLO)
    assert WITHOUT[why] in str(caught.value)
    assert "template=ChatTemplate.from_directory(" in str(caught.value)
    given = chats(kind, server.url, HELLO, template=ChatTemplate(PLAIN_TEMPLATE))
    assert given.text == "Once upon a time"
    assert [asked.prompt for asked in server.asked] == ["<|user|>Hello there<|assistant|>"]


def test_a_restricted_call_is_no_server_that_is_away(server: FakeTriton) -> None:
    server.restricted.add("ModelConfig")
    with (
        Client(server.url) as client,
        pytest.raises(CallRestricted, match="expects triton-grpc-protocol-admin-key"),
    ):
        client.model_metadata()


@pytest.mark.parametrize("tokens", ["{", "[" * 100_000, "[1]", '"abc"', '{"bos_token": 1}'])
def test_damaged_special_tokens_are_named(server: FakeTriton, tokens: str) -> None:
    server.parameters_of[PREPROCESSING]["chat_template_tokens"] = tokens
    with (
        Client(server.url) as client,
        pytest.raises(InvalidRequest, match="chat_template_tokens is no JSON object of texts"),
    ):
        client.chat(HELLO)


@EVERY_METHOD
@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        (["Hello"], {}, "messages must be a list of messages, not str"),
        ([HELLO], {SETTING: True}, "add_special_tokens does not go with a chat"),
        ([HELLO], {"template_variables": {"messages": []}}, "may not have messages or self"),
        ([HELLO], {"top_p": 2.0}, "top_p must be between 0 and 1"),
    ],
)
def test_what_is_wrong_is_refused_before_a_text_is_sent(
    server: FakeTriton, kind: str, arguments: list[Any], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidRequest, match=said):
        chats(kind, server.url, *arguments, **options)
    assert server.asked == []


@EVERY_METHOD
def test_without_jinja2_the_error_says_what_to_install(
    server: FakeTriton, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "trtllm_client._template_sandbox", raising=False)
    with pytest.raises(
        ImportError, match=r"pip install 'jinja2>=3.1', which is the extra \[chat\]"
    ):
        chats(kind, server.url, HELLO)


@EVERY_METHOD
def test_a_server_that_is_away_is_said_to_be(kind: str) -> None:
    with pytest.raises(ConnectionFailed, match="no Triton server answers here"):
        chats(kind, "127.0.0.1:1", HELLO)


def test_leaving_early_ends_the_chat_at_the_server() -> None:
    with FakeTriton(endless) as server, Client(suited(server, setting=True).url) as client:
        with client.stream_chat(HELLO, template=ChatTemplate(PLAIN_TEMPLATE)) as stream:
            assert next(iter(stream)).text == "more "
        assert server.cancelled.wait(30)


def test_many_chats_of_one_asynchronous_client(server: FakeTriton) -> None:
    async def use(client: AsyncClient) -> list[str]:
        answers = await asyncio.gather(*(client.chat(HELLO) for _ in range(8)))
        return [answer.text for answer in answers]

    assert asynchronously(server.url, use) == ["Once upon a time"] * 8


# --- servers whose text models have no such input: NVIDIA's own, and older repositories of ours


def bos_in_front(tokenizer: Tokenizer, bos: str) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


def both_sides(tokenizer: Tokenizer, bos: str) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {bos}", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


class Preprocessing:
    """``preprocessing`` as upstream has it: one constant says whether tokens are added."""

    def __init__(self, tokenizer: Tokenizer, *, adds: bool) -> None:
        self.tokenizer, self.adds = tokenizer, adds

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=self.adds).ids)

    def __call__(self, asked: Asked) -> Any:
        assert asked.model == PREPROCESSING
        assert asked.shapes == {"QUERY": (1, 1), "REQUEST_OUTPUT_LEN": (1, 1)}
        assert asked.datatypes == {"QUERY": "BYTES", "REQUEST_OUTPUT_LEN": "INT32"}
        ids = self.ids(asked.one("QUERY").decode())
        response = pb.ModelInferResponse()
        add_output(response, "INPUT_ID", "INT32", [1, len(ids)], ids)
        return response


SENTENCEPIECE_TEMPLATE = "{{ bos_token }}{{ messages[0].content }}"


@EVERY_METHOD
@pytest.mark.parametrize("model", [BLS, ENSEMBLE])
@pytest.mark.parametrize("setting", ["true", "${add_special_tokens}", "1", "false", "No", None])
def test_nvidias_own_repository_gets_the_tokens_of_the_template(
    kind: str, model: str, setting: str | None
) -> None:
    adds = setting not in ("false", "No")
    preprocessing = Preprocessing(bos_in_front(byte_level(), BOS), adds=adds)
    template = ChatTemplate(CHAT_TEMPLATE, {"bos_token": BOS})
    with FakeTriton(story, infer=preprocessing) as server:
        suited(server, setting=False)
        if setting is not None:
            server.parameters_of[PREPROCESSING] = {SETTING: setting}
        chats(kind, server.url, HELLO, template=template, model=model)
    (asked,) = server.asked
    assert SETTING not in asked.values
    wanted = byte_level().encode(f"{BOS}<|user|>Hello there<|assistant|>", add_special_tokens=False)
    assert preprocessing.ids(asked.prompt) == wanted.ids


@pytest.mark.parametrize(
    "tokenizer",
    [byte_level(), bos_in_front(metaspace(legacy=False), "<s>")],
    ids=["adds nothing", "marks the first word only"],
)
def test_a_text_that_needs_no_change_or_bears_it(tokenizer: Tokenizer) -> None:
    """Qwen's tokenizers add nothing, so bos of the template stays."""
    preprocessing = Preprocessing(tokenizer, adds=True)
    bos = BOS if tokenizer.token_to_id(BOS) is not None else "<s>"
    template = ChatTemplate("{{ bos_token }}{{ messages[0].content }}", {"bos_token": bos})
    with FakeTriton(story, infer=preprocessing) as server, Client(server.url) as client:
        suited(server, setting=False)
        client.chat([{"role": "user", "content": " hello"}], template=template)
    wanted = tokenizer.encode(f"{bos} hello", add_special_tokens=False).ids
    assert preprocessing.ids(server.asked[0].prompt) == wanted


@EVERY_METHOD
@pytest.mark.parametrize(
    ("tokenizer", "template", "bos"),
    [
        (bos_in_front(byte_level(), BOS), PLAIN_TEMPLATE, BOS),
        (bos_in_front(byte_level(), BOS), PLAIN_TEMPLATE, ""),
        (both_sides(byte_level(), BOS), CHAT_TEMPLATE, BOS),
        (bos_in_front(metaspace(legacy=False), "<s>"), SENTENCEPIECE_TEMPLATE, "<s>"),
    ],
    ids=["bos that no template wants", "no bos known", "eos too", "a space before the first word"],
)
def test_a_server_that_would_give_other_tokens_is_refused(
    kind: str, tokenizer: Tokenizer, template: str, bos: str
) -> None:
    preprocessing = Preprocessing(tokenizer, adds=True)
    tokens = {"bos_token": bos} if bos else {}
    with FakeTriton(story, infer=preprocessing) as server:
        suited(server, setting=False)
        with pytest.raises(InvalidRequest, match="would not give the model the tokens") as caught:
            chats(kind, server.url, HELLO, template=ChatTemplate(template, tokens))
        assert server.asked == []
    assert "Set the parameter add_special_tokens in config.pbtxt" in str(caught.value)


def test_a_server_that_does_not_tell_its_tokens_is_refused() -> None:
    with FakeTriton(story) as server, Client(suited(server, setting=False).url) as client:
        with pytest.raises(InvalidRequest, match="does not tell how it encodes a text"):
            client.chat(HELLO, template=ChatTemplate(PLAIN_TEMPLATE))
        assert server.asked == []


@EVERY_METHOD
@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"template": "{{ messages }}"}, "template must be a ChatTemplate, not str"),
        (
            {"template_variables": ["enable_thinking"]},
            "template_variables must be a mapping, not list",
        ),
    ],
    ids=["template", "variables"],
)
def test_a_template_and_variables_that_are_none(
    server: FakeTriton, kind: str, given: dict[str, Any], what: str
) -> None:
    with pytest.raises(InvalidRequest, match=what):
        chats(kind, server.url, HELLO, **given)
    assert server.asked == []

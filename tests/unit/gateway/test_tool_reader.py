"""Calls that models write: read whole, in pieces, and where they only look like calls."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from itertools import count
from typing import Any

import pytest

from pipeline.gateway.tools.choice import AnswerPlan
from pipeline.gateway.tools.forms import FORMS
from pipeline.gateway.tools.parts import CallArguments, CallStarted, Content, delta_of, message_of
from pipeline.gateway.tools.reader import CallReader, Reader

TOOLS = tuple(
    {"type": "function", "function": {"name": name}}
    for name in ("get_weather", "get_time", "say", "now")
)
Calls = list[tuple[str, Any]]
# Form, text, content, calls.
WRITTEN: list[tuple[str, str, str, Calls]] = [
    # Llama 3.1 and 3.2: the whole answer is an object, as Meta's prompt format has it.
    (
        "llama3",
        '{"name": "get_weather", "parameters": {"city": "Zürich", "days": 3}}',
        "",
        [("get_weather", {"city": "Zürich", "days": 3})],
    ),
    (
        "llama3",
        '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Rome"}}',
        "",
        [("get_weather", {"city": "Rome"})],
    ),
    (
        "llama3",
        '{"type": "function", "name": "say", "parameters": {}}',
        "",
        [("say", {})],
    ),
    ("llama3", '{"name": "say", "arguments": {"a": []}}', "", [("say", {"a": []})]),
    (
        "llama3",
        '{"parameters": {"name": "Ann"}, "name": "say"}',
        "",
        [("say", {"name": "Ann"})],
    ),
    *(
        (
            "llama3",
            separator.join(
                ('{"name": "say", "parameters": {"a": 1}}', '{"name": "now", "parameters": {}}')
            ),
            "",
            [("say", {"a": 1}), ("now", {})],
        )
        for separator in (";", "; ", " ; ", ";\n", "\n", "")
    ),
    (
        "llama3",
        'Let me look: {"name": "say", "parameters": {"a": 1}} I asked {say} about it.',
        "Let me look:I asked {say} about it.",
        [("say", {"a": 1})],
    ),
    (
        "llama3",
        '{"name": "say", "parameters": {"text": "He said \\"{hi}\\" [x] </tool_call>; {"}}',
        "",
        [("say", {"text": 'He said "{hi}" [x] </tool_call>; {'})],
    ),
    ("llama3", "No tool can do that.", "No tool can do that.", []),
    # Hermes and Qwen.
    (
        "hermes",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>',
        "",
        [("get_weather", {"city": "Rome"})],
    ),
    (
        "hermes",
        (
            'Sure.\n<tool_call>\n{"name": "say", "arguments": {"a": 1}}\n</tool_call>\n'
            '<tool_call>\n{"arguments": {}, "name": "now"}\n</tool_call>'
        ),
        "Sure.",
        [("say", {"a": 1}), ("now", {})],
    ),
    ("hermes", '<tool_call>{"name": "now", "arguments": {}}', "", [("now", {})]),
    ("hermes", '<tool_call>{"name": "now"}</tool_call>', "", [("now", {})]),
    ("hermes", '<tool_call>{"name": "now", "arguments": null}</tool_call>', "", [("now", {})]),
    (
        "hermes",
        '<tool_call>{"name": "say", "arguments": "{\\"a\\": 1}"}</tool_call>',
        "",
        [("say", {"a": 1})],
    ),
    (
        "hermes",
        '<think>\nA <tool_call> it is.\n</think>\n\n<tool_call>{"name": "now"}</tool_call> Done.',
        "<think>\nA <tool_call> it is.\n</think>Done.",
        [("now", {})],
    ),
    (
        "hermes",
        '<tool_call><tool_call>{"name": "now"}</tool_call>',
        "<tool_call>",
        [("now", {})],
    ),
    # Mistral, tokenizers of version 3.
    (
        "mistral",
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Rome"}}]',
        "",
        [("get_weather", {"city": "Rome"})],
    ),
    (
        "mistral",
        (
            '[TOOL_CALLS][{"arguments": {"name": "Ann"}, "name": "say"},\n {"name": "now", '
            '"arguments": {}, "id": "a1b2c3d4e"} ] '
        ),
        "",
        [("say", {"name": "Ann"}), ("now", {})],
    ),
    (
        "mistral",
        'Hello[TOOL_CALLS] [{"name": "now", "arguments": {}}]\nmore',
        "Hellomore",
        [("now", {})],
    ),
    # Those of version 11 and later.
    ("mistral", '[TOOL_CALLS]say[ARGS]{"a": 3.50}', "", [("say", {"a": 3.5})]),
    (
        "mistral",
        '[TOOL_CALLS]say[CALL_ID]a1b2c3d4e[ARGS]{"a": 1}[TOOL_CALLS]now[ARGS]{}',
        "",
        [("say", {"a": 1}), ("now", {})],
    ),
    (
        "mistral",
        'hi{hi[TOOL_CALLS]say{"code": "f(\'{}\')"}',
        "hi{hi",
        [("say", {"code": "f('{}')"})],
    ),
]
# What stays as it is.
PLAIN: list[tuple[str, str]] = [
    ("llama3", '{"name": "say", "parameters": {invalid json}'),
    ("llama3", '{"name": "say", "parameters": {"a": 1}'),
    ("llama3", '{"name": "say"}'),
    ("llama3", '{"parameters": {}}'),
    ("llama3", '{"name": "unknown", "parameters": {}}'),
    ("llama3", '{"name": "say", "parameters": "hello"}'),
    ("llama3", '{"name": 5, "parameters": {}}'),
    ("llama3", '{"title": "x", "inner": {"name": "say", "parameters": {}}} and more'),
    ("llama3", '{"name": "say", "why": {"name": "say", "parameters": {}}, oops {} }'),
    ("llama3", '<|python_tag|>say.call(query="x")'),
    ("llama3", "if (a < b) { return; } <|python <| {"),
    ("llama3", "{" * 99 + "}" * 99),
    ("llama3", '{"name": "say", "parameters": ' + '{"a": ' * 80 + "1" + "}" * 81),
    ("hermes", '<tool_call>\n{"name": "say", "arguments": {"a": true}'),
    ("hermes", '<tool_call>{"name": "say", "arguments": {}} what?</tool_call>'),
    ("hermes", '<tool_call>{"name": "", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "a b", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "say", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": "say", "arguments": "hello"}</tool_call>'),
    ("hermes", '<tool_call>{"name": "say", "arguments": "{\\"a\\": \\"\\ud800\\"}"}</tool_call>'),
    ("hermes", '<tool_call>{"name": "say", "arguments": "{} }"}</tool_call>'),
    ("hermes", '<tool_call>{"arguments": {}}</tool_call>'),
    ("hermes", "<tool_call></tool_call>"),
    ("hermes", "<tool_cal"),
    ("hermes", "a << b, <tool>, </tool_call> and <<tool_call"),
    ("mistral", "[TOOL_CALLS] not json at all"),
    ("mistral", "[TOOL_CALLS]"),
    ("mistral", "[TOOL_CALLS] []"),
    ("mistral", "[TOOL_CALLS]say"),
    ("mistral", "[TOOL_CALLS]say[ARGS]"),
    ("mistral", "[TOOL_CALLS]say[ARGS]{"),
    ("mistral", "[TOOL_CALLS]say[CALL_ID]abc{}"),
    ("mistral", "[TOOL_CALLS]" + "x" * 65 + "{}"),
    ("mistral", "a[0] = [TOOL"),
    *((form, text) for form in FORMS for text in ("", "  ", " \n a \n ", "😀", "plain\n")),
]


def reader_of(form: str, **options: Any) -> Reader:
    return AnswerPlan("auto", TOOLS, form=FORMS[form], **options).reader()


def read(reader: Reader, pieces: Iterable[str]) -> tuple[str, list[tuple[str, str]]]:
    """The content and the calls of an answer, after what holds for every answer."""
    parts = [part for piece in pieces for part in reader.feed(piece)]
    parts += reader.finish()
    texts: list[str] = []
    calls: list[list[str]] = []
    ids = set()
    for part in parts:
        if isinstance(part, Content):
            assert part.text
            texts.append(part.text)
        elif isinstance(part, CallStarted):
            assert part.index == len(calls)
            assert part.id.startswith("call_")
            ids.add(part.id)
            calls.append([part.name, ""])
        else:
            assert part.index == len(calls) - 1
            calls[-1][1] += part.text
    assert len(ids) == len(calls) == reader.calls
    return "".join(texts), [(name, arguments) for name, arguments in calls]


@pytest.mark.parametrize(("form", "text", "content", "calls"), WRITTEN)
def test_calls_are_read(form: str, text: str, content: str, calls: Calls) -> None:
    found, called = read(reader_of(form), [text])
    assert found == content
    assert [(name, json.loads(arguments)) for name, arguments in called] == calls


@pytest.mark.parametrize(("form", "text"), PLAIN)
def test_what_is_no_call_stays_content(form: str, text: str) -> None:
    assert read(reader_of(form), [text]) == (text, [])


@pytest.mark.parametrize(("form", "text"), [(form, text) for form, text, *_ in WRITTEN] + PLAIN)
def test_every_way_to_cut_a_text_reads_the_same(form: str, text: str) -> None:
    whole = read(reader_of(form), [text])
    assert read(reader_of(form), text) == whole
    for cut in range(1, len(text), 1 + len(text) // 150):
        assert read(reader_of(form), [text[:cut], text[cut:]]) == whole, cut


@pytest.mark.parametrize("form", FORMS)
def test_texts_of_all_kinds_read_the_same_in_pieces(form: str) -> None:
    """Calls, what looks like them, and damage, one behind the other."""
    dice = random.Random(form)
    stock = [text for of, text, *_ in WRITTEN if of == form]
    stock += [text for of, text in PLAIN if of == form]
    stock += [*FORMS[form].markers, "; ", "{", '{"name": "', '"}', "[", "]", "\n", " and "]
    called = 0
    for _ in range(300):
        text = "".join(dice.choice(stock) for _ in range(dice.randrange(1, 6)))
        if dice.random() < 0.5 and text:
            place = dice.randrange(len(text))
            text = text[:place] + dice.choice('{}[]<>",;: \\x') + text[place + 1 :]
        whole = read(reader_of(form), [text])
        called += len(whole[1])
        for _, arguments in whole[1]:
            assert isinstance(json.loads(arguments), dict)
        cuts = sorted(dice.randrange(len(text) + 1) for _ in range(dice.randrange(1, 12)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert read(reader_of(form), pieces) == whole, pieces
    assert called > 100  # it is about calls


def test_content_is_given_out_as_soon_as_it_is_decided() -> None:
    reader = reader_of("hermes")
    assert reader.feed("The price is < 5") == [Content("The price is < 5")]
    assert reader.feed(" and <tool_") == [Content(" and")]
    assert reader.feed("box>.") == [Content(" <tool_box>.")]
    assert reader.feed("<tool_call>\n{") == []
    assert reader.feed("oops") == [Content("<tool_call>\n{oops")]

    reader = reader_of("llama3")
    assert reader.feed('x = {"key": ') == [Content('x = {"key":')]
    assert reader.feed('{"name": "say"') == [Content(' {"name": "say"')]
    assert reader.feed('{"name": "nobody", ') == [Content('{"name": "nobody",')]


def test_a_call_comes_as_soon_as_it_is_complete() -> None:
    reader = reader_of("mistral")
    assert reader.feed('[TOOL_CALLS] [{"name": "now", "arguments": {"a":') == []
    started, arguments = reader.feed(" 1}}, ")
    assert isinstance(started, CallStarted)
    assert (started.index, started.name) == (0, "now")
    assert arguments == CallArguments(0, '{"a": 1}')
    assert reader.feed('{"name": "say", "arg') == []
    # The text was cut: what is no call is content.
    assert reader.finish() == [Content(', {"name": "say", "arg')]


def test_a_call_may_not_have_more_bytes_than_allowed() -> None:
    text = '<tool_call>{"name": "say", "arguments": {"text": "%s"}}</tool_call>'
    fits, more = text % ("é" * 100), text % ("é" * 101)
    longest = len(fits.encode())
    assert len(read(reader_of("hermes", longest_call=longest), fits)[1]) == 1
    for pieces in (more, [more]):
        assert read(reader_of("hermes", longest_call=longest), pieces) == (more, [])
    endless = reader_of("hermes", longest_call=longest)
    held = sum(
        len(part.text) for part in endless.feed(more[:-1] + "x" * 9999) if isinstance(part, Content)
    )
    assert held == len(more) - 1 + 9999


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("letters", ["{<[", '<tool_call>{"name":', "[TOOL_CALLS][", '{"name":{'])
def test_much_of_what_looks_like_a_call_takes_linear_time(form: str, letters: str) -> None:
    taken = [0, 0]

    class Counted(str):
        __slots__ = ()

    for number, times in enumerate((200, 2000)):
        reader = reader_of(form)
        assert isinstance(reader, CallReader)
        grammars = count()
        made = reader._new_grammar

        def counted(made: Any = made, grammars: Any = grammars) -> Any:
            grammar = made()
            return _count_letters(grammar, grammars)

        reader._new_grammar = counted
        assert read(reader, [letters * times])[0] == letters * times
        taken[number] = next(grammars)
    assert taken[1] <= 11 * taken[0] + 100


def _count_letters(grammar: Any, counter: Any) -> Any:
    sent = next(grammar)
    while True:
        letter = yield sent
        next(counter)
        try:
            sent = grammar.send(letter)
        except StopIteration as stopped:
            return stopped.value


def test_one_call_is_left_where_only_one_is_wanted() -> None:
    text = '{"name": "say", "parameters": {}}; {"name": "now", "parameters": {}}'
    assert read(reader_of("llama3", several=False), text) == ("", [("say", "{}")])


class TestForced:
    def test_the_arguments_of_a_named_call_come_as_they_are_written(self) -> None:
        plan = AnswerPlan("named", TOOLS, name="say")
        reader = plan.reader()
        started, first = reader.feed('{"a":')
        assert isinstance(started, CallStarted)
        assert (started.name, first) == ("say", CallArguments(0, '{"a":'))
        assert reader.feed("") == []
        assert reader.feed(" 1}") == [CallArguments(0, " 1}")]
        assert reader.finish() == []
        assert plan.finish_reason("stop", reader.calls) == "stop"

    @pytest.mark.parametrize("member", ["arguments", "parameters"])
    def test_calls_that_are_required_are_read_from_a_list(self, member: str) -> None:
        calls = [{"name": "say", member: {"a": "}]"}}, {"name": "now", member: {}}]
        plan = AnswerPlan("required", TOOLS)
        for text in (json.dumps(calls), json.dumps(calls, indent=1)):
            reader = plan.reader()
            content, found = read(reader, text)
            assert content == ""
            assert [(name, json.loads(given)) for name, given in found] == [
                ("say", {"a": "}]"}),
                ("now", {}),
            ]
            assert plan.finish_reason("stop", reader.calls) == "tool_calls"

    def test_a_list_that_was_cut_keeps_what_is_whole(self) -> None:
        reader = AnswerPlan("required", TOOLS).reader()
        content, calls = read(reader, '[{"name": "now", "arguments": {}}, {"name": "sa')
        assert (content, calls) == (', {"name": "sa', [("now", "{}")])

    def test_only_an_answer_that_ended_by_itself_ends_with_calls(self) -> None:
        plan = AnswerPlan("auto", TOOLS, form=FORMS["hermes"])
        assert plan.finish_reason("stop", 1) == "tool_calls"
        assert plan.finish_reason("stop", 0) == "stop"
        assert plan.finish_reason("length", 1) == "length"


def test_answers_have_the_form_of_openai() -> None:
    types = pytest.importorskip("openai.types.chat")
    chunk = pytest.importorskip("openai.types.chat.chat_completion_chunk")
    text = 'Ok.<tool_call>{"name": "say", "arguments": {"a": 1}}</tool_call>'
    reader = reader_of("hermes")
    parts = [*reader.feed(text), *reader.finish()]

    message = types.ChatCompletionMessage.model_validate(message_of(parts), strict=True)
    assert message.content == "Ok."
    (call,) = message.tool_calls
    assert (call.type, call.function.name, call.function.arguments) == (
        "function",
        "say",
        '{"a": 1}',
    )
    silent = types.ChatCompletionMessage.model_validate(message_of(parts[1:]), strict=True)
    assert silent.content is None
    plain = types.ChatCompletionMessage.model_validate(message_of([]), strict=True)
    assert (plain.content, plain.tool_calls) == ("", None)

    deltas = [chunk.ChoiceDelta.model_validate(delta_of(part), strict=True) for part in parts]
    assert [delta.content for delta in deltas] == ["Ok.", None, None]
    begun, more = deltas[1].tool_calls[0], deltas[2].tool_calls[0]
    assert (begun.index, begun.id, begun.function.name) == (0, call.id, "say")
    assert (more.index, more.id, more.function.arguments) == (0, None, '{"a": 1}')

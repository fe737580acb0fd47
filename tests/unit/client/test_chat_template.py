"""What the renderer refuses, and that no template runs for ever or without end."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from trtllm_client import ChatTemplate, InvalidRequest

ASKED = [{"role": "user", "content": "Hello"}]
PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("Hello", r"messages must be a list of messages, not str\. Give a list such as \[\{"),
        ({"role": "user"}, "messages must be a list of messages, not dict"),
        (None, "messages must be a list of messages, not NoneType"),
        (iter(ASKED), "messages must be a list of messages, not list_iterator"),
        ([], r"messages is empty\. Give a list such as"),
        (["Hello"], r"messages\[0\] must be an object with role and content, not str"),
        ([*ASKED, {"content": "x"}], r"messages\[1\] has no role\. The role is a text such as"),
        ([{"role": "", "content": "x"}], r"messages\[0\] has no role"),
        ([{"role": 1, "content": "x"}], r"messages\[0\] has the role 1, which is no text"),
        ([{"role": "user"}], r"messages\[0\] has no content\. Give its text, which may be empty"),
        ([{"role": "user", "content": None}], r"messages\[0\] has no content"),
        ([{"role": "user", "content": None, "tool_calls": []}], r"messages\[0\] has no content"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
            r"messages\[0\] has content that is no text but list\. Give it as one text",
        ),
        ([{"role": "user", "content": b"x"}], r"has content that is no text but bytes"),
    ],
)
def test_messages_of_a_wrong_form_are_refused(messages: Any, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        ChatTemplate(PLAIN).render(messages)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("tools", {}, "tools must be a list of objects, not dict"),
        ("tools", "weather", "tools must be a list of objects, not str"),
        ("tools", [len], r"tools\[0\] must be an object, not builtin_.*JSON schema of a function"),
        ("documents", [1], r"documents\[0\] must be an object, not int\. A document has a title"),
    ],
)
def test_tools_and_documents_are_lists_of_objects(name: str, value: Any, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        ChatTemplate(PLAIN).render(ASKED, **{name: value})


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('Roles must alternate') }}", r"refuses these messages\. Roles must a"),
        ("{{ raise_exception('') }}", r"refuses these messages\. Change the messages"),
        ("\n\n{% for m in messages %}", r"cannot be compiled\. Line 3: TemplateSyntaxError: "),
        ("{% no_such_tag %}", "cannot be compiled.*unknown tag 'no_such_tag'"),
        ("{{ 1 | no_such_filter }}", "cannot be compiled.*No filter named 'no_such_filter'"),
        ("{{ no_such_function(1) }}", r"cannot be rendered\. UndefinedError: 'no_such_function'"),
        ("{{ messages[7].content }}", r"cannot be rendered\. UndefinedError"),
        ("{{ 1 / 0 }}", r"cannot be rendered\. ZeroDivisionError"),
        ("{{ messages[0].content + 1 }}", r"cannot be rendered\. TypeError"),
        ("{{ messages.append(1) }}", r"cannot be rendered\. SecurityError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", r"cannot be rendered\. SecurityError"),
        ("{% include 'a file' %}", r"cannot be rendered\. TypeError: no loader"),
        ("{{ lipsum(99) }}", r"'lipsum' is undefined"),
    ],
)
def test_what_a_template_does_wrong_is_told(template: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        ChatTemplate(template).render(ASKED)


@pytest.mark.parametrize("template", [None, 1, b"x", ["x"]])
def test_a_template_is_text(template: Any) -> None:
    with pytest.raises(InvalidRequest, match="a chat template must be text, not"):
        ChatTemplate(template)


TOO_MUCH = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99) %}{% endfor %}{% endfor %}",
    "one loop": "{% for a in range(900000) %}{% endfor %}",
    "macros that call themselves twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}"
    "{% endif %}{% endmacro %}{{ f(99) }}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "blocks that call": "{% macro f(n) %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call f(1) %}" * 40
    + "x"
    + "{% endcall %}" * 40,
    "a long text": "{% for a in range(90000) %}" + "0123456789" * 40 + "{% endfor %}",
    "a product": "{{ 'ab' * 10 ** 11 }}",
    "a list": "{{ ([0] * 10 ** 11) | length }}",
    "a number": "{{ 10 ** (10 ** 9) }}",
    "products": "{% set a = namespace(n=99) %}{% for i in range(99) %}{% set a.n = a.n * a.n %}"
    "{% endfor %}",
    "sums": "{% set a = namespace(n='x') %}{% for i in range(99) %}{% set a.n = a.n + a.n %}"
    "{% endfor %}",
    "joined texts": "{% set a = namespace(n='x') %}{% for i in range(99) %}"
    "{% set a.n = a.n ~ a.n %}{% endfor %}",
    "a width": "{{ '%9999999999d' % 1 }}",
    "a width of its own": "{{ '%*d' % (9999999999, 1) }}",
    "a precision": "{{ '%.9999999999f' | format(1) }}",
    "a form": "{{ '{:>9999999999}'.format(1) }}",
    "a form of its own": "{{ '{:>{}}'.format(1, 9999999999) }}",
    "a column": "{{ 'x'.ljust(9999999999) | length }}",
    "a filter": "{{ 'x' | center(9999999999) | length }}",
    "indented JSON": "{{ [1, [2]] | tojson(indent=9999999999) }}",
    "rounding": "{{ 1 | round(-9999999999) }}",
    "a list of one long text": "{% set a = 'x' * 2 ** 22 %}{{ [a] * 10000 }}",
    "JSON of one long text": "{% set a = 'x' * 2 ** 22 %}{{ ([a] * 10000) | tojson }}",
    "one long text, joined": "{% set a = 'x' * 2 ** 22 %}{{ ([a] * 10000) | join | length }}",
    "lists of lists": "{% set a = namespace(n=[]) %}{% for i in range(50) %}"
    "{% set a.n = [a.n, a.n] %}{% endfor %}{{ a.n }}",
    "a padded text": "{{ 'x'.ljust(10 ** 9) | length }}",
    "a centred text": "{{ 'x' | center(10 ** 9) | length }}",
    "a padded number": "{{ ('%0999999999d' % 1) | length }}",
    "a padded number by a filter": "{{ '%0999999999d' | format(1) | length }}",
    "a padded number by a method": "{{ '{:>999999999}'.format(1) | length }}",
    "a width that is given": "{{ '{:>{}}'.format(1, 10 ** 9) | length }}",
    "replaced texts": "{{ ('a' * 9999).replace('a', 'b' * 99999) | length }}",
    "replaced texts by a filter": "{{ ('a' * 9999) | replace('a', 'b' * 99999) | length }}",
    "a separator": "{{ ('b' * 99999).join(['a'] * 9999) | length }}",
    "a separator by a filter": "{{ (['a'] * 9999) | join('b' * 99999) | length }}",
    "indented lines": "{{ ('x\n' * 9999) | indent(99999) | length }}",
    "tabs": "{{ ('\t' * 9999).expandtabs(99999) | length }}",
    "lists of one list": "{% set a = namespace(n=['x']) %}{% for i in range(60) %}"
    "{% set a.n = [a.n, a.n] %}{% endfor %}{{ a.n }}",
    "lists of one list by a filter": "{% set a = namespace(n=['x']) %}{% for i in range(60) %}"
    "{% set a.n = [a.n, a.n] %}{% endfor %}{{ a.n | tojson | length }}",
    "blocks": "{% set a = namespace(n='x') %}{% for i in range(99) %}"
    "{% set a.n %}{{ a.n }}{{ a.n }}{% endset %}{% endfor %}",
}


# They take half a minute each, until the seconds are up.
SLOW = ("lists of lists", "lists of one list by a filter")


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.proof] if kind in SLOW else []) for kind in TOO_MUCH],
)
def test_no_template_runs_for_ever_or_grows_without_end(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trtllm_client._template_sandbox.MAX_SECONDS", 1.0)
    told = r"does more than a conversation needs|Range too big|recursion depth exceeded"
    with pytest.raises(InvalidRequest, match=told):
        ChatTemplate(TOO_MUCH[kind]).render(ASKED)


def test_a_large_number_is_no_size() -> None:
    source = (
        "{% macro f(x) %}{{ x }}{% endmacro %}{{ f(1764352399) }} {{ '%d' % 1764352399 }} "
        "{{ '{} of {:>3}'.format(1764352399, 7) }} {{ [1764352399] | tojson }} {{ '%5.1f' % 2 }} "
        "{{ '%s at 20261128175500' | format('x') }} {{ 'x'.center(3) }} {{ 1764352399 | string }}"
    )
    assert ChatTemplate(source).render(ASKED) == (
        "1764352399 1764352399 1764352399 of   7 [1764352399]   2.0 x at 20261128175500  x  "
        "1764352399"
    )


def test_a_long_conversation_is_no_endless_one() -> None:
    chat = [{"role": "user", "content": "é" * 100}] * 10_000
    template = ChatTemplate(PLAIN)
    assert len(template.render(chat)) == 10_000 * (100 + len("<user>"))
    # As Qwen3's does.
    asking = ChatTemplate("{% for m in messages %}{% set n = messages | length %}{% endfor %}done")
    assert asking.render(chat) == "done"
    # Each rendering begins to count anew, also beside another one.
    texts: list[str] = []
    threads = [
        threading.Thread(target=lambda: texts.append(template.render(chat[:500]))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({*texts}) == 1
    assert len(texts) == 4


def test_a_template_changes_no_message_and_sees_what_it_is_given() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    source = "{{ tools[0].function.name }}{{ documents[0].title }}{{ mood }}{{ bos_token }}"
    template = ChatTemplate(source, {"bos_token": "<s>"})
    documents = [{"title": "T"}]
    text = template.render(ASKED, tools=[tool], documents=documents, mood="gay", bos_token="<b>")
    assert text == "fTgay<b>"
    assert template.render(ASKED, tools=[tool], documents=documents) == "fT<s>"
    assert dict(template.special_tokens) == {"bos_token": "<s>"}
    assert template.source == source
    assert ASKED == [{"role": "user", "content": "Hello"}]


def test_the_prompt_of_an_answer_is_there_unless_it_is_not_wanted() -> None:
    template = ChatTemplate("{{ 'A:' if add_generation_prompt else '.' }}")
    assert template.render(ASKED) == "A:"
    assert template.render(ASKED, add_generation_prompt=False) == "."


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, r"the model has no chat template\. There is no chat_template\.jinja, and tokenizer_c"),
        ({"tokenizer_config.json": '{"chat_template": null}'}, "the model has no chat template"),
        ({"tokenizer_config.json": '{"chat_template": ['}, "tokenizer_config.json cannot be read"),
        ({"tokenizer_config.json": "[]"}, "cannot be read. It is not a JSON object"),
        ({"chat_template.jinja": b"\xff"}, r"chat_template\.jinja is not UTF-8"),
        (
            {"chat_template.jinja": "x", "special_tokens_map.json": "{"},
            r"special_tokens_map\.json cannot be read",
        ),
    ],
)
def test_a_folder_without_a_template_is_told(
    tmp_path: Path, files: dict[str, str | bytes], reason: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidRequest, match=reason):
        ChatTemplate.from_directory(str(tmp_path))


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
@pytest.mark.timeout(60)
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(InvalidRequest, match=rf"{name} cannot be read\. It is not a file"):
        ChatTemplate.from_directory(tmp_path)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ '%s-%05.1f' % ('a', 2.5) }}", "a-002.5"),
        ("{{ '%s %s' | format('a', 12345678901) }}", "a 12345678901"),
        ("{{ '{} {:>4}'.format(12345678901, 'b') }}", "12345678901    b"),
        ("{{ 7 % 4 }}", "3"),
        ("{{ ['a', 'b'] | join(', ') }}{{ messages | map(attribute='role') | join }}", "a, buser"),
        ("{{ messages | join('|', attribute='content') }}", "Hello"),
        ("{{ '-'.join(['a', 'b']) }}{{ 'a-b'.replace('-', '+') }}", "a-ba+b"),
        ("{{ 'a\nb' | indent(2, first=true) }}", "  a\n  b"),
        ("{{ 'x' | center(3) }}|{{ 'x'.ljust(3) }}|", " x |x  |"),
        ("{{ {'a': [1, {'b': none}]} | tojson(indent=1) | replace('\n', '') }}",
         '{ "a": [  1,  {   "b": null  } ]}'),
    ],
)  # fmt: skip
def test_what_templates_do_with_texts_is_what_jinja_does(template: str, text: str) -> None:
    assert ChatTemplate(template).render(ASKED) == text

"""The client's renderer against transformers', on the templates of published models."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from tests.conftest import PROJECT
from trtllm_client import ChatTemplate, InvalidRequest

TEMPLATES = PROJECT / "tests" / "data" / "chat-templates"
NAMES = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
TOKENS = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "unk_token": "<unk>"}
# Several templates print the day.
DAY = datetime(2026, 2, 3, 4, 5, 6)

AWKWARD = (
    " \n Zoë “<b>&amp;'\"</b>” \\n 漢字 \U0001f469\u200d\U0001f467 e\u0301 "
    "\u05e9\u05dc {{ x }} \t\n\n"
)
SYSTEM = {"role": "system", "content": "You answer in “one” line. <é>"}
USER = {"role": "user", "content": "What is the weather in Zürich?"}
ANSWER = {"role": "assistant", "content": "  Sunny, 20\u00a0°C.\n"}
THOUGHT = {"role": "assistant", "content": "<think>\nIs it é?\n</think>\n\nSunny."}
CALL = {"type": "function", "id": "call00001", "function": {
    "name": "weather", "arguments": {"city": "Zürich", "days": [1, 2.5, None, True]}}}  # fmt: skip
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
TOOL_ANSWER = {"role": "tool", "content": '{"°C": 20}', "tool_call_id": "call00001"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Says “<the weather>”; é",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": ["Zürich", "漢"]}},
                "required": ["city"],
            },
        },
    }
    for name in ("weather", "tides")
]
CHATS: dict[str, list[dict[str, Any]]] = {
    "one question": [USER],
    "system": [SYSTEM, USER],
    "several turns": [USER, ANSWER, USER, ANSWER, USER],
    "system and several turns": [SYSTEM, USER, ANSWER, USER],
    "an answer last": [USER, ANSWER],
    "awkward letters": [
        {"role": role, "content": AWKWARD} for role in ("system", "user", "assistant", "user")
    ],
    "no text": [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}],
    "a thought": [USER, THOUGHT, USER],
    "a thought last": [USER, THOUGHT],
    "a thought of its own": [USER, {**ANSWER, "reasoning_content": "Well."}, USER, ANSWER],
    "a tool is called": [USER, CALLS],
    "a tool has answered": [SYSTEM, USER, CALLS, TOOL_ANSWER],
    "two tools have answered": [
        USER,
        {**CALLS, "content": "Ok.", "tool_calls": [CALL, CALL]},
        TOOL_ANSWER,
        TOOL_ANSWER,
        ANSWER,
        USER,
    ],
    "a call without text": [USER, {"role": "assistant", "tool_calls": [CALL]}, TOOL_ANSWER],
    "a call whose text is null": [USER, {**CALLS, "content": None}, TOOL_ANSWER],
    "a call as JSON": [
        USER,
        {
            **CALLS,
            "tool_calls": [
                {**CALL, "function": {"name": "weather", "arguments": '{"city": "Zürich"}'}}
            ],
        },
    ],
    "system in the middle": [USER, ANSWER, SYSTEM, USER],
    "two questions": [USER, USER],
    "an answer first": [ANSWER, USER],
    "an unknown role": [{"role": "critic", "content": "No."}],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"add_generation_prompt": False},
    "generation": {"add_generation_prompt": True},
    "tools": {"add_generation_prompt": True, "tools": TOOLS},
    "no tools": {"add_generation_prompt": False, "tools": []},
    "variables": {
        "add_generation_prompt": True,
        "enable_thinking": False,
        "tools_in_user_message": False,
        "tools": TOOLS[:1],
        "bos_token": "<other>",
    },
}


def transformers_tokenizer(source: str) -> PreTrainedTokenizerFast:
    vocabulary = Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=vocabulary, chat_template=source, **TOKENS)


def by_transformers(tokenizer: Any, chat: list[dict[str, Any]], **options: Any) -> str | None:
    """The text, or None where the template refuses the conversation or fails on it."""
    try:
        return tokenizer.apply_chat_template(
            chat, tokenize=False, strftime_now=DAY.strftime, **options
        )
    except (jinja2.TemplateError, TypeError):
        return None


def by_the_client(template: ChatTemplate, chat: list[dict[str, Any]], **options: Any) -> str | None:
    try:
        return template.render(chat, strftime_now=DAY.strftime, **options)
    except InvalidRequest:
        return None


@pytest.mark.parametrize("name", NAMES)
def test_every_conversation_is_the_text_that_transformers_writes(name: str) -> None:
    source = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer, template = transformers_tokenizer(source), ChatTemplate(source, TOKENS)
    rendered, different = 0, {}
    for what, chat in CHATS.items():
        for how, options in OPTIONS.items():
            expected = by_transformers(tokenizer, chat, **options)
            got = by_the_client(template, chat, **options)
            rendered += expected is not None
            if got != expected:
                different[what, how] = (expected, got)
    assert different == {}
    assert rendered >= len(CHATS) * len(OPTIONS) // 3
    # They do not all come out alike.
    texts = {by_the_client(template, chat, **OPTIONS["plain"]) for chat in CHATS.values()}
    assert len(texts) >= 7


@pytest.mark.parametrize("name", NAMES)
def test_a_models_folder_is_enough(name: str, tmp_path: Path) -> None:
    source = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer = transformers_tokenizer(source)
    tokenizer.save_pretrained(tmp_path)
    template = ChatTemplate.from_directory(tmp_path)
    assert template.source == source
    assert template.special_tokens == TOKENS
    expected = by_transformers(tokenizer, CHATS["several turns"], add_generation_prompt=True)
    assert by_the_client(template, CHATS["several turns"]) == expected is not None


def test_the_day_is_that_of_this_machine_where_nobody_says_another() -> None:
    source = "{{ strftime_now('%Y-%m %j|%Z|%%') }}"
    tokenizer, template = transformers_tokenizer(source), ChatTemplate(source)
    before = tokenizer.apply_chat_template([USER], tokenize=False)
    got = template.render([USER])
    assert got in (before, tokenizer.apply_chat_template([USER], tokenize=False))


# What templates may use of Jinja, beyond what the ones above happen to.
EXPRESSIONS = [
    "{{ messages | tojson }}",
    "{{ messages | tojson(indent=2) }}",
    "{{ messages | tojson(ensure_ascii=True, sort_keys=True, separators=(',', ':')) }}",
    "{{ 'a' ~ 1 ~ none ~ undefined_one ~ messages[0].role }}",
    "{{ 1 + 2 * 3 ** 2 }} {{ 'ab' * 3 }} {{ [1] + [2] }} {{ 7 // 2 }} {{ '%s-%s' % ('a', 2) }}",
    "{{ none }} {{ true }} {{ undefined_one }} {{ messages[0].missing }}|",
    "{% set a = namespace(n=1) %}{% for m in messages %}{% set a.n = a.n * 3 %}{% endfor %}{{a.n}}",
    "{% macro f(x, y='é') %}[{{ x }}{{ y }}]{% endmacro %}{{ f(1) }}{{ f(messages[0].content) }}",
    "{% macro f() %}<{{ caller() }}>{% endmacro %}{% call f() %}in{{ 1 }}side{% endcall %}",
    "{% for m in messages recursive %}{{ loop.index }}{{ loop.last }}{% else %}no{% endfor %}",
    "{% for a in [[1, [2]], 3] recursive %}{{ loop(a) if a is iterable else a }};{% endfor %}",
    "{% for m in messages if m.role == 'x' %}{{ m }}{% else %}none{% endfor %}",
    "{% for i in range(9) %}{% if i > 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% for i in range(9) %}{% if i < 4 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
    "{% set a %}a{{ 1 }}\n{% endset %}{{ a | trim }}!{% filter upper %}b{{ 'é' }}{% endfilter %}",
    "{%- if tools is defined and tools is none %}\n   none \n{%- endif -%}\n  {{ documents }}  \n",
    "  {% if true %}\n  kept\n  {% endif %}\n{# gone #}\n  {{- ' x ' -}}  \n y",
    "{% generation %}{{ messages[0].content }}{% endgeneration %}",
    "{% set a = 1 %}{% generation %}{% set a = 2 %}{{ a }}{% endgeneration %}{{ a }}",
    "{{ messages | map(attribute='role') | join(',') }}",
    "{{ messages | selectattr('role', 'eq', 'user') | list | length }}",
    "{{ '<&>' | e }}{{ '<&>' }}{{ messages[0].content.split(' ')[-1].strip('?') }}",
    "{{ eos_token }}{{ bos_token if bos_token is defined else '' }}{{ nothing_token }}",
    "{{ messages[::-1] }}{{ messages[0] }}{{ {'a': 1}.items() | list }}{{ dict(a=1).get('b', 2) }}",
]


@pytest.mark.parametrize("source", EXPRESSIONS)
def test_what_counting_puts_into_a_template_changes_no_text(source: str) -> None:
    tokenizer, template = transformers_tokenizer(source), ChatTemplate(source, TOKENS)
    for options in OPTIONS.values():
        expected = by_transformers(tokenizer, [USER, ANSWER], **options)
        assert expected is not None
        assert by_the_client(template, [USER, ANSWER], **options) == expected

"""What published chat templates write for a call is read back; what a client sent is written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.gateway.tools.choice import AnswerPlan
from pipeline.gateway.tools.forms import FORMS, form_of
from pipeline.gateway.tools.history import short_id, with_calls
from pipeline.gateway.tools.parts import message_of
from tests.conftest import PROJECT
from trtllm_client import ChatTemplate, InvalidRequest

TEMPLATES = PROJECT / "tests" / "data" / "chat-templates"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
# The form of each, and what ends an assistant's turn.
FORM_OF = {
    "llama3_1": ("llama3", "<|eot_id|>"),
    "llama3_2": ("llama3", "<|eot_id|>"),
    "mistral_v1": (None, "</s>"),
    "mistral_v2v3": ("mistral", "</s>"),
    "qwen2_5": ("hermes", "<|im_end|>"),
    "qwen3": ("hermes", "<|im_end|>"),
    "qwen3_training": ("hermes", "<|im_end|>"),
}
ARGUMENTS = {"city": "Zürich {<b>}", "days": [1, 2.5, None, True], "more": {"a": '"\\'}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Says the weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
ASKED = {"role": "user", "content": "How is the weather?"}


def source_of(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def called(count: int) -> dict[str, Any]:
    """An assistant's message, as the official client sends it."""
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": f"call_{number:024x}",
                "type": "function",
                "function": {"name": "get_weather", "arguments": json.dumps(ARGUMENTS)},
            }
            for number in range(count)
        ],
    }


def written(name: str, count: int) -> str:
    """What a model of the template would have answered to be shown so, without its end."""
    template = ChatTemplate(source_of(name), TOKENS)
    form = form_of(source_of(name))
    before = template.render([ASKED], tools=TOOLS)
    after = template.render(
        with_calls([ASKED, called(count)], form), tools=TOOLS, add_generation_prompt=False
    )
    end = FORM_OF[name][1]
    assert after.startswith(before)
    return after[len(before) :].rstrip().removesuffix(end)


def test_the_form_is_told_from_the_template() -> None:
    found = {path.stem: form_of(path.read_text()) for path in TEMPLATES.glob("*.jinja")}
    assert {name: form and form.name for name, form in found.items()} == {
        name: form for name, (form, _) in FORM_OF.items()
    }


@pytest.mark.parametrize(
    "source",
    [
        "",
        "{{ messages }}",
        "{% if tools %}<tool_call><function=name></function></tool_call>{% endif %}",
        "{% if tools %}{{ tools }}{% endif %}",
        "[TOOL_CALLS]",
    ],
)
def test_a_template_that_teaches_no_form_of_ours_has_none(source: str) -> None:
    assert form_of(source) is None


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *((name, 1) for name, (form, _) in FORM_OF.items() if form),
        *((name, 2) for name, (form, _) in FORM_OF.items() if form not in (None, "llama3")),
    ],
)
def test_what_a_template_writes_is_read_back(name: str, count: int) -> None:
    form = FORM_OF[name][0]
    assert form is not None
    text = written(name, count)
    for pieces in ([text], list(text)):
        reader = AnswerPlan("auto", tuple(TOOLS), form=FORMS[form]).reader()
        parts = [part for piece in pieces for part in reader.feed(piece)] + reader.finish()
        message = message_of(parts)
        assert message["content"] in (None, "<think>\n\n</think>"), text
        calls = message["tool_calls"]
        assert [json.loads(call["function"]["arguments"]) for call in calls] == [ARGUMENTS] * count


@pytest.mark.parametrize("name", [name for name, (form, _) in FORM_OF.items() if form])
def test_a_conversation_with_a_call_and_its_answer_can_go_on(name: str) -> None:
    template = ChatTemplate(source_of(name), TOKENS)
    chat = [
        ASKED,
        called(1),
        {"role": "tool", "tool_call_id": f"call_{0:024x}", "content": "20 °C"},
    ]
    text = template.render(with_calls(chat, form_of(source_of(name))), tools=TOOLS)
    assert "20 °C" in text
    assert '"city": "Zürich {<b>}"' in text  # an object, not a text with an object


def test_mistral_gets_ids_of_its_own_kind() -> None:
    template = ChatTemplate(source_of("mistral_v2v3"), TOKENS)
    chat = [ASKED, called(2)]
    chat += [
        {"role": "tool", "tool_call_id": call["id"], "content": "x"}
        for call in chat[1]["tool_calls"]
    ]
    with pytest.raises(InvalidRequest, match="length 9"):
        template.render(chat, tools=TOOLS)
    changed = with_calls(chat, FORMS["mistral"])
    template.render(changed, tools=TOOLS)
    ids = [call["id"] for call in changed[1]["tool_calls"]]
    assert ids == [message["tool_call_id"] for message in changed[2:]]
    assert len(set(ids)) == 2
    assert all(len(one) == 9 and one.isalnum() for one in ids)
    assert short_id("a1B2c3D4e") == "a1B2c3D4e"
    assert chat[1] == called(2)  # what the client sent is left as it was


@pytest.mark.parametrize("arguments", ['{"a": ', "[1]", '"x"', "", "[" * 100_000])
def test_arguments_that_are_no_object_are_shown_as_they_were(arguments: str) -> None:
    message = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "x", "function": {"name": "say", "arguments": arguments}}],
    }
    assert with_calls([message], FORMS["hermes"]) == [message]


@pytest.mark.parametrize("calls", [None, "x", [None], ["x"], [{}], [{"function": 5}], 7])
def test_what_has_no_form_of_a_call_is_left_to_the_template(calls: Any) -> None:
    message = {"role": "assistant", "content": "x", "tool_calls": calls, "tool_call_id": 5}
    assert with_calls([message], FORMS["mistral"]) == [message]

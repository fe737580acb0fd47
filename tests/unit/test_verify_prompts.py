"""What the checks ask: as text, through the server's chat template, or from a file."""

from __future__ import annotations

import json
import re
import sys

import pytest

from pipeline.errors import UsageError
from pipeline.source.prompts import read_prompts
from pipeline.verify import CHECKS, Plan, run_conformance
from pipeline.verify.prompts import MULTIBYTE_TURNS, TURNS
from tests.unit.client.fake_model import FakeModel
from tests.unit.test_verify_checks import PLAN, PROBES

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<other>{{ m.content }} the dog<begin>{% endfor %}"
    "{% if add_generation_prompt %} saw a{% endif %}"
)


def texts_asked(server):
    texts = (one.one("text_input") for one in server.asked if "text_input" in one.values)
    return {text.decode(errors="replace") for text in texts}


def test_a_chat_model_is_asked_as_its_users_ask_and_passes_everything():
    with FakeModel().serve() as server:
        server.parameters["chat_template"] = TEMPLATE
        report = run_conformance(server.url, plan=PLAN, probes=PROBES)
        asked = texts_asked(server)
    assert {result.name: result.reason for result in report.results if result.reason} == {
        "unary_call": "every text model here is decoupled, so Triton refuses unary calls"
    }
    assert report.prompts == "questions through the server's chat template"
    first = f"<other>{TURNS[0]} the dog<begin> saw a"
    numbered = f"<other>{TURNS[0]} 0 the dog<begin> saw a"
    assert {first, numbered, f"<other>{MULTIBYTE_TURNS[0]} the dog<begin> saw a"} <= asked
    # Where the template ends, an answer begins; nothing is put behind it.
    assert f"{first} 0" not in asked
    # What stands between a prompt and its answer cannot be seen behind special tokens.
    by_name = {result.name: result for result in report.results}
    assert by_name["border"].details["prompts"] == len(Plan.plain_prompts)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "plain texts"),
        ("", "plain texts"),
        ("{{ nothing.at.all }}", "plain texts: .* does not take a plain question: .*undefined"),
        ("{% if %}", "plain texts: .*cannot be compiled"),
        ("{{ ' dog' * 1200 }}", "plain texts: .* leaves too little room for answers"),
    ],
)
def test_without_a_template_that_serves_plain_texts_are_asked(template, said):
    with FakeModel().serve() as server:
        if template is not None:
            server.parameters["chat_template"] = template
        report = run_conformance(server.url, plan=PLAN, only=["border", "max_tokens"])
        asked = texts_asked(server)
    assert [result.status for result in report.results] == ["passed", "passed"]
    assert re.match(f"{said}$" if said == "plain texts" else said, report.prompts)
    assert "Once upon a time" in asked


def test_a_client_without_jinja2_asks_plain_texts(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "trtllm_client._template_sandbox", raising=False)
    with FakeModel().serve() as server:
        server.parameters["chat_template"] = TEMPLATE
        report = run_conformance(server.url, plan=PLAN, only=["readiness"])
    assert "plain texts: without jinja2" in report.prompts


def prompts_file(folder, *rows):
    path = folder / "p.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return read_prompts(path)


def test_given_conversations_are_rendered_and_texts_go_as_they_stand(tmp_path):
    user, answer = {"role": "user", "content": " went"}, {"role": "assistant", "content": " home"}
    prompts = prompts_file(tmp_path, {"messages": [user, answer]}, {"prompt": " the boat"})
    with FakeModel().serve() as server:
        server.parameters["chat_template"] = TEMPLATE
        report = run_conformance(
            server.url, plan=PLAN, only=["log_probs", "border"], prompts=prompts
        )
        asked = texts_asked(server)
    assert report.prompts == "2 given, 1 of them through the server's chat template"
    chat = "<other> went the dog<begin> saw a"
    assert asked == {chat, chat.replace(" went", " went 0"), " the boat", " the boat 0"}
    assert [result.status for result in report.results] == ["passed", "passed"]


@pytest.mark.parametrize(
    ("template", "role", "words"),
    [
        (None, "user", "p.jsonl:2: the line is a conversation, and the server says no chat"),
        (TEMPLATE, "tool", "p.jsonl:2: the chat template refuses these messages. No tools"),
    ],
)
def test_a_given_conversation_that_cannot_be_asked_is_named(tmp_path, template, role, words):
    line = {"messages": [{"role": role, "content": "x"}]}
    prompts = prompts_file(tmp_path, {"prompt": "a"}, line)
    with FakeModel().serve() as server:
        server.parameters["chat_template"] = template or ""
        with pytest.raises(UsageError, match=words):
            run_conformance(server.url, plan=PLAN, only=["readiness"], prompts=prompts)


def test_an_end_that_the_template_writes_into_the_prompt_is_still_missed_in_an_answer():
    """<other> closes turns here, and the model generates it in the middle of its answers."""
    closing = "{% for m in messages %}{{ m.content }}<other>{% endfor %} saw"
    opening = "{% for m in messages %}<other>{{ m.content }}{% endfor %} saw"
    found = {}
    for name in (closing, opening):
        with FakeModel("unnoticed_end").serve() as server:
            server.parameters["chat_template"] = name
            report = run_conformance(server.url, plan=PLAN, only=["end_ids"], probes=PROBES)
        assert report.prompts.startswith("questions")
        found[name] = report.results[0].status
    # What opens a turn is no end, and a model without training may write it anywhere.
    assert found == {closing: "failed", opening: "passed"}


def test_checks_that_are_left_out_are_listed_as_skipped_with_the_reason():
    seen = []
    with FakeModel().serve() as server:
        report = run_conformance(
            server.url, plan=PLAN, only=["readiness"], left_out="not wanted", on_result=seen.append
        )
    usual = [name for name, check in CHECKS.items() if not check.thorough]
    assert [result.name for result in report.results] == usual
    assert [result.name for result in seen] == ["readiness"]
    assert report.count("passed") == 1
    skipped = {result.reason for result in report.results if result.status == "skipped"}
    assert skipped == {"not wanted"}

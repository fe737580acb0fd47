"""Lines of texts, conversations and prompts: what is taken, and what is said of the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import UsageError
from pipeline.recipe.verify import VerifySection
from pipeline.source.lines import Conversation, read_texts, to_json_line
from tests.conftest import PROJECT

HELLO = {"role": "user", "content": "Hello"}
HI = {"role": "assistant", "content": "Hi there"}
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "t.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def only(folder: Path, row: Any) -> Conversation:
    (line,) = read_texts(write(folder, row))
    assert isinstance(line, Conversation)
    return line


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": [SYSTEM, HELLO, HI], "id": 7}, [SYSTEM, HELLO, HI]),
        ({"prompt": [SYSTEM, HELLO], "completion": [HI]}, [SYSTEM, HELLO, HI]),
        ({"prompt": [HELLO]}, [HELLO]),
        ({"prompt": [HELLO], "completion": None}, [HELLO]),
        # As in UltraChat's files, whose prompt is the first question alone.
        ({"prompt": "Hello", "messages": [HELLO, HI]}, [HELLO, HI]),
    ],
)
def test_conversations(tmp_path: Path, row: Any, messages: list[Any]) -> None:
    line = only(tmp_path, row)
    assert line.messages == messages
    assert line.tools is None
    assert line.place.endswith("t.jsonl:1")


def test_tools_and_calls_are_kept(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look"}}]}
    line = only(tmp_path, {"messages": [HELLO, call], "tools": [TOOL]})
    assert line.messages == [HELLO, call]
    assert line.tools == [TOOL]
    assert only(tmp_path, {"messages": [HELLO], "tools": None}).tools is None


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"prompt": "Once upon", "completion": " a time.\n"}, "Once upon a time."),
        ({"prompt": " Once upon "}, "Once upon"),
        ({"prompt": "Once", "completion": ""}, "Once"),
        ({"text": "As ever", "messages": [HELLO]}, "As ever"),
    ],
)
def test_plain_texts(tmp_path: Path, row: Any, text: str) -> None:
    assert read_texts(write(tmp_path, row)) == [text]


def test_what_is_empty_is_left_out(tmp_path: Path) -> None:
    silent = {"messages": [{"role": "user", "content": " \n"}]}
    assert read_texts(write(tmp_path, {"text": " "}, silent, {"prompt": ""}, {"text": "x"})) == [
        "x"
    ]
    with pytest.raises(UsageError, match="the file holds no text"):
        read_texts(write(tmp_path, silent))


def test_equal_conversations_are_equal_wherever_they_stand(tmp_path: Path) -> None:
    first, second, other = read_texts(
        write(tmp_path, {"messages": [HELLO]}, {"prompt": [HELLO]}, {"messages": [HI]})
    )
    assert first == second != other
    assert len({first, second, other}) == 2


def test_a_conversation_is_written_as_a_line_that_reads_the_same(tmp_path: Path) -> None:
    lines = read_texts(
        write(tmp_path, {"prompt": [HELLO], "completion": [HI], "tools": [TOOL]}, {"text": "né"})
    )
    again = tmp_path / "again.jsonl"
    again.write_text("".join(f"{to_json_line(line)}\n" for line in lines))
    assert read_texts(again) == lines


def test_the_lines_of_the_documentation_are_read(tmp_path: Path) -> None:
    _, _, section = (PROJECT / "docs/quality.md").read_text().partition("## Chat data")
    block = section.split("```json lines\n")[1].split("```")[0]
    (tmp_path / "t.jsonl").write_text(block)
    lines = read_texts(tmp_path / "t.jsonl")
    kinds = [type(line).__name__ for line in lines]
    assert kinds == ["str", "Conversation", "Conversation", "str", "Conversation"]
    recipe = section.split("```yaml\n")[1].split("```")[0]
    assert VerifySection.model_validate(yaml.safe_load(recipe)["verify"]).skip


@pytest.mark.parametrize(
    ("messages", "question"),
    [
        ([SYSTEM, HELLO, HI], [SYSTEM, HELLO]),
        ([HELLO, HI, HELLO, HI, HELLO], [HELLO, HI, HELLO]),
        ([HELLO], [HELLO]),
        ([HI], []),
    ],
)
def test_the_question_ends_before_the_last_answer(
    tmp_path: Path, messages: list[Any], question: list[Any]
) -> None:
    assert only(tmp_path, {"messages": messages}).question == question


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": []}, '"messages" is empty'),
        ({"messages": "Hello"}, '"messages" is str, not a list of messages'),
        ({"messages": ["Hello"]}, 'message 1 of "messages" is str, not an object'),
        ({"messages": [HELLO, {"content": "x"}]}, 'message 2 of "messages" has no role'),
        ({"messages": [{"role": 5, "content": "x"}]}, "has no role"),
        ({"messages": [{"from": "human", "value": "x"}]}, 'no role.*Rename "from" to "role"'),
        ({"messages": [{"role": "user"}]}, "has no content"),
        ({"messages": [{"role": "user", "content": None}]}, "has no content"),
        ({"messages": [{"role": "user", "content": 5}]}, "content of message 1.* is int"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "is list.*images"),
        ({"messages": [HELLO], "tools": {"a": 1}}, '"tools" is not a list of objects'),
        ({"messages": [HELLO], "tools": ["look"]}, '"tools" is not a list of objects'),
        ({"messages": [{"role": "user", "content": "x\ud800"}]}, '"messages" has half of a surr'),
        ({"messages": [HELLO], "tools": [{"name": "\udc00"}]}, "half of a surrogate pair"),
        ({"prompt": 5}, '"prompt" is int, not a string'),
        ({"prompt": "a", "completion": 5}, '"completion" is int, not a string'),
        ({"prompt": "a\ud800"}, '"prompt" has half of a surrogate pair'),
        ({"prompt": "a", "completion": "\ud800"}, '"completion" has half of a surrogate pair'),
        ({"prompt": "a", "completion": [HI]}, '"prompt" is text and "completion" is messages'),
        ({"prompt": [HELLO], "completion": "a"}, '"prompt" is messages and "completion" is text'),
        ({"prompt": [HELLO], "completion": []}, '"completion" is empty'),
        ({"instruction": "a", "output": "b"}, 'Rename "instruction" to "prompt" and "output" to'),
        ({"conversations": [{"from": "human", "value": "x"}]}, "human is user, gpt is assistant"),
        ({"messages": None}, r'It has "messages"'),
        ({"label": 1}, r'"text", "messages" or "prompt"\. It has "label"'),
    ],
)
def test_a_line_of_another_form_is_named(tmp_path: Path, row: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=rf"t\.jsonl:2: .*{reason}"):
        read_texts(write(tmp_path, {"text": "fine"}, row))

"""Files of texts, conversations and prompts, read and checked line by line.

No tokenizer and no chat template is needed: what is wrong with a file is known before any work.
"""

from __future__ import annotations

import json
import random
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import UsageError
from pipeline.reading.files import read_beginning, read_regular
from pipeline.reading.json_text import parse_json

# JSON joins the escapes of a whole pair into one character, so any that is left is alone.
SURROGATE = re.compile("[\ud800-\udfff]")
KINDS = '"text", "messages" or "prompt"'
EXAMPLE = (
    'Write one object a line: {"text": "Once upon a time ..."}, {"messages": [{"role": "user", '
    '"content": "Hello"}, ...]} or {"prompt": "...", "completion": "..."}'
)
MESSAGE = 'A message is {"role": "user", "content": "Hello"}'
# Names that are common on the Hub, and what to do about them.
OTHER_NAMES = {
    "conversations": 'Rename "conversations" to "messages" and, in each of them, "from" to "role" '
    '(human is user, gpt is assistant) and "value" to "content"',
    "conversation": 'Rename "conversation" to "messages", each {"role": ..., "content": ...}',
    "instruction": 'Rename "instruction" to "prompt" and "output" to "completion"; an "input" '
    "belongs to the end of the prompt",
    "question": 'Rename "question" to "prompt" and the answer to "completion"',
    "content": 'Rename "content" to "text"',
}
ASSISTANT = "assistant"
T = TypeVar("T")


@dataclass(frozen=True)
class Conversation:
    """Messages that the model's own chat template makes a text of.

    Attributes:
        content: JSON of the object with ``messages``, and with ``tools`` where there are some; so
            equal conversations are equal.
        place: File and line.
    """

    content: str
    place: str = field(compare=False)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages, each with a role and its content."""
        return list(json.loads(self.content)["messages"])

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        """The tools that the model may call; None where the line names none."""
        tools = json.loads(self.content).get("tools")
        return None if tools is None else list(tools)

    @property
    def question(self) -> list[dict[str, Any]]:
        """The messages up to the last answer, without it; empty where nothing stands before it."""
        messages = self.messages
        answers = [n for n, message in enumerate(messages) if message["role"] == ASSISTANT]
        return messages[: answers[-1]] if answers else messages

    @property
    def words(self) -> str:
        """What is said in the messages, as one text."""
        return "\n".join(filter(None, (message.get("content") for message in self.messages)))


Line = str | Conversation


def read_texts(path: Path) -> list[Line]:
    """Reads a file of texts.

    Args:
        path: ``.txt``: paragraphs between blank lines. ``.jsonl``: one object a line, with
            ``text``; or ``messages``, and ``tools`` if any; or ``prompt`` and ``completion``, both
            text or both messages.

    Returns:
        The texts in file order, without surrounding white space, and the conversations as they
        are; at least one. What is empty is left out.

    Raises:
        UsageError: The file is missing, of another kind, not UTF-8, malformed or empty.
    """
    readers = {".txt": _paragraphs, ".jsonl": _json_lines}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        found = f"its extension is {path.suffix}" if path.suffix else "it has no extension"
        raise UsageError(
            f"unsupported text file: {found}",
            where=str(path),
            fix=f"Use .txt (paragraphs between blank lines) or .jsonl (objects with {KINDS})",
        )
    texts = list(reader(read_text_file(path), path))
    if not texts:
        raise UsageError(
            "the file holds no text",
            where=str(path),
            fix="Write paragraphs between blank lines, or one object with a text a line",
        )
    return texts


def sample(texts: Sequence[T], count: int, seed: int) -> list[T]:
    """Chooses at most ``count`` of the texts by ``seed``, in file order."""
    chosen = random.Random(seed).sample(range(len(texts)), min(count, len(texts)))  # noqa: S311
    return [texts[index] for index in sorted(chosen)]


def to_json_line(line: Line) -> str:
    """Writes a text or a conversation as a line of a ``.jsonl`` file, without its end."""
    if isinstance(line, Conversation):
        return line.content
    return json.dumps({"text": line}, ensure_ascii=False)


def read_text_file(path: Path, most: int | None = None) -> str:
    """Reads a file of texts in UTF-8, without a byte order mark.

    Args:
        path: The file.
        most: Bytes of a larger one that are read; see :func:`read_beginning`. None reads all.

    Raises:
        UsageError: It is missing, cannot be read or is not UTF-8; with the line.
    """
    try:
        data = read_regular(path) if most is None else read_beginning(path, most)
    except FileNotFoundError as error:
        raise UsageError(
            "there is no such text file",
            where=str(path),
            fix="Correct the path; it begins at the recipe's folder, and on the command line here",
        ) from error
    except OSError as error:
        raise UsageError(
            "the text file cannot be read",
            where=str(path),
            why=error.strerror,
            # What is read twice, as a pipe cannot be.
            fix="Name a file that this user may read more than once",
        ) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(
            "the text file is not UTF-8",
            where=f"{path}:{line}",
            why=f"Byte 0x{data[error.start]:02x} cannot be decoded",
            fix="Convert it, from latin1 if that is what it is, and name the new file: iconv "
            f"-f latin1 -t utf-8 -o {shlex.quote(f'{path}.utf-8{path.suffix}')} "
            f"{shlex.quote(str(path))}",
        ) from error


def objects(
    content: str, path: Path, kinds: str = KINDS, fix: str = EXAMPLE
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Reads the objects of a ``.jsonl`` file, each with its place; blank lines are left out.

    Args:
        content: The file's text.
        path: The file, for errors.
        kinds: What an object of it has, in words.
        fix: What to write in the place of a line that is none.

    Raises:
        UsageError: A line is no JSON object.
    """
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = parse_json(line, whole=False)
        except ValueError as error:
            raise _no_object(place, kinds, str(error), fix) from error
        if not isinstance(row, dict):
            raise _no_object(place, kinds, None, fix)
        yield place, row


def conversation_of(row: Mapping[str, Any], place: str) -> Conversation | None:
    """Makes a conversation of a line's object; None where nobody says anything in it.

    Args:
        row: With ``messages``, or with messages as its ``prompt``.
        place: File and line.

    Raises:
        UsageError: A message, or the list of tools, has a wrong form.
    """
    if row.get("messages") is not None:
        messages = _messages(row["messages"], "messages", place)
    else:
        messages = _messages(row["prompt"], "prompt", place)
        if row.get("completion") is not None:
            messages += _messages(row["completion"], "completion", place)
    made: dict[str, Any] = {"messages": messages}
    if row.get("tools") is not None:
        made["tools"] = _tools(row["tools"], place)
    content = json.dumps(made, ensure_ascii=False)
    _check_characters(content, '"messages"', place)
    if not any((message.get("content") or "").strip() for message in messages):
        return None
    return Conversation(content, place)


def text_of(value: object, name: str, place: str) -> str:
    """Returns a text of a line's object.

    Args:
        value: What it should be.
        name: Its key.
        place: File and line.

    Raises:
        UsageError: It is no text, or has half of a character in it.
    """
    if not isinstance(value, str):
        raise UsageError(
            f'"{name}" is {type(value).__name__}, not a string',
            where=place,
            fix="Put the text in double quotes",
        )
    _check_characters(value, f'"{name}"', place)
    return value


def _paragraphs(content: str, path: Path) -> Iterator[Line]:  # noqa: ARG001
    for paragraph in re.split(r"\n[^\S\n]*\n", content.replace("\r\n", "\n")):
        if text := paragraph.strip():
            yield text


def _json_lines(content: str, path: Path) -> Iterator[Line]:
    for place, row in objects(content, path):
        if line := _line(row, place):
            yield line


def _line(row: dict[str, Any], place: str) -> Line | None:
    """A line's text or conversation; empty or None where there is nothing in it."""
    # Several kinds in one table: each row has null for the columns of the others.
    if row.get("text") is not None:
        return text_of(row["text"], "text", place).strip()
    if row.get("messages") is not None:
        return conversation_of(row, place)
    if row.get("prompt") is None:
        if "text" in row:
            text_of(row["text"], "text", place)
        known = next((hint for name, hint in OTHER_NAMES.items() if name in row), EXAMPLE)
        why = f"It has {', '.join(map(json.dumps, list(row)[:6]))}" if row else None
        raise _no_object(place, KINDS, why, known)
    prompt, completion = row["prompt"], row.get("completion")
    if completion is not None and isinstance(prompt, list) != isinstance(completion, list):
        kinds = ["messages" if isinstance(part, list) else "text" for part in (prompt, completion)]
        raise UsageError(
            f'"prompt" is {kinds[0]} and "completion" is {kinds[1]}',
            where=place,
            fix="Make both texts, or both lists of messages",
        )
    if isinstance(prompt, list):
        return conversation_of(row, place)
    answer = "" if completion is None else text_of(completion, "completion", place)
    return (text_of(prompt, "prompt", place) + answer).strip()


def _messages(value: object, name: str, place: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        has = "is empty" if value == [] else f"is {type(value).__name__}, not a list of messages"
        raise UsageError(f'"{name}" {has}', where=place, fix=MESSAGE)
    for number, message in enumerate(value, 1):
        which = f'message {number} of "{name}"'
        if not isinstance(message, dict):
            raise UsageError(
                f"{which} is {type(message).__name__}, not an object", where=place, fix=MESSAGE
            )
        _check_message(message, which, place)
    return value


def _check_message(message: Mapping[str, Any], which: str, place: str) -> None:
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        raise UsageError(
            f"{which} has no role",
            where=place,
            fix='Rename "from" to "role" (human is user, gpt is assistant) and "value" to "content"'
            if "from" in message
            else MESSAGE,
        )
    if isinstance(content, str) or (content is None and message.get("tool_calls")):
        return
    if content is None:
        raise UsageError(
            f"{which} has no content", where=place, fix="Write its text, which may be empty"
        )
    raise UsageError(
        f"the content of {which} is {type(content).__name__}, not a string",
        where=place,
        fix="Write it as one text; images and other parts are not taken",
    )


def _tools(value: object, place: str) -> list[Any]:
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise UsageError(
            '"tools" is not a list of objects',
            where=place,
            fix="A tool is the JSON schema of a function, as OpenAI's interface takes it",
        )
    return value


def _check_characters(text: str, what: str, place: str) -> None:
    if not text.isascii() and SURROGATE.search(text):
        raise UsageError(
            f"{what} has half of a surrogate pair, which is not a character",
            where=place,
            fix="Write the character itself, or both halves of its \\u escape",
        )


def _no_object(place: str, kinds: str, why: str | None, fix: str) -> UsageError:
    return UsageError(
        f"the line is not a JSON object with a {kinds}", where=place, why=why, fix=fix
    )

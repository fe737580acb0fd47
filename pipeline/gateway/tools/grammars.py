"""How models write calls: each form takes a text letter by letter and says where calls are in it.

A grammar is a generator that is sent one letter after the other, and ``""`` at the end of the text.
It yields the call that is complete with the letter, or None. At the last letter that belongs to it
it returns the same; at the first that cannot it raises :class:`NotACall`.

Sources of the forms: the models' chat templates (``tests/data/chat-templates``), Meta's description
of Llama 3.1's JSON calls (llama-models, ``prompt_format.md``), Hermes' function calling format
(NousResearch/Hermes-Function-Calling) and mistral-common's encoders of the tokenizers v3, v7, v11
and v13.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass

from pipeline.gateway.tools.json_scanner import NotJsonError, ObjectScanner

SPACE = " \t\n\r"
NAME_PATTERN = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
"""What a function may be called, as OpenAI has it, and with dots."""

_HALF = re.compile("[\ud800-\udfff]")
_NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
_ARGUMENTS = ("arguments", "parameters")
_IN_A_CALL = frozenset(("name", *_ARGUMENTS, "type", "id"))


@dataclass(frozen=True)
class Call:
    """A call as the model wrote it.

    Attributes:
        name: Of the function.
        arguments: JSON of an object, letter by letter the model's.
    """

    name: str
    arguments: str


class NotACall(Exception):  # noqa: N818 - it is what the text is, and no error of anybody
    """The text so far is no beginning of a call.

    Args:
        within: An object that is no call and goes on: what is inside is no call either.
    """

    def __init__(self, within: ObjectScanner | None = None) -> None:
        self.within = within
        super().__init__()


Grammar = Generator[Call | None, str, Call | None]
NewGrammar = Callable[[], Grammar]
_Taking = Generator[Call | None, str, str]


def hermes() -> Grammar:
    """Reads ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``; Qwen writes it so too.

    The text may end in the place of the closing tag.
    """
    yield from _literal("<tool_call>")
    scanner = yield from _object((yield from _letter()))
    call = _call_of(scanner)
    letter = yield from _letter()
    if letter:
        yield from _literal("</tool_call>", letter)
    return call


def mistral() -> Grammar:
    """Reads ``[TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]``, and the newer form.

    That is ``[TOOL_CALLS]name[ARGS]{...}``, with ``[CALL_ID]...`` behind the name or not, and the
    same without ``[ARGS]``, as it is left where special tokens have no text.
    """
    yield from _literal("[TOOL_CALLS]")
    letter = yield from _letter()
    if letter == "[":
        return (yield from call_list(letter))
    name = ""
    while letter and letter in _NAME_LETTERS:
        name += letter
        letter = yield None
    if not NAME_PATTERN.fullmatch(name):
        raise NotACall
    if letter == "[":
        taken = letter + (yield None)
        if taken == "[C":
            yield from _literal("[CALL_ID]", taken)
            taken = yield None
            while taken.isalnum():
                taken = yield None
        yield from _literal("[ARGS]", taken)
        letter = yield None
    while letter and letter in SPACE:
        letter = yield None
    return Call(name, (yield from _object(letter)).text)


def llama3(names: Collection[str]) -> Grammar:
    """Reads ``{"name": ..., "parameters": {...}}``, behind ``<|python_tag|>`` or not.

    Nothing but its keys tells a bare object from any other, so it is a call only where it has both
    of them, none that a call never has, and the name of a function that may be called.

    Args:
        names: Of those functions.
    """
    letter = yield None
    if letter == "<":
        yield from _literal("<|python_tag|>", letter)
        return _call_of((yield from _object((yield from _letter()))))
    scanner = yield from _object(letter, names)
    if not scanner.members.keys() & set(_ARGUMENTS):
        raise NotACall
    return _call_of(scanner)


def call_list(letter: str = "") -> Grammar:
    """Reads ``[{"name": ..., "arguments": {...}}, ...]``, which a guide for calls asks for.

    Args:
        letter: The first letter, where it has been taken.
    """
    if (letter or (yield None)) != "[":
        raise NotACall
    while True:
        scanner = yield from _object((yield from _letter()))
        letter = yield _call_of(scanner)
        while letter and letter in SPACE:
            letter = yield None
        if letter == "]" or not letter:
            return None
        if letter != ",":
            raise NotACall


def _letter() -> _Taking:
    """Takes the next letter that is no space; ``""`` at the end of the text."""
    letter = yield None
    while letter and letter in SPACE:
        letter = yield None
    return letter


def _literal(text: str, taken: str = "") -> Generator[Call | None, str, None]:
    """Takes a text, of which the beginning may have been taken."""
    if not text.startswith(taken):
        raise NotACall
    for wanted in text[len(taken) :]:
        if (yield None) != wanted:
            raise NotACall


def _object(
    letter: str, names: Collection[str] | None = None
) -> Generator[Call | None, str, ObjectScanner]:
    """Takes an object, from its first letter on.

    Args:
        letter: The first letter.
        names: Those that it may have where nothing but its keys says that it is a call.
    """
    scanner = ObjectScanner()
    try:
        while not scanner.take(letter):
            if names is not None and not _may_be_call(scanner, names):
                raise NotACall(scanner)
            letter = yield None
    except NotJsonError:
        raise NotACall from None
    return scanner


def _may_be_call(scanner: ObjectScanner, names: Collection[str]) -> bool:
    if scanner.key and scanner.key not in _IN_A_CALL:
        return False
    return "name" not in scanner.members or _string(scanner, "name") in names


def _string(scanner: ObjectScanner, member: str) -> str | None:
    """The value of a member that is there and a string."""
    raw = scanner.raw(member) if member in scanner.members else ""
    return str(json.loads(raw)) if raw.startswith('"') else None


def _call_of(scanner: ObjectScanner) -> Call:
    """The call that a complete object is."""
    name = _string(scanner, "name")
    if name is None or not NAME_PATTERN.fullmatch(name):
        raise NotACall
    member = next((member for member in _ARGUMENTS if member in scanner.members), None)
    text = "{}" if member is None else scanner.raw(member)
    if text == "null":
        text = "{}"
    elif text.startswith('"'):
        text = json.loads(text)  # some models write the object as a text
        if not _is_object(text):
            raise NotACall
    elif not text.startswith("{"):
        raise NotACall
    return Call(name, text)


def _is_object(text: str) -> bool:
    scanner = ObjectScanner()
    try:
        length = next((n for n, letter in enumerate(text, 1) if scanner.take(letter)), 0)
    except NotJsonError:
        return False
    return bool(text) and length == len(text) and not _HALF.search(text)

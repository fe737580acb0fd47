"""A JSON object that comes letter by letter: it is over, it goes on, or it is none.

Strict as RFC 8259, so what is no JSON is known at the first wrong letter; a number, where it ends.
Standard library only.
"""

from __future__ import annotations

import json
import re
from typing import Any

DEEPEST = 64
"""Objects and lists within each other; deeper ones count as no JSON."""

_SPACE = " \t\n\r"
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_WORDS = {"t": "true", "f": "false", "n": "null"}


class NotJsonError(ValueError):
    """What came is not the beginning of a JSON object."""


class ObjectScanner:
    """Reads one object.

    Attributes:
        members: Where the value of each of the object's own members is in the text so far, by the
            member's name; only of values that are complete.
        key: The latest of their names.
    """

    def __init__(self) -> None:
        self.members: dict[str, tuple[int, int]] = {}
        self._letters: list[str] = []
        self._open: list[str] = []  # what closes each of them
        self._read = self._value
        self.key = ""
        self._begins = 0  # where the key or value that is read began
        self._word = ""

    @property
    def text(self) -> str:
        """All letters so far."""
        return "".join(self._letters)

    def take(self, letter: str) -> bool:
        """Takes the next letter.

        Returns:
            Whether the object is complete.

        Raises:
            NotJsonError: It is none, at this letter.
        """
        if not self._letters and letter != "{":
            raise NotJsonError
        self._letters.append(letter)
        self._read(letter)
        return not self._open

    def raw(self, name: str) -> str:
        """Returns the text of a complete member's value."""
        begins, ends = self.members[name]
        return "".join(self._letters[begins:ends])

    def _value(self, letter: str) -> None:
        if letter in _SPACE:
            return
        if len(self._open) == 1:
            self._begins = len(self._letters) - 1
        if letter == '"':
            self._read = self._text
        elif letter in "{[":
            if len(self._open) == DEEPEST:
                raise NotJsonError
            self._open.append("}" if letter == "{" else "]")
            self._read = self._first_key if letter == "{" else self._first_value
        elif letter in _WORDS or letter in "-0123456789":
            self._word = letter
            self._read = self._literal if letter in _WORDS else self._number
        else:
            raise NotJsonError

    def _first_value(self, letter: str) -> None:
        if letter == "]":
            self._close(letter)
        else:
            self._value(letter)

    def _first_key(self, letter: str) -> None:
        if letter == "}":
            self._close(letter)
        else:
            self._next_key(letter)

    def _next_key(self, letter: str) -> None:
        if letter == '"':
            if len(self._open) == 1:
                self._begins = len(self._letters) - 1
            self._read = self._key_text
        elif letter not in _SPACE:
            raise NotJsonError

    def _colon(self, letter: str) -> None:
        if letter == ":":
            self._read = self._value
        elif letter not in _SPACE:
            raise NotJsonError

    def _behind(self, letter: str) -> None:
        if letter == ",":
            self._read = self._next_key if self._open[-1] == "}" else self._value
        elif letter in "}]":
            self._close(letter)
        elif letter not in _SPACE:
            raise NotJsonError

    def _close(self, letter: str) -> None:
        if self._open.pop() != letter:
            raise NotJsonError
        self._end(len(self._letters))

    def _end(self, ends: int) -> None:
        """A value is complete."""
        if len(self._open) == 1:
            self.members[self.key] = (self._begins, ends)
        self._read = self._behind

    def _text(self, letter: str) -> None:
        if letter == '"':
            self._end(len(self._letters))
        else:
            self._within(letter, self._text)

    def _key_text(self, letter: str) -> None:
        if letter != '"':
            self._within(letter, self._key_text)
            return
        if len(self._open) == 1:
            self.key = json.loads("".join(self._letters[self._begins :]))
        self._read = self._colon

    def _within(self, letter: str, back: Any) -> None:
        if letter < " ":
            raise NotJsonError
        if letter == "\\":
            self._back = back
            self._read = self._escape

    def _escape(self, letter: str) -> None:
        if letter == "u":
            self._word = ""
            self._read = self._hexadecimal
        elif letter in '"\\/bfnrt':
            self._read = self._back
        else:
            raise NotJsonError

    def _hexadecimal(self, letter: str) -> None:
        if letter not in "0123456789abcdefABCDEF":
            raise NotJsonError
        self._word += letter
        if len(self._word) == 4:
            self._read = self._back

    def _number(self, letter: str) -> None:
        if letter in "0123456789+-.eE":
            self._word += letter
        elif _NUMBER.fullmatch(self._word):
            self._end(len(self._letters) - 1)
            self._read(letter)
        else:
            raise NotJsonError

    def _literal(self, letter: str) -> None:
        self._word += letter
        whole = _WORDS[self._word[0]]
        if not whole.startswith(self._word):
            raise NotJsonError
        if self._word == whole:
            self._end(len(self._letters))

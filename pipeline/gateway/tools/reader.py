"""An answer of a model as it comes: content at once, a call when it is complete.

What may become a call is held back until that is decided, so nothing has to be taken back: what
turns out to be none is content, and nothing that a model writes is an error. However a text is cut
into pieces, it has the same content and the same calls.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

from pipeline.gateway.tools.grammars import SPACE, Call, Grammar, NewGrammar, NotACall
from pipeline.gateway.tools.json_scanner import NotJsonError, ObjectScanner
from pipeline.gateway.tools.parts import CallArguments, CallStarted, Content, Part, new_call_id

LONGEST_CALL = 128 * 1024
"""Bytes of a call; a longer one is content. What Triton's own frontend allows."""

PIECE = 4096
"""Characters of a text that are looked through at once."""


class Reader(Protocol):
    """What reads one answer.

    Attributes:
        calls: How many there were so far.
    """

    calls: int

    def feed(self, text: str) -> list[Part]:
        """Takes the next piece of the text; returns what is certain now."""
        ...

    def finish(self) -> list[Part]:
        """Ends the text; returns what was held back."""
        ...


class PlainReader:
    """Reads an answer that has no calls."""

    calls = 0

    def feed(self, text: str) -> list[Part]:
        """Returns the text as content."""
        return [Content(text)] if text else []

    def finish(self) -> list[Part]:
        """Returns nothing: no text was held back."""
        return []


class NamedCallReader:
    """Reads an answer that is the arguments of one call, as a guide sees to.

    They are given out as they come; a text that was cut leaves them incomplete.

    Args:
        name: Of the function.
        new_id: Makes the call's id.
    """

    def __init__(self, name: str, new_id: Callable[[], str] = new_call_id) -> None:
        self._name, self._new_id = name, new_id
        self.calls = 0

    def feed(self, text: str) -> list[Part]:
        """Returns the text as arguments, behind the beginning of the call."""
        if not text:
            return []
        started: list[Part] = []
        if not self.calls:
            self.calls = 1
            started = [CallStarted(0, self._new_id(), self._name)]
        return [*started, CallArguments(0, text)]

    def finish(self) -> list[Part]:
        """Returns nothing: no text was held back."""
        return []


class CallReader:
    """Reads an answer in which there may be calls.

    Space around calls is no content, nor is what separates them.

    Args:
        grammar: Makes what reads a call, one for each place where one may begin.
        begins: The letters that a call may begin with.
        separators: Letters that belong to a call that they follow, beside space.
        only_first: Whether calls after the first are left out.
        longest: Bytes that a call may have.
        new_id: Makes the id of a call.
    """

    def __init__(
        self,
        grammar: NewGrammar,
        begins: str,
        *,
        separators: str = "",
        only_first: bool = False,
        longest: int = LONGEST_CALL,
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        self.calls = 0
        self._new_grammar, self._new_id = grammar, new_id
        self._beginning = re.compile(f"[{re.escape(begins)}]")
        self._glue = SPACE + separators
        self._only_first, self._longest = only_first, longest
        self._grammar: Grammar | None = None  # of the call that may be coming
        self._held: list[str] = []  # its letters
        self._bytes = 0
        self._within: ObjectScanner | None = None  # an object that is no call
        self._space = ""  # behind content; a call may follow
        self._behind_call = False
        self._parts: list[Part] = []

    def feed(self, text: str) -> list[Part]:
        """Takes the next piece of the text; returns what is certain now."""
        self._read(_pieces(text))
        return self._taken()

    def finish(self) -> list[Part]:
        """Ends the text; returns what was held back."""
        while self._grammar is not None:
            # The end may complete a call. Where it does not, what was held is read again.
            self._read(self._end())
        if self._space:
            self._parts.append(Content(self._space))
        self._space = ""
        return self._taken()

    def _read(self, waiting: list[str]) -> None:
        """Reads texts, the last one first."""
        while waiting:
            text = waiting.pop()
            if self._within is not None:
                rest = self._pass_object(text)
            elif self._grammar is not None:
                rest = self._take(text, waiting)
            else:
                rest = self._find(text)
            if rest:
                waiting.append(rest)

    def _find(self, text: str) -> str:
        """Gives out content up to where a call may begin; returns the rest."""
        found = self._beginning.search(text)
        if found is None:
            self._content(text)
            return ""
        self._content(text[: found.start()])
        self._held, self._bytes = [], 0
        self._grammar = self._new_grammar()
        next(self._grammar)
        return text[found.start() :]

    def _take(self, text: str, waiting: list[str]) -> str:
        """Sends letters to the grammar until it has come to an end; returns the rest of them.

        Letters that have to be read again come before that rest, so they are put on the top of what
        waits, on top of it.
        """
        assert self._grammar is not None
        for number, letter in enumerate(text, 1):
            self._held.append(letter)
            self._bytes += len(letter.encode("utf-8", "replace"))
            try:
                call = self._grammar.send(letter)
            except StopIteration as stopped:
                self._emit(stopped.value)
                self._grammar = None
                return text[number:]
            except NotACall as refused:
                if number < len(text):
                    waiting.append(text[number:])
                waiting += self._refuse(refused.within)
                return ""
            if call is not None:
                self._emit(call)
                self._held, self._bytes = [], 0
            elif self._bytes > self._longest:
                self._grammar = None
                self._content("".join(self._held))
                return text[number:]
        return ""

    def _end(self) -> list[str]:
        """Tells the grammar that the text is over; returns what has to be read again."""
        assert self._grammar is not None
        try:
            self._grammar.send("")
        except StopIteration as stopped:
            self._emit(stopped.value)
            self._grammar = None
            return []
        except NotACall:
            pass
        return self._refuse(None)

    def _refuse(self, within: ObjectScanner | None) -> list[str]:
        """What is held is no call: its first letter is content, and the rest is read again."""
        held = "".join(self._held)
        self._grammar, self._within = None, within
        known = len(held) if within is not None else 1
        self._content(held[:known])
        return _pieces(held[known:])

    def _pass_object(self, text: str) -> str:
        """Gives out the rest of an object that is no call; returns what is behind it."""
        assert self._within is not None
        for number, letter in enumerate(text):
            try:
                ends = number + 1 if self._within.take(letter) else 0
            except NotJsonError:
                ends = number
            else:
                if not ends:
                    continue
            self._within = None
            self._content(text[:ends])
            return text[ends:]
        self._content(text)
        return ""

    def _content(self, text: str) -> None:
        if self._behind_call:
            text = text.lstrip(self._glue)
        if not text:
            return
        self._behind_call = False
        text = self._space + text
        shown = text.rstrip(SPACE)
        self._space = text[len(shown) :]
        if shown:
            self._parts.append(Content(shown))

    def _emit(self, call: Call | None) -> None:
        if call is None:
            return
        self._space, self._behind_call = "", True
        if self._only_first and self.calls:
            return
        index, self.calls = self.calls, self.calls + 1
        self._parts.append(CallStarted(index, self._new_id(), call.name))
        self._parts.append(CallArguments(index, call.arguments))

    def _taken(self) -> list[Part]:
        """The parts since the last time, neighbouring content as one."""
        joined: list[Part] = []
        for part in self._parts:
            last = joined[-1] if joined else None
            if isinstance(part, Content) and isinstance(last, Content):
                joined[-1] = Content(last.text + part.text)
            else:
                joined.append(part)
        self._parts = []
        return joined


def _pieces(text: str) -> list[str]:
    """A text in pieces that are cheap to cut, the last one first."""
    return [text[n : n + PIECE] for n in range(0, len(text), PIECE)][::-1]

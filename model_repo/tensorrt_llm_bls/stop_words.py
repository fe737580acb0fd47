"""Stops a text at the first stop word, wherever token and response boundaries fall."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable


class StopWordFilter:
    """Passes text through until one of the words has appeared.

    Text that may be the beginning of a word is held back until it is decided.

    Args:
        words: Stop words; empty ones are ignored.
        include_word: Whether the word itself ends the text, or the text ends before it.

    Attributes:
        stopped: Whether a word has appeared; nothing passes after that.
    """

    def __init__(self, words: Iterable[str], *, include_word: bool = False) -> None:
        self._words = sorted({word for word in words if word})
        self._longest = max(map(len, self._words), default=0)
        self._include_word = include_word
        self._held = ""
        self.stopped = False

    @property
    def watches(self) -> bool:
        """Whether there is a word that could end the text."""
        return bool(self._words)

    def push(self, text: str) -> str:
        """The part of the held-back text plus ``text`` that is certain to be wanted."""
        if self.stopped or not self._words:
            return "" if self.stopped else text
        text = self._held + text
        found = min(
            ((start, word) for word in self._words if (start := text.find(word)) >= 0),
            # The first word to be complete wins, as it would if the text came letter by letter.
            key=lambda match: (match[0] + len(match[1]), match[0]),
            default=None,
        )
        if found is not None:
            start, word = found
            self.stopped, self._held = True, ""
            return text[: start + len(word)] if self._include_word else text[:start]
        keep = self._undecided(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Length of the longest end of ``text`` that is the beginning of a word."""
        for length in range(min(len(text), self._longest - 1), 0, -1):
            end = text[-length:]
            # Words that begin so are the first of those that are not before it.
            place = bisect_left(self._words, end)
            if place < len(self._words) and self._words[place].startswith(end):
                return length
        return 0

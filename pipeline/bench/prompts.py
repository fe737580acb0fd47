"""The prompts of a load: no two of them begin alike."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from itertools import count, cycle, islice

PROMPTS = (
    "Once upon a time there was a small village at the foot of a mountain, and in it",
    "The meeting started late because the train from the north had been delayed, so",
    "My grandmother used to say that a garden tells you more about a person than",
    "Early in the morning the harbour is quiet and the boats come back with",
    "There are three things to know before you cross the desert on foot, and the first",
    "The letter had lain in the drawer for twenty years when somebody finally",
    "Every evening after supper the children asked for the same story about",
    "In the old library at the end of the street a clock stopped at noon, and",
)

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_MARK_LENGTH = 6


class Prompts:
    """Makes prompts that a server has never seen.

    An engine that reuses KV blocks answers the beginning that it has seen before without computing
    it. So every prompt begins with a word of its own, which no earlier run used either.

    Args:
        texts: What follows that word, used in turn; at least one.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = cycle(texts)
        self._words = " ".join(texts).split()
        self._numbers = count(secrets.randbelow(len(_LETTERS) ** _MARK_LENGTH))

    def short(self) -> str:
        """Makes a prompt of the next text."""
        return f"{self._mark()} {next(self._texts)}"

    def long(self, words: int) -> str:
        """Makes a prompt of that many words of the texts, from the first on, over and over."""
        return " ".join((self._mark(), *islice(cycle(self._words), words)))

    def _mark(self) -> str:
        number, letters = next(self._numbers), ""
        for _ in range(_MARK_LENGTH):
            number, letter = divmod(number, len(_LETTERS))
            letters += _LETTERS[letter]
        return letters

"""Token ids to text as they come, so that the pieces joined are the text of all ids at once.

Two things make a token's text depend on its neighbours: a character may be split over several
tokens, and some tokenizers drop the space in front of the first word. So each piece is the
difference between two decodings of a short window: with and without the new tokens.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer

REPLACEMENT = "\ufffd"
"""What an incomplete character decodes to."""

LONGEST_CHARACTER = 4
"""Bytes, hence tokens at most, of one UTF-8 character."""

LONGEST_WAIT = 16
"""Tokens held back before they count as damaged text, which would otherwise be held for ever."""


class IncrementalDetokenizer:
    """Decodes one sequence.

    Args:
        tokenizer: The model's tokenizer.
        skip_special_tokens: Whether special tokens leave no text.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(
            token_id
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if skip_special_tokens and token.special
        )
        # Already emitted tokens that still give context, then those not emitted yet.
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, ids: Iterable[int]) -> str:
        """The text that is certain now, after ``ids``; possibly empty."""
        self._pending += [int(token) for token in ids if token not in self._special]
        emitted = len(self._decode(self._context))
        # A character that is still incomplete began at most three tokens ago.
        for held in range(min(LONGEST_CHARACTER, len(self._pending))):
            count = len(self._pending) - held
            text = self._decode(self._context + self._pending[:count])
            if not text.endswith(REPLACEMENT):
                return self._emit(count, text[emitted:])
        if len(self._pending) > LONGEST_WAIT:
            count = len(self._pending) - LONGEST_CHARACTER + 1
            return self._emit(count, self._decode(self._context + self._pending[:count])[emitted:])
        return ""

    def finish(self) -> str:
        """The text of what was held back; an incomplete character stays a replacement character."""
        text = self._decode(self._context + self._pending)[len(self._decode(self._context)) :]
        self._context, self._pending = [], []
        return text

    def _emit(self, count: int, text: str) -> str:
        if text:
            self._context, self._pending = self._pending[:count], self._pending[count:]
        elif count > LONGEST_WAIT:
            # The window must not grow for ever on ids that no text belongs to. A few are kept:
            # whether the next token keeps its leading space depends on them.
            del self._pending[:count]
        return text

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False)) if ids else ""

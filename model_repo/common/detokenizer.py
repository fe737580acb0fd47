"""Token ids to text as they come, so that the pieces joined are the text of all ids at once.

Two things make a token's text depend on its neighbours: a character may be split over several
tokens, and some tokenizers drop the space in front of the first word. So each piece is the
difference between two decodings of a short window: with and without the new tokens. The first
window begins in the prompt, whose text the piece continues.

With tokenizers that have a token for each byte, bytes that are no character spoil all of a run of
such tokens, also characters which a stream has sent by then. The text is what a stream sends,
however many ids come together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer

REPLACEMENT = "\ufffd"
"""What an incomplete character decodes to."""

LONGEST_CHARACTER = 4
"""Bytes, hence tokens at most, of one UTF-8 character."""

LONGEST_WAIT = 16
"""Tokens held back before they count as damaged text, which would otherwise be held forever."""


class IncrementalDetokenizer:
    """Decodes one sequence.

    Args:
        tokenizer: The model's tokenizer.
        skip_special_tokens: Whether special tokens leave no text.
        prompt: Token ids that the sequence continues. What the prompt has after its last special
            token is one text with the sequence: it keeps the space in front of its first word.
            After a special token, such as the last one of a chat template, a text begins anew.
            A character that it leaves incomplete, which the tokens of a text never do, stays so:
            the bytes that would complete it are replacement characters.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        prompt: Sequence[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        special = frozenset(
            token_id
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if token.special
        )
        self._special = special if skip_special_tokens else frozenset()
        # Tokens whose text is known already, which still give context, then those not emitted yet.
        self._context = self._tail(prompt, special)
        self._pending: list[int] = []

    def push(self, ids: Iterable[int]) -> str:
        """The text that is certain now, after ``ids``; possibly empty."""
        new = [int(token) for token in ids if self._has_text(int(token))]
        before = self._decode(self._context)
        start = len(self._pending)
        self._pending += new
        if len(new) > 1 and REPLACEMENT in self._added(before, len(self._pending)):
            del self._pending[start:]
            return "".join(self.push([token]) for token in new)
        # A character that is still incomplete began at most three tokens ago.
        for held in range(min(LONGEST_CHARACTER, len(self._pending))):
            count = len(self._pending) - held
            text = self._added(before, count)
            if not text.endswith(REPLACEMENT):
                return self._emit(count, text)
        if len(self._pending) > LONGEST_WAIT:
            count = len(self._pending) - LONGEST_CHARACTER + 1
            return self._emit(count, self._added(before, count))
        return ""

    def finish(self) -> str:
        """The text of what was held back; an incomplete character stays a replacement character."""
        text = self._added(self._decode(self._context), len(self._pending))
        self._context, self._pending = [], []
        return text

    def _tail(self, prompt: Sequence[int], special: frozenset[int]) -> list[int]:
        ids = [int(token) for token in prompt]
        start = next((n for n in range(len(ids), 0, -1) if ids[n - 1] in special), 0)
        ids = ids[start:]
        for length in range(1, min(len(ids), LONGEST_WAIT) + 1):
            text = self._decode(ids[-length:])
            # Fewer tokens may begin inside a character, or have no text to put a space behind.
            if text and REPLACEMENT not in text:
                return ids[-length:]
        return ids

    def _added(self, before: str, count: int) -> str:
        """What the first ``count`` pending tokens add to ``before``, the text of the context."""
        text = self._decode(self._context + self._pending[:count])
        if text.startswith(before):
            return text[len(before) :]
        # Bytes that are no character spoil all of a run of byte tokens, also those sent already.
        return self._decode(self._pending[:count])

    def _has_text(self, token: int) -> bool:
        # A model may have rows for more ids than its tokenizer has tokens. Between the bytes of a
        # character, ids without a token would make it longer than it can be.
        return token not in self._special and self._tokenizer.id_to_token(token) is not None

    def _emit(self, count: int, text: str) -> str:
        if text:
            known, self._pending = self._pending[:count], self._pending[count:]
            # A space that is dropped in front of a text gives none to hold what follows against.
            alone = self._decode(known) != ""
            self._context = known if alone else (self._context + known)[-LONGEST_WAIT:]
        elif count > LONGEST_WAIT:
            # The window must not grow forever on ids that no text belongs to. A few are kept:
            # whether the next token keeps its leading space depends on them.
            del self._pending[:count]
        return text

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False)) if ids else ""

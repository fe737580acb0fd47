"""What a tokenizer puts around a text, and when it is left out.

A text that a chat template wrote begins with its own bos token. Where the tokenizer puts one in
front of every text, as Llama's do, the model would be given two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

# Texts with nothing in common; a normalizer may drop one of them altogether.
_PLAIN = ("a", "7", "Z", "\u4e2d")


class Encoder(Protocol):
    """A tokenizer that can leave out its special tokens."""

    def encode(self, text: str, /, *, add_special_tokens: bool = True) -> list[int]:
        """Returns token ids."""


def tokens_in_front(tokenizer: Encoder) -> tuple[int, ...]:
    """Finds the ids that a tokenizer puts in front of every text; empty where it does not.

    Args:
        tokenizer: Any.
    """
    for text in _PLAIN:
        plain = tokenizer.encode(text, add_special_tokens=False)
        whole = tokenizer.encode(text)
        places = range(len(whole) - len(plain) + 1)
        place = next((n for n in places if plain and whole[n : n + len(plain)] == plain), None)
        if place is not None:
            return tuple(whole[:place])
    return ()


def without_second(
    whole: Sequence[int], plain: Sequence[int], in_front: Sequence[int]
) -> tuple[int, ...]:
    """Leaves out what is put in front of a text that begins with it: ``add_special_tokens: auto``.

    What the tokenizer puts behind a text stays.

    Args:
        whole: The text's ids with special tokens.
        plain: Its ids without.
        in_front: Of :func:`tokens_in_front`.
    """
    count = len(in_front)
    begins = count > 0 and tuple(plain[:count]) == tuple(in_front)
    return tuple(whole[count:] if begins else whole)

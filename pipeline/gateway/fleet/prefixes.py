"""Which server has seen the beginning of a prompt, so that its KV cache may still have it.

A prompt is cut into blocks. Each has a name that is made of its tokens and of the name of the block
before it, so one name stands for a whole beginning. Of each server the names that it was given last
are kept. That is how the prefix-cache plugin of Kubernetes' Gateway API Inference Extension guesses
at the caches of its servers, too (``docs/proposals/0602-prefix-cache``).
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

Chain = tuple[bytes, ...]

_NAME = 8
"""Bytes of a name: two beginnings with one name only send a prompt to an odd server."""


def chain_of(prompt: Sequence[int], block: int, most: int) -> Chain:
    """Names the beginnings of a prompt, the shortest first.

    Args:
        prompt: Token ids.
        block: Tokens of a block. What does not fill one has no name, as no cache keeps it.
        most: Blocks, at most.
    """
    names: list[bytes] = []
    before = b""
    for start in range(0, min(len(prompt) - block + 1, most * block), block):
        tokens = array("q", prompt[start : start + block]).tobytes()
        before = blake2b(before + tokens, digest_size=_NAME).digest()
        names.append(before)
    return tuple(names)


class Remembered:
    """The beginnings that one server was given, those of late.

    Args:
        most: Names that are kept.
    """

    def __init__(self, most: int) -> None:
        self._names: OrderedDict[bytes, None] = OrderedDict()
        self._most = most

    def note(self, chain: Chain) -> None:
        """Notes that a prompt goes there."""
        # The longest first, so that a beginning outlives what follows it.
        for name in reversed(chain):
            self._names[name] = None
            self._names.move_to_end(name)
        while len(self._names) > self._most:
            self._names.popitem(last=False)

    def matched(self, chain: Chain) -> int:
        """Returns how many of a prompt's first blocks it was given before."""
        for count, name in enumerate(chain):
            if name not in self._names:
                return count
        return len(chain)

    def forget(self) -> None:
        """Forgets everything: the server was lost, and its cache with it."""
        self._names.clear()

"""Which blocks of a prompt are already in the engine's KV cache.

openvino_genai shares blocks between prompts that begin alike but does not say how many it shared,
so its bookkeeping is kept here a second time, from what the engine's thread tells it to do: a block
is known by all tokens up to its end, a block that no sequence holds stays until its room is needed,
and the one that was filled longest ago goes first (``BlockManager`` and ``BlockAllocator`` of
openvino.genai). Two things are not counted, so the number is never too high: a block that is only
partly the same, and one of a prompt that is still being computed, whose progress is not known.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .settings import TOKENS_PER_BLOCK


@dataclass(eq=False)
class Held:
    """The blocks of one running sequence.

    Attributes:
        reused: Blocks of its prompt that were in the cache when it started.
        keys: Of its whole blocks, in order.
        last_key: Of all tokens in them.
        open_block: When the block after them was allocated; None if there is none.
    """

    reused: int = 0
    keys: list[bytes] = field(default_factory=list)
    last_key: bytes = b""
    open_block: int | None = None

    @property
    def grows_at(self) -> int:
        """The length in tokens at which :meth:`KvBlocks.grow` next has something to do."""
        full = len(self.keys) * TOKENS_PER_BLOCK
        return full + 1 if self.open_block is None else full + TOKENS_PER_BLOCK


class KvBlocks:
    """The blocks of one KV cache; only the engine's thread uses it.

    Args:
        total: Blocks in the cache.
    """

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        # Blocks that no sequence holds, by key; the value says when each was allocated.
        self._kept: dict[bytes, int] = {}
        # How many sequences hold each whole block, and when it was allocated.
        self._in_use: dict[bytes, int] = {}
        self._allocated: dict[bytes, int] = {}
        self._clock = itertools.count()

    @property
    def used(self) -> int:
        """Blocks that sequences hold, shared ones once; those of a prompt once it is computed."""
        return self._total - self._free - len(self._kept)

    def start(self, prompt: npt.NDArray[np.int64]) -> Held:
        """A sequence starts with the blocks that it shares; :meth:`grow` adds its own."""
        held = Held()
        for key in _keys(prompt, b""):
            if not self._take(key):
                break
            held.keys.append(key)
            held.last_key = key
        held.reused = len(held.keys)
        return held

    def grow(self, held: Held, tokens: Sequence[int]) -> None:
        """More tokens of a sequence are in the cache, first those of its prompt.

        Args:
            tokens: All of them.
        """
        if len(tokens) >= (len(held.keys) + 1) * TOKENS_PER_BLOCK:
            new = np.asarray(tokens[len(held.keys) * TOKENS_PER_BLOCK :], np.int64)
            for key in _keys(new, held.last_key):
                stamp = self._allocate() if held.open_block is None else held.open_block
                held.open_block = None
                held.keys.append(key)
                held.last_key = key
                if self._take(key):
                    self._free += 1  # another sequence has filled the same one meanwhile
                else:
                    self._in_use[key], self._allocated[key] = 1, stamp
        if len(tokens) > len(held.keys) * TOKENS_PER_BLOCK and held.open_block is None:
            held.open_block = self._allocate()

    def end(self, held: Held, tokens: Sequence[int]) -> None:
        """A sequence is over: its blocks stay until their room is needed.

        Args:
            tokens: All of it that is in the cache; none if its prompt never was as a whole.
        """
        if len(tokens) >= held.grows_at:
            self.grow(held, tokens)
        for key in held.keys:
            self._in_use[key] -= 1
            if not self._in_use[key]:
                del self._in_use[key]
                self._kept[key] = self._allocated.pop(key)
        if held.open_block is not None:
            rest = np.asarray(tokens[len(held.keys) * TOKENS_PER_BLOCK :], np.int64)
            key = _key(held.last_key, rest)
            self._free += key in self._kept
            self._kept[key] = held.open_block
        held.keys, held.open_block = [], None

    def _take(self, key: bytes) -> bool:
        if key in self._in_use:
            self._in_use[key] += 1
        elif key in self._kept:
            del self._kept[key]
            self._in_use[key] = 1
        else:
            return False
        self._allocated[key] = next(self._clock)
        return True

    def _allocate(self) -> int:
        if self._free:
            self._free -= 1
        elif self._kept:
            del self._kept[min(self._kept, key=self._kept.__getitem__)]
        return next(self._clock)


def shared_tokens(one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> int:
    """How many tokens two prompts have in common at their beginning."""
    length = min(one.size, other.size)
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if different.size else length


def _keys(tokens: npt.NDArray[np.int64], key: bytes) -> list[bytes]:
    """Keys of the whole blocks of ``tokens``, which follow the tokens that ``key`` stands for."""
    keys = []
    for end in range(TOKENS_PER_BLOCK, tokens.size + 1, TOKENS_PER_BLOCK):
        key = _key(key, tokens[end - TOKENS_PER_BLOCK : end])
        keys.append(key)
    return keys


def _key(before: bytes, block: npt.NDArray[np.int64]) -> bytes:
    return hashlib.blake2b(before + block.tobytes(), digest_size=16).digest()

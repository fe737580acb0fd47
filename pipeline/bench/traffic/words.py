"""How many words make a prompt of so many tokens, which the server is asked."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

from pipeline.bench.asking import streamed, whole
from pipeline.bench.prompts import Prompts
from pipeline.engine_client.interface import AsyncTextClient
from trtllm_client import InvalidRequest

_LIKE = 3
"""Prompts of each number of words: the word in front of each has more tokens or fewer."""


class Words:
    """Turns tokens into words.

    Args:
        points: Words and tokens of prompts that were tried, by words; at least one.
    """

    def __init__(self, points: Sequence[tuple[int, float]]) -> None:
        self._points = list(points)
        if len(self._points) == 1:
            # Nothing is known but that no words are no tokens.
            self._points.insert(0, (0, 0.0))

    def for_tokens(self, tokens: int) -> int:
        """Returns the words that make a prompt of about so many tokens; 0 is the shortest there is.

        Between the prompts that were tried lies a straight line, and the last one goes on.
        """
        ends = [end for _, end in self._points[1:]]
        place = min(bisect_left(ends, tokens), len(ends) - 1)
        (low, few), (high, many) = list(pairwise(self._points))[place]
        if many <= few:
            return high
        return max(0, round(low + (tokens - few) * (high - low) / (many - few)))


async def try_words(
    client: AsyncTextClient, prompts: Prompts, longest: int, *, streams: bool
) -> Words:
    """Sends prompts of more and more words, until one has so many tokens or is refused.

    Args:
        client: Open; its model takes the requests.
        prompts: Where prompts come from.
        longest: Tokens that are wanted at most.
        streams: Whether the model answers in pieces.

    Raises:
        ClientError: A request failed, also one with the shortest prompt.
    """
    ask = streamed if streams else whole
    points: list[tuple[int, float]] = []
    count = 0
    while True:
        try:
            seen = [(await ask(client, prompts.long(count), 1)).input_tokens for _ in range(_LIKE)]
        except InvalidRequest:
            if not points:
                raise
            break
        points.append((count, math.fsum(seen) / _LIKE))
        if points[-1][1] >= longest:
            break
        count = max(4, 2 * count)
    return Words(points)

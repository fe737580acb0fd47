"""Decides which new tokens leave at once and which wait for more of their stream.

A response costs the processor about as much however many tokens it has: it is handed from process
to process, and each hand-over takes the processor away from the engine. While few streams run
beside many cores, that is little. With many streams on few cores it is a third of all there is. So
tokens are held back for as long as keeps the responses to a small share of the processor, and
never longer than the repository allows. Everything held leaves together: one burst disturbs the
engine's steps less than a trickle.

A stream's first token, its end and its error leave at once, and so does everything of a stream that
is alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

RESPONSE_S = 0.0015
"""Seconds of processor that a response takes on its way through all processes, measured."""

SHARE = 0.04
"""Of the processor, that responses may take before tokens are held."""

FORGETTING = 0.8
"""How much of the longest step is remembered in the next one: a prompt's step comes unannounced."""


class Stream(Protocol):
    """What has tokens to send."""

    @property
    def urgent(self) -> bool:
        """Whether it must not wait."""

    def handed_over(self) -> None:
        """What it has is on its way."""


S = TypeVar("S", bound=Stream)


class Hold(Generic[S]):
    """Holds tokens back; one thread only.

    Args:
        longest: Seconds that a token may wait; 0 holds nothing.
        processors: How many the engine and everything in front of it share.
        clock: Monotonic seconds.
    """

    def __init__(
        self, longest: float, processors: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._longest, self._processors, self._clock = longest, processors, clock
        self._held: dict[S, None] = {}
        self._since = self._next_step = 0.0

    def limit(self, streams: int) -> float:
        """Seconds that a token waits at most where so many streams have some to send."""
        if streams < 2:
            return 0.0
        return min(self._longest, streams * RESPONSE_S / (SHARE * self._processors))

    def take(self, ready: Iterable[S], step_seconds: float) -> list[S]:
        """Takes the streams with new tokens of one round; returns those that are to send now.

        Args:
            ready: Each at most once.
            step_seconds: What the round took, from which follows when there is another chance.
        """
        new = dict.fromkeys(ready)
        now = self._clock()
        if not self._held:
            self._since = now
        held = self._held | new
        limit = self.limit(len(held))
        self._next_step = max(step_seconds, self._next_step * FORGETTING)
        if now - self._since + self._next_step > limit:
            leaving = list(held)
        else:
            leaving = [stream for stream in new if stream.urgent]
        for stream in leaving:
            stream.handed_over()
            del held[stream]
        self._held = held
        return leaving

    def rest(self) -> list[S]:
        """Returns what is still held, for the end."""
        rest, self._held = list(self._held), {}
        return rest

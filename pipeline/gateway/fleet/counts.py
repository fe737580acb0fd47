"""What a fleet has done, for metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["resumed", "failed", "differed", "given_up"]


@dataclass
class Counts:
    """Counts since the start.

    Attributes:
        resumes: Attempts to go on with a request whose server was lost, by what became of them and
            how it was tried (``continued``, ``replayed``). ``resumed``: something new came, or the
            end. ``failed``: the server was lost again before that. ``differed``: what was made
            again was not what had been given. ``given_up``: there was no attempt, because there
            had been too many, or no server answered in time (``none``).
        routed: Streams by server and by what decided: the prompt's beginning, or the load.
        stalls: Streams that went on.
        stalled_s: Seconds that they stood still, all together.
        longest_stall_s: Seconds of the longest time that one stood still.
    """

    resumes: Counter[tuple[Outcome, str]] = field(default_factory=Counter)
    routed: Counter[tuple[str, str]] = field(default_factory=Counter)
    stalls: int = 0
    stalled_s: float = 0.0
    longest_stall_s: float = 0.0

    def tried(self, outcome: Outcome, how: str) -> None:
        """Notes what became of an attempt to go on."""
        self.resumes[outcome, how] += 1

    def stalled(self, seconds: float) -> None:
        """Notes that a stream has gone on after it stood still."""
        self.stalls += 1
        self.stalled_s += seconds
        self.longest_stall_s = max(self.longest_stall_s, seconds)


@dataclass(frozen=True)
class ReplicaState:
    """A server as the fleet sees it.

    Attributes:
        name: Its name.
        ready: Whether it answers.
        draining: Whether it gets no new streams.
        streams: Streams that the fleet has there.
        requests: What it says that it works on; None where it does not.
        kv: Share of its KV cache that is taken; None where it does not say.
    """

    name: str
    ready: bool
    draining: bool
    streams: int
    requests: float | None
    kv: float | None

"""What came of a round, and what of it counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.bench.stats import Timeline
from pipeline.bench.traffic.schedule import Request


@dataclass(frozen=True)
class Answer:
    """What came of one request; times are seconds after the round's beginning.

    Attributes:
        request: What was planned.
        sent: When it was sent.
        timeline: When what came; None where it failed. It begins where the request was planned, or
            where it was sent in a closed loop: an open load does not wait for a client or a server
            that is late, and so the wait is part of what is measured.
        error: The kind of failure and its message; None where there was none.
    """

    request: Request
    sent: float
    timeline: Timeline | None
    error: tuple[str, str] | None = None

    @classmethod
    def told(cls, request: Request, answer: Mapping[str, Any], *, streamed: bool) -> Answer:
        """Makes an answer of what a client process told."""
        if "error" in answer:
            kind, message = answer["error"]
            return cls(request, answer["sent"], None, (kind, message))
        begins = answer["sent"] if request.at is None else request.at
        arrivals = tuple((at, count) for at, count in answer["arrivals"])
        timeline = Timeline(begins, arrivals, answer["input_tokens"], streamed)
        return cls(request, answer["sent"], timeline)

    @property
    def begins(self) -> float:
        """When its time begins."""
        return self.sent if self.request.at is None else self.request.at

    @property
    def late_s(self) -> float:
        """Seconds between plan and sending; 0 in a closed loop."""
        return 0.0 if self.request.at is None else self.sent - self.request.at


@dataclass(frozen=True)
class Round:
    """One round at one server and level.

    Attributes:
        begin: Seconds after its beginning at which the warm-up was over.
        end: When the measured time was.
        answers: All of them, those of the warm-up too.
        busy: The share of the time that the busiest client process computed.
    """

    begin: float
    end: float
    answers: tuple[Answer, ...]
    busy: float

    @property
    def seconds(self) -> float:
        """The measured time."""
        return self.end - self.begin

    @property
    def counted(self) -> list[Answer]:
        """Those whose time begins in the measured time; also where they ended later."""
        return [answer for answer in self.answers if self.begin <= answer.begins < self.end]

    @property
    def timelines(self) -> list[Timeline]:
        """Of the counted requests that succeeded."""
        return [answer.timeline for answer in self.counted if answer.timeline is not None]

    @property
    def tokens_per_second(self) -> float:
        """Tokens that came in the measured time, per second, of requests that succeeded."""
        came = (
            count
            for answer in self.answers
            if answer.timeline is not None
            for at, count in answer.timeline.arrivals
            if self.begin <= at < self.end
        )
        return sum(came) / self.seconds

    @property
    def requests_per_second(self) -> float:
        """Requests that ended in the measured time without a failure, per second."""
        ended = (a.timeline.arrivals[-1][0] for a in self.answers if a.timeline is not None)
        return sum(self.begin <= at < self.end for at in ended) / self.seconds

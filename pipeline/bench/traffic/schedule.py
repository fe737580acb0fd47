"""What is sent in one round, and when."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.bench.traffic.lengths import Lengths
from pipeline.bench.traffic.traces import TraceRow

CLOSED, OPEN, TRACE = "closed", "open", "trace"
_DRAWN_AHEAD = 1024
"""Lengths drawn for a closed loop, which begins them anew after the last one."""


@dataclass(frozen=True)
class Request:
    """A request to be sent.

    Attributes:
        number: Its place in the round.
        at: Seconds after the round's beginning at which it is planned; None in a closed loop, which
            sends the next request of a stream when the last one has ended.
        input_tokens: Tokens of its prompt, about.
        output_tokens: Tokens generated.
    """

    number: int
    at: float | None
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Level:
    """A load to measure at.

    Attributes:
        kind: ``closed``, ``open`` or ``trace``.
        amount: Streams kept open together, or requests per second; those of the trace on average.
    """

    kind: str
    amount: float


@dataclass(frozen=True)
class Sizes:
    """How long requests are: as drawn, or as the trace's rows say, in turn.

    Attributes:
        inputs: Of prompts.
        outputs: Of answers.
        rows: Of a trace, instead of both.
    """

    inputs: Lengths
    outputs: Lengths
    rows: Sequence[TraceRow] = ()

    def request(self, number: int, at: float | None, source: random.Random) -> Request:
        """Makes the request with this number."""
        if self.rows:
            row = self.rows[number % len(self.rows)]
            return Request(number, at, row.input_tokens, row.output_tokens)
        return Request(number, at, self.inputs.draw(source), self.outputs.draw(source))


def poisson(rate: float, seconds: float, source: random.Random) -> list[float]:
    """Draws the arrivals of a Poisson process.

    The gaps are exponential with mean ``1 / rate``, so the number of arrivals is not fixed: their
    mean is ``rate * seconds``.

    Args:
        rate: Arrivals per second, above 0.
        seconds: Length of the process.
        source: Where randomness comes from.
    """
    arrivals = []
    at = source.expovariate(rate)
    while at < seconds:
        arrivals.append(at)
        at += source.expovariate(rate)
    return arrivals


def plan(level: Level, sizes: Sizes, seconds: float, seed: str) -> list[Request]:
    """Plans a round: the same for each server, another one for each round.

    Args:
        level: The load.
        sizes: How long requests are.
        seconds: Length of the round, warm-up and all; a trace is cut there.
        seed: Decides everything that is drawn.

    Returns:
        In order of time. For a closed loop as many requests as are begun anew after the last one.
    """
    source = random.Random(seed)  # noqa: S311  a load, no secret
    if level.kind == TRACE:
        return [
            Request(number, row.at_s, row.input_tokens, row.output_tokens)
            for number, row in enumerate(sizes.rows)
            if row.at_s < seconds
        ]
    if level.kind == OPEN:
        arrivals = poisson(level.amount, seconds, source)
        return [sizes.request(number, at, source) for number, at in enumerate(arrivals)]
    return [
        sizes.request(number, None, source) for number in range(len(sizes.rows) or _DRAWN_AHEAD)
    ]

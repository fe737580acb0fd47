"""Numbers that describe many measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Timeline:
    """When the pieces of one streamed answer came.

    Attributes:
        sent_at: When the request was sent, in seconds of a monotonic clock.
        arrivals: When each piece with new tokens came, by the same clock, and how many it had.
        input_tokens: Tokens of the prompt.
        streamed: Whether the answer could come in pieces.
    """

    sent_at: float
    arrivals: tuple[tuple[float, int], ...]
    input_tokens: int
    streamed: bool = True

    @property
    def output_tokens(self) -> int:
        """Tokens generated."""
        return sum(tokens for _, tokens in self.arrivals)

    @property
    def ttft_s(self) -> float:
        """Seconds until the first tokens came (TTFT)."""
        return self.arrivals[0][0] - self.sent_at

    @property
    def latency_s(self) -> float:
        """Seconds until the last tokens came."""
        return self.arrivals[-1][0] - self.sent_at

    @property
    def token_s(self) -> float | None:
        """Seconds per token after the first arrival, on average over the stream.

        The field's inter-token latency, also called time per output token: NVIDIA's AIPerf divides
        the time from the first token to the last by the tokens but the first
        (docs.nvidia.com/aiperf, metrics reference, "Inter Token Latency"). Where several tokens
        came first, none of them is counted. The waits between single arrivals would flatter a
        server that sends bursts: most of them are next to nothing. None where all came at once.
        """
        first, last = self.arrivals[0], self.arrivals[-1]
        waited_for = self.output_tokens - first[1]
        return (last[0] - first[0]) / waited_for if waited_for else None

    @property
    def gap_s(self) -> float | None:
        """Seconds of the longest wait between two arrivals; None where all came at once."""
        times = [at for at, _ in self.arrivals]
        return max((after - at for at, after in pairwise(times)), default=None)


def percentile(values: Sequence[float], percent: float) -> float:
    """Interpolates linearly between the two nearest ranks, as numpy's default does.

    Args:
        values: At least one, in any order.
        percent: 0 to 100.
    """
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    low, high = ordered[math.floor(rank)], ordered[math.ceil(rank)]
    return low + (high - low) * (rank - math.floor(rank))


def summary_ms(
    seconds: Sequence[float], percents: Sequence[int] = PERCENTILES
) -> dict[str, float] | None:
    """Computes mean, percentiles and maximum in milliseconds; None when nothing was measured."""
    if not seconds:
        return None
    named = {f"p{percent}": percentile(seconds, percent) for percent in percents}
    named = {"mean": sum(seconds) / len(seconds), **named, "max": max(seconds)}
    return {name: round(value * 1000, 3) for name, value in named.items()}

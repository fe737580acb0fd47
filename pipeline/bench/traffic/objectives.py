"""Latency objectives, and which requests meet them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipeline.bench.stats import Timeline
from pipeline.errors import UsageError

_OF: Mapping[str, Callable[[Timeline], float | None]] = {
    "ttft": lambda timeline: timeline.ttft_s if timeline.streamed else None,
    "itl": lambda timeline: timeline.token_s,
    "e2el": lambda timeline: timeline.latency_s,
}
# vLLM's name for the average per token after the first (vllm/benchmarks/serve.py, --goodput).
_ALSO = {"tpot": "itl"}


@dataclass(frozen=True)
class Objectives:
    """The latency that a request must keep to count as good.

    Attributes:
        limits_ms: Milliseconds by ``ttft``, ``itl`` and ``e2el``.
    """

    limits_ms: Mapping[str, float]

    @classmethod
    def parse(cls, text: str) -> Objectives:
        """Reads ``ttft:300,itl:30``; vLLM's ``tpot`` is taken for ``itl``.

        Args:
            text: Pairs of a measure and milliseconds, with commas or spaces between.

        Raises:
            UsageError: It is something else.
        """
        limits: dict[str, float] = {}
        for pair in text.replace(",", " ").split():
            given, _, number = pair.partition(":")
            name = _ALSO.get(given, given)
            try:
                limit = float(number)
            except ValueError:
                limit = math.nan
            if name not in _OF or name in limits or not (math.isfinite(limit) and limit > 0):
                raise _no_objectives(text)
            limits[name] = limit
        if not limits:
            raise _no_objectives(text)
        return cls(limits)

    def met(self, timeline: Timeline) -> bool:
        """Says whether a request that succeeded keeps all of them.

        A request that has no such time, as one for a single token has none between tokens, keeps
        that limit.
        """
        times = ((_OF[name](timeline), limit) for name, limit in self.limits_ms.items())
        return all(time is None or time * 1000 <= limit for time, limit in times)

    def __str__(self) -> str:
        return ", ".join(f"{name} {limit:g} ms" for name, limit in self.limits_ms.items())


def _no_objectives(text: str) -> UsageError:
    return UsageError(
        f"--goodput {text} names no latency objectives",
        why="There are ttft (first token), itl (per token after it; also tpot) and e2el (whole "
        "request), each once, with milliseconds above 0",
        fix="Write --goodput ttft:300,itl:30",
    )

"""What the gateway counts, for Prometheus."""

from __future__ import annotations

from pipeline.dependencies import require
from pipeline.gateway.engine import Tokens
from pipeline.gateway.histogram import RepeatedHistogram

_FIRST_S = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 40, 60)
_NEXT_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5)
_WHOLE_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)

CLIENT_GONE = 499
"""The code of a request whose client went before its answer was complete."""


class Metrics:
    """Counters and histograms in a registry of their own.

    Attributes:
        registry: A ``prometheus_client.CollectorRegistry``; who counts more adds to it.
    """

    def __init__(self) -> None:
        require("prometheus_client", "gateway")
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "llm_requests", "Requests, by endpoint and HTTP status; 499 is a client that went",
            ("endpoint", "code"), registry=registry,
        )  # fmt: skip
        self._broken = Counter(
            "llm_streams_broken", "Streams that ended with an error event", registry=registry
        )
        self._seconds = Histogram(
            "llm_request_seconds", "From a request to the end of its answer",
            ("endpoint",), buckets=_WHOLE_S, registry=registry,
        )  # fmt: skip
        self._first = Histogram(
            "llm_ttft_seconds", "From a request's prompt to its first token",
            buckets=_FIRST_S, registry=registry,
        )  # fmt: skip
        self._next = RepeatedHistogram(
            "llm_itl_seconds", "Between two tokens of an answer", _NEXT_S
        )
        registry.register(self._next)
        self.inflight = Gauge("llm_inflight", "Requests that are being answered", registry=registry)
        self._waiting = Gauge(
            "llm_requests_waiting", "Answers that have no token yet", registry=registry
        )
        self._draining = Gauge("llm_draining", "1 while the gateway is stopping", registry=registry)
        self._prompt = Counter(
            "llm_prompt_tokens", "Tokens of prompts that were answered", registry=registry
        )
        self._generated = Counter(
            "llm_generated_tokens", "Tokens that were generated", registry=registry
        )

    def answered(self, endpoint: str, code: int, seconds: float) -> None:
        """Counts a request that is over."""
        self._requests.labels(endpoint, str(code)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def broke(self) -> None:
        """Counts a stream that ended with an error event."""
        self._broken.inc()

    def drains(self) -> None:
        """Notes that the gateway is stopping."""
        self._draining.set(1)

    def text(self) -> bytes:
        """Returns all of it in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


class Watch:
    """What one answer adds to the metrics; enter it while the answer is generated.

    Args:
        metrics: Where it counts.
        prompt: Tokens of the prompt.
        clock: Seconds of a clock that never goes back.
    """

    def __init__(self, metrics: Metrics, prompt: int, clock: float) -> None:
        self._metrics, self._prompt = metrics, prompt
        self._last, self._began = clock, False

    def __enter__(self) -> Watch:
        self._metrics._waiting.inc()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._began:
            self._metrics._waiting.dec()

    def took(self, tokens: Tokens, now: float) -> None:
        """Notes that tokens have come.

        Args:
            tokens: The new ones.
            now: When.
        """
        count = len(tokens.ids)
        if not count:
            return
        metrics = self._metrics
        metrics._generated.inc(count)
        if self._began:
            metrics._next.observe((now - self._last) / count, count)
        else:
            self._began = True
            metrics._waiting.dec()
            metrics._prompt.inc(self._prompt)
            metrics._first.observe(now - self._last)
        self._last = now

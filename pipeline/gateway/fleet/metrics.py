"""A fleet's numbers for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.gateway.fleet.counts import ReplicaState
from pipeline.gateway.fleet.fleet import Fleet


class FleetCollector:
    """Collects a fleet's numbers; register it with a ``prometheus_client.CollectorRegistry``.

    Args:
        fleet: Whose.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def collect(self) -> Iterator[Any]:
        """Yields the families as they are now."""
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            SummaryMetricFamily,
        )

        counts = self._fleet.counts
        resumes = CounterMetricFamily(
            "llm_resumes",
            "Attempts to go on with an answer whose server was lost, by outcome (resumed, failed, "
            "differed, given_up) and how (continued, replayed, none)",
            labels=("outcome", "how"),
        )
        for (outcome, how), count in sorted(counts.resumes.items()):
            resumes.add_metric((outcome, how), count)
        yield resumes
        routed = CounterMetricFamily(
            "llm_routed",
            "Answers by server, and by what decided: the prompt's beginning (prefix), or the load",
            labels=("server", "by"),
        )
        for (server, why), count in sorted(counts.routed.items()):
            routed.add_metric((server, why), count)
        yield routed
        yield SummaryMetricFamily(
            "llm_stall_seconds",
            "How long answers stood still that went on",
            count_value=counts.stalls,
            sum_value=counts.stalled_s,
        )
        longest = GaugeMetricFamily("llm_longest_stall_seconds", "The longest of them")
        longest.add_metric((), counts.longest_stall_s)
        yield longest
        states = self._fleet.replicas()
        for name, help_, value in _GAUGES:
            family = GaugeMetricFamily(name, help_, labels=("server",))
            for state in states:
                number = value(state)
                if number is not None:
                    family.add_metric((state.name,), number)
            yield family


def _ready(state: ReplicaState) -> float:
    return float(state.ready)


def _draining(state: ReplicaState) -> float:
    return float(state.draining)


def _streams(state: ReplicaState) -> float:
    return float(state.streams)


def _requests(state: ReplicaState) -> float | None:
    return state.requests


def _kv(state: ReplicaState) -> float | None:
    return state.kv


_GAUGES = (
    ("llm_server_ready", "1 while the server answers", _ready),
    ("llm_server_draining", "1 while it gets no new answers", _draining),
    ("llm_server_streams", "Answers that this gateway has there", _streams),
    ("llm_server_requests", "What it says that it works on, what waits counted twice", _requests),
    ("llm_server_kv_fraction", "Share of its KV cache that is taken", _kv),
)

"""Publishes the engine's counters on Triton's metrics endpoint.

Gauges and token histograms have upstream's names and labels, so a dashboard made for the C++
backend shows this engine too; the latency histograms are this project's own.
"""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils

from .engine_stats import EngineStats
from .settings import TOKENS_PER_BLOCK

_TOKEN_BUCKETS = [10, 50, 100, 500, 1000]
_LATENCY_BUCKETS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000]
_GAUGES = {
    "nv_trt_llm_request_metrics": (
        "TRT LLM request metrics",
        "request_type",
        ("active", "max", "scheduled", "context", "waiting"),
    ),
    "nv_trt_llm_kv_cache_block_metrics": (
        "TRT LLM KV cache block metrics",
        "kv_cache_block_type",
        ("max", "free", "used", "tokens_per", "fraction"),
    ),
    "nv_trt_llm_general_metrics": (
        "General TRT LLM metrics",
        "general_type",
        ("iteration_counter",),
    ),
}


class EngineMetrics:
    """Copies :class:`engine_stats.EngineStats` to Triton; one thread only.

    Args:
        labels: ``model`` and ``version``.
    """

    def __init__(self, stats: EngineStats, labels: dict[str, str]) -> None:
        self._stats = stats
        self._labels = labels
        # A family ends with its Python object, so all of them are kept.
        self._families: list[Any] = []
        self._published_tokens = 0
        self._published: dict[str, float] = {}
        self._gauges = {}
        for name, (description, label, values) in _GAUGES.items():
            family = self._family(name, description, pb_utils.MetricFamily.GAUGE)
            for value in values:
                self._gauges[value if label != "kv_cache_block_type" else f"blocks_{value}"] = (
                    family.Metric(labels={label: value, **labels})
                )
        self._tokens = self._family(
            "nv_llm_generated_tokens_total", "Tokens generated", pb_utils.MetricFamily.COUNTER
        ).Metric(labels=labels)
        self._input_len = self._histogram(
            "nv_llm_input_token_len", "Input tokens per request", "total_input_tokens"
        )
        self._output_len = self._histogram(
            "nv_llm_output_token_len", "Output tokens per request", "total_output_tokens"
        )
        self._first_token = self._histogram(
            "nv_llm_time_to_first_token_ms", "From arrival to the first token, in the engine"
        )
        self._between_tokens = self._histogram(
            "nv_llm_inter_token_latency_ms", "Mean time between the tokens of a request"
        )

    def publish(self) -> None:
        """Copies the current values."""
        stats = self._stats
        used = stats.max_blocks - stats.free_blocks
        values: dict[str, float] = {
            "active": stats.running + stats.waiting,
            "max": stats.max_requests,
            "scheduled": stats.running,
            "context": stats.context,
            "waiting": stats.waiting,
            "blocks_max": stats.max_blocks,
            "blocks_free": stats.free_blocks,
            "blocks_used": used,
            "blocks_tokens_per": TOKENS_PER_BLOCK,
            "blocks_fraction": used / stats.max_blocks,
            "iteration_counter": stats.steps,
        }
        for name, value in values.items():
            if self._published.get(name) != value:
                self._gauges[name].set(value)
        self._published = values
        tokens = stats.generated_tokens
        self._tokens.increment(tokens - self._published_tokens)
        self._published_tokens = tokens
        while stats.finished_requests:
            finished = stats.finished_requests.popleft()
            self._input_len.observe(finished.input_tokens)
            self._output_len.observe(finished.output_tokens)
            self._first_token.observe(finished.time_to_first_token)
            if finished.inter_token_latency is not None:
                self._between_tokens.observe(finished.inter_token_latency)

    def _family(self, name: str, description: str, kind: Any) -> Any:
        family = pb_utils.MetricFamily(name=name, description=description, kind=kind)
        self._families.append(family)
        return family

    def _histogram(self, name: str, description: str, metric_type: str | None = None) -> Any:
        family = self._family(name, description, pb_utils.MetricFamily.HISTOGRAM)
        labels = {"response_metric_type": metric_type} if metric_type else {}
        return family.Metric(
            labels={**labels, **self._labels},
            buckets=_TOKEN_BUCKETS if metric_type else _LATENCY_BUCKETS,
        )

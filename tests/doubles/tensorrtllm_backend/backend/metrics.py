"""The families of ``custom_metrics_reporter.cc``, as far as Triton's Python API has them.

The timestamp and the memory of a GPU are left out; the histograms of token counts are there.
"""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils

from .executor import IterationStats
from .settings import Settings

_GAUGES = {
    "nv_trt_llm_request_metrics": (
        "TRT LLM request metrics",
        "request_type",
        ("active", "max", "scheduled", "context", "waiting"),
    ),
    "nv_trt_llm_runtime_memory_metrics": (
        "TRT LLM runtime memory metrics",
        "memory_type",
        ("cpu", "gpu", "pinned"),
    ),
    "nv_trt_llm_kv_cache_block_metrics": (
        "TRT LLM KV cache block metrics",
        "kv_cache_block_type",
        ("max", "free", "used", "tokens_per", "reused", "fraction"),
    ),
    "nv_trt_llm_inflight_batcher_metrics": (
        "TRT LLM inflight_batcher-specific metrics",
        "inflight_batcher_specific_metric",
        ("total_context_tokens", "generation_requests", "micro_batch_id", "paused_requests"),
    ),
    "nv_trt_llm_general_metrics": (
        "General TRT LLM metrics",
        "general_type",
        ("timestamp", "iteration_counter"),
    ),
}
_DISAGGREGATED = ("kv_cache_transfer_ms", "request_count")
_BUCKETS = [10.0, 50.0, 100.0, 500.0, 1000.0]


class Metrics:
    """Gauges and histograms of one model.

    Args:
        labels: ``model`` and ``version``.
    """

    def __init__(self, settings: Settings, labels: dict[str, str]) -> None:
        self._settings, self._labels = settings, labels
        # A family ends with its Python object.
        self._families: list[Any] = []
        self._gauges = {
            (name, value): metric
            for name, (text, label, values) in _GAUGES.items()
            for value, metric in self._metrics(name, text, label, values, "GAUGE").items()
        }
        self._metrics(
            "nv_trt_llm_disaggregated_serving_metrics",
            "TRT LLM disaggregated serving metrics",
            "disaggregated_serving_type",
            _DISAGGREGATED,
            "COUNTER",
        )
        self._output = self._histogram("nv_llm_output_token_len", "total_output_tokens")
        self._input = self._histogram("nv_llm_input_token_len", "total_input_tokens")
        self.iterated(IterationStats())

    def iterated(self, stats: IterationStats) -> None:
        """Publishes an iteration; a request that waits in the queue is not among the waiting."""
        settings = self._settings
        free = settings.max_blocks - stats.used_blocks
        for name, values in (
            (
                "nv_trt_llm_request_metrics",
                {
                    "active": stats.active,
                    "max": settings.max_batch_size,
                    "scheduled": stats.scheduled,
                    "context": stats.context,
                    "waiting": stats.active - stats.scheduled,
                },
            ),
            (
                "nv_trt_llm_kv_cache_block_metrics",
                {
                    "max": settings.max_blocks,
                    "free": free,
                    "used": stats.used_blocks,
                    "tokens_per": settings.tokens_per_block,
                    "reused": stats.reused_blocks,
                    "fraction": stats.used_blocks / settings.max_blocks,
                },
            ),
            (
                "nv_trt_llm_inflight_batcher_metrics",
                {
                    "total_context_tokens": stats.context_tokens,
                    "generation_requests": stats.generating,
                },
            ),
            ("nv_trt_llm_general_metrics", {"iteration_counter": stats.iteration}),
        ):
            for value, number in values.items():
                self._gauges[name, value].set(number)

    def finished(self, input_tokens: int, output_tokens: int) -> None:
        """Counts the tokens of a request."""
        self._input.observe(input_tokens)
        self._output.observe(output_tokens)

    def _metrics(
        self, name: str, text: str, label: str, values: tuple[str, ...], kind: str
    ) -> dict[str, Any]:
        family = pb_utils.MetricFamily(
            name=name, description=text, kind=getattr(pb_utils.MetricFamily, kind)
        )
        self._families.append(family)
        return {value: family.Metric(labels={**self._labels, label: value}) for value in values}

    def _histogram(self, name: str, value: str) -> Any:
        family = pb_utils.MetricFamily(
            name=name,
            description="TRT LLM response metrics",
            kind=pb_utils.MetricFamily.HISTOGRAM,
        )
        self._families.append(family)
        return family.Metric(
            labels={**self._labels, "response_metric_type": value}, buckets=_BUCKETS
        )

"""Publishes the engine's counters on Triton's metrics endpoint.

What has upstream's meaning has upstream's name and labels (``custom_metrics_reporter.cc``), so a
dashboard made for the C++ backend shows this engine too; docs/metrics.md says which those are.

Each value that is handed to Triton crosses shared memory twice and costs this process and the
server about 25 microseconds of processor time together. Requests can afford that and tokens
cannot: the time between tokens is counted here and handed over as the counters ``_bucket``,
``_sum`` and ``_count``, which are all that Prometheus knows of a histogram.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from .engine_stats import LATENCY_BUCKETS, OUTCOMES, EngineStats, Levels
from .settings import TOKENS_PER_BLOCK

_TOKEN_BUCKETS = (10, 50, 100, 500, 1000)
_BETWEEN = "nv_llm_inter_token_latency_ms"
_BOUNDS = (*(f"{bound:g}" for bound in LATENCY_BUCKETS), "+Inf")
_OWN_MEMORY = Path("/proc/self/statm")


@dataclass(frozen=True)
class _Family:
    """Numbers of one kind.

    Attributes:
        label: Tells them apart; "" where there is one alone.
        values: Of the label, in the order in which they are published.
    """

    name: str
    text: str
    label: str = ""
    values: tuple[str, ...] = ("",)


_GAUGES = (
    _Family(
        "nv_trt_llm_request_metrics",
        "TRT LLM request metrics",
        "request_type",
        ("active", "max", "scheduled", "context", "waiting"),
    ),
    _Family(
        "nv_trt_llm_runtime_memory_metrics",
        "TRT LLM runtime memory metrics",
        "memory_type",
        ("cpu", "gpu", "pinned"),
    ),
    _Family(
        "nv_trt_llm_kv_cache_block_metrics",
        "TRT LLM KV cache block metrics",
        "kv_cache_block_type",
        ("max", "free", "used", "tokens_per", "reused", "fraction"),
    ),
    _Family(
        "nv_trt_llm_inflight_batcher_metrics",
        "TRT LLM inflight_batcher-specific metrics",
        "inflight_batcher_specific_metric",
        ("generation_requests", "micro_batch_id", "paused_requests"),
    ),
    _Family(
        "nv_trt_llm_general_metrics",
        "General TRT LLM metrics",
        "general_type",
        ("timestamp", "iteration_counter"),
    ),
    _Family(
        "nv_llm_kv_cache_reserved_blocks", "KV cache blocks promised to the requests in the batch"
    ),
)
_COUNTERS = (
    _Family("nv_llm_prompt_tokens_total", "Tokens of the prompts that were computed"),
    _Family("nv_llm_generated_tokens_total", "Tokens generated"),
    _Family(
        "nv_llm_preemptions_total", "Times that a request had to stop for want of KV cache blocks"
    ),
    _Family(
        "nv_llm_kv_cache_reused_blocks_total", "KV cache blocks of prompts that were in the cache"
    ),
    _Family(
        "nv_llm_kv_cache_missed_blocks_total",
        "KV cache blocks of prompts that were not in the cache",
    ),
    _Family("nv_llm_requests_total", "Requests by how they ended", "outcome", OUTCOMES),
    # From the largest bound down: whoever looks in between sees no bucket above a larger one.
    _Family(f"{_BETWEEN}_count", "Times between two tokens of a request"),
    _Family(
        f"{_BETWEEN}_bucket", "Times between two tokens of a request up to le", "le", _BOUNDS[::-1]
    ),
    _Family(f"{_BETWEEN}_sum", "Sum of the times between two tokens of a request"),
)
_HISTOGRAMS = (
    _Family(
        "nv_llm_input_token_len",
        "TRT LLM response metrics",
        "response_metric_type",
        ("total_input_tokens",),
    ),
    _Family(
        "nv_llm_output_token_len",
        "TRT LLM response metrics",
        "response_metric_type",
        ("total_output_tokens",),
    ),
    _Family("nv_llm_queue_time_ms", "From arrival to the batch"),
    _Family("nv_llm_time_to_first_token_ms", "From arrival to the first token, in the engine"),
    _Family("nv_llm_time_per_output_token_ms", "Mean time between the tokens of a request"),
)


class EngineMetrics:
    """Copies :class:`engine_stats.EngineStats` to Triton; one thread at a time.

    Args:
        stats: What was counted.
        levels: Says what there is now.
        labels: ``model`` and ``version``.
    """

    def __init__(
        self, stats: EngineStats, levels: Callable[[], Levels], labels: dict[str, str]
    ) -> None:
        self._stats, self._levels, self._labels = stats, levels, labels
        # A family ends with its Python object, so all of them are kept.
        self._families: list[Any] = []
        kinds = pb_utils.MetricFamily
        self._gauges = self._made(_GAUGES, kinds.GAUGE)
        self._counters = self._made(_COUNTERS, kinds.COUNTER)
        self._histograms = {
            name: metric for (name, _), metric in self._made(_HISTOGRAMS, kinds.HISTOGRAM).items()
        }
        # Triton has 0 of each from the beginning.
        self._published: dict[tuple[str, str], float] = dict.fromkeys(
            (*self._gauges, *self._counters), 0.0
        )
        self.publish()

    def publish(self) -> None:
        """Copies what has changed."""
        gauges, counters = self._gauge_values(), self._counter_values()
        for key, metric in self._gauges.items():
            value = gauges[key[0]][key[1]]
            if value != self._published[key]:
                metric.set(value)
                self._published[key] = value
        for key, metric in self._counters.items():
            value = counters[key[0]][key[1]]
            if value != self._published[key]:
                metric.increment(value - self._published[key])
                self._published[key] = value
        self._observe()

    def _gauge_values(self) -> dict[str, dict[str, float]]:
        stats, levels = self._stats, self._levels()
        return {
            "nv_trt_llm_request_metrics": {
                "active": levels.running + levels.waiting,
                "max": stats.max_requests,
                "scheduled": levels.running,
                "context": levels.context,
                "waiting": levels.waiting,
            },
            "nv_trt_llm_runtime_memory_metrics": {
                "cpu": _own_memory(),
                "gpu": levels.gpu_bytes,
                "pinned": levels.pinned_bytes,
            },
            "nv_trt_llm_kv_cache_block_metrics": {
                "max": stats.max_blocks,
                "free": stats.max_blocks - levels.used_blocks,
                "used": levels.used_blocks,
                "tokens_per": TOKENS_PER_BLOCK,
                "reused": stats.reused_blocks,
                "fraction": levels.used_blocks / stats.max_blocks,
            },
            "nv_trt_llm_inflight_batcher_metrics": {
                "generation_requests": levels.running - levels.context,
                "micro_batch_id": 0,
                "paused_requests": levels.paused,
            },
            "nv_trt_llm_general_metrics": {
                "timestamp": int(stats.stepped_at * 1e6),
                "iteration_counter": stats.steps,
            },
            "nv_llm_kv_cache_reserved_blocks": {"": levels.reserved_blocks},
        }

    def _counter_values(self) -> dict[str, dict[str, float]]:
        stats = self._stats
        up_to = list(accumulate(stats.token_gaps.counts))
        return {
            "nv_llm_prompt_tokens_total": {"": stats.prompt_tokens},
            "nv_llm_generated_tokens_total": {"": stats.generated_tokens},
            "nv_llm_preemptions_total": {"": stats.preemptions},
            "nv_llm_kv_cache_reused_blocks_total": {"": stats.reused_blocks},
            "nv_llm_kv_cache_missed_blocks_total": {"": stats.missed_blocks},
            "nv_llm_requests_total": {name: stats.outcomes[name] for name in OUTCOMES},
            f"{_BETWEEN}_count": {"": up_to[-1]},
            f"{_BETWEEN}_bucket": dict(zip(_BOUNDS, up_to, strict=True)),
            f"{_BETWEEN}_sum": {"": stats.token_gaps.total},
        }

    def _observe(self) -> None:
        stats, observed = self._stats, self._histograms
        while stats.queue_times:
            observed["nv_llm_queue_time_ms"].observe(stats.queue_times.popleft())
        while stats.first_token_times:
            observed["nv_llm_time_to_first_token_ms"].observe(stats.first_token_times.popleft())
        while stats.finished_requests:
            finished = stats.finished_requests.popleft()
            observed["nv_llm_input_token_len"].observe(finished.input_tokens)
            observed["nv_llm_output_token_len"].observe(finished.output_tokens)
            if finished.time_per_token is not None:
                observed["nv_llm_time_per_output_token_ms"].observe(finished.time_per_token)

    def _made(self, families: tuple[_Family, ...], kind: Any) -> dict[tuple[str, str], Any]:
        made = {}
        for row in families:
            family = pb_utils.MetricFamily(name=row.name, description=row.text, kind=kind)
            self._families.append(family)
            for value in row.values:
                labels = {row.label: value, **self._labels} if row.label else self._labels
                made[row.name, value] = family.Metric(labels=labels, **_buckets(row, kind))
        return made


def _buckets(row: _Family, kind: Any) -> dict[str, list[float]]:
    if kind != pb_utils.MetricFamily.HISTOGRAM:
        return {}
    return {"buckets": list(_TOKEN_BUCKETS if row.label else LATENCY_BUCKETS)}


def _own_memory() -> int:
    """The resident bytes of this process."""
    pages = _OWN_MEMORY.read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")

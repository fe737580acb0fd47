"""The table of queries: each is written once, and is a panel, a recording rule, or both.

Families with NVIDIA's names are published by the servers of both targets; the rest of ``nv_llm_``
by the CPU's engine alone (docs/metrics.md). ``nv_inference_*`` and ``nv_cpu_*`` are Triton's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pipeline.monitoring.queries import BUILD, DEPLOYMENT, Query, Source

_POD = f"namespace, {DEPLOYMENT}, pod"
_DEPLOYMENT = f"namespace, {DEPLOYMENT}"


def _one(family: str, value: str) -> str:
    """The series of a value of a family's label."""
    label = {
        "request_metrics": "request_type",
        "kv_cache_block_metrics": "kv_cache_block_type",
        "inflight_batcher_metrics": "inflight_batcher_specific_metric",
        "runtime_memory_metrics": "memory_type",
        "general_metrics": "general_type",
    }[family]
    return f'nv_trt_llm_{family}{{{label}="{value}",<engine>}}'


def _sum(series: str, by: str = _POD) -> str:
    return f"sum by ({by}) ({series})"


def _rate(series: str, by: str = _POD) -> str:
    return _sum(f"rate({series}[<window>])", by)


def _requests(kind: str) -> str:
    return _sum(_one("request_metrics", kind))


def _blocks(kind: str) -> str:
    return _sum(_one("kv_cache_block_metrics", kind))


def _levels(family: str, prefix: str, kinds: Mapping[str, str]) -> Iterator[Query]:
    """Queries of what there is now: the values of a family's label, each with its legend."""
    for kind, legend in kinds.items():
        yield Query(
            f"{prefix}_{kind}", Source.BOTH, _sum(_one(family, kind)), f"{{{{pod}}}} {legend}",
            RECORDED.get(f"{prefix}_{kind}", ""),
        )  # fmt: skip


def _quantiles(name: str, source: Source, series: str, record: str = "") -> Iterator[Query]:
    for percent in ("50", "95"):
        yield Query(
            f"{name}_p{percent}",
            source,
            f"histogram_quantile(0.{percent}, {_rate(series, f'{_POD}, le')})",
            f"{{{{pod}}}} p{percent}",
            f"{record}:p{percent}" if record else "",
        )


def _of_gateway(name: str, histogram: str, record: str) -> Iterator[Query]:
    for percent in ("50", "95"):
        yield Query(
            f"{name}_p{percent}",
            Source.GATEWAY,
            f"1000 * histogram_quantile(0.{percent}, "
            f"{_rate(f'{histogram}_bucket{{<gateway>}}', f'{_DEPLOYMENT}, le')})",
            f"p{percent}",
            f"{record}:p{percent}",
        )


def _failed(by: str) -> str:
    return _rate('nv_inference_request_failure{reason!="CANCELED",<engine>}', by)


def _answered(by: str) -> str:
    return _rate("nv_inference_request_success{<engine>}", by)


RECORDED = {
    "requests_active": "pod:trtllm_requests_active:sum",
    "requests_waiting": "pod:trtllm_requests_waiting:sum",
    "blocks_free": "pod:trtllm_kv_cache_free_blocks:sum",
    "batcher_paused_requests": "pod:trtllm_requests_paused:sum",
}

_REUSED, _MISSED = (
    _rate(f"nv_llm_kv_cache_{kind}_blocks_total{{<engine>}}") for kind in ("reused", "missed")
)

_BATCH_FILL = f"{_requests('scheduled')} / {_requests('max')}"
_KV_USED = f"{_blocks('used')} / {_blocks('max')}"

_TRAFFIC = (
    Query(
        "gateway_requests",
        Source.GATEWAY,
        _rate("llm_requests_total{<gateway>}", "code"),
        "{{code}}",
    ),
    Query(
        "gateway_inflight",
        Source.GATEWAY,
        _sum("llm_inflight{<gateway>}"),
        "{{pod}} being answered",
    ),
    Query(
        "gateway_waiting",
        Source.GATEWAY,
        _sum("llm_requests_waiting{<gateway>}"),
        "{{pod}} without a token yet",
    ),
    Query(
        "gateway_streams",
        Source.GATEWAY,
        "sum by (server) (llm_server_streams{<gateway>})",
        "{{server}}",
    ),
    Query(
        "gateway_tokens",
        Source.GATEWAY,
        _rate("llm_generated_tokens_total{<gateway>}"),
        "{{pod}} given to clients",
    ),
    Query(
        "requests_by_outcome",
        Source.CPU,
        _rate("nv_llm_requests_total{<engine>}", "outcome"),
        "{{outcome}}",
    ),
    Query(
        "requests_answered",
        Source.BOTH,
        _answered(_POD),
        "{{pod}}",
        "pod:trtllm_requests_answered:rate",
    ),
    Query(
        "output_tokens",
        Source.BOTH,
        _rate("nv_llm_output_token_len_sum{<engine>}"),
        "{{pod}} of answers that ended",
        "pod:trtllm_output_tokens:rate",
    ),
    Query(
        "input_tokens",
        Source.BOTH,
        _rate("nv_llm_input_token_len_sum{<engine>}"),
        "{{pod}} of their prompts",
    ),
    Query(
        "generated_tokens",
        Source.CPU,
        _rate("nv_llm_generated_tokens_total{<engine>}"),
        "{{pod}} generated",
    ),
    Query(
        "prompt_tokens",
        Source.CPU,
        _rate("nv_llm_prompt_tokens_total{<engine>}"),
        "{{pod}} of prompts",
    ),
)

_LATENCY = (
    *_of_gateway("gateway_ttft", "llm_ttft_seconds", "deployment:trtllm_time_to_first_token_ms"),
    *_of_gateway("gateway_itl", "llm_itl_seconds", "deployment:trtllm_inter_token_latency_ms"),
    *_quantiles(
        "engine_ttft",
        Source.CPU,
        "nv_llm_time_to_first_token_ms_bucket{<engine>}",
        "pod:trtllm_time_to_first_token_ms",
    ),
    *_quantiles(
        "engine_itl",
        Source.CPU,
        "nv_llm_time_per_output_token_ms_bucket{<engine>}",
        "pod:trtllm_time_per_output_token_ms",
    ),
    *_quantiles("engine_gap", Source.CPU, "nv_llm_inter_token_latency_ms_bucket{<engine>}"),
    *_quantiles("engine_queue", Source.CPU, "nv_llm_queue_time_ms_bucket{<engine>}"),
)

_BATCHING = (
    *_levels(
        "request_metrics",
        "requests",
        {
            "active": "active",
            "scheduled": "in the batch",
            "context": "without a token yet",
            "waiting": "waiting",
            "max": "most in a batch",
        },
    ),
    *_levels(
        "inflight_batcher_metrics",
        "batcher",
        {"generation_requests": "with a token", "paused_requests": "paused for want of blocks"},
    ),
    Query(
        "batch_fill",
        Source.BOTH,
        _BATCH_FILL,
        "{{pod}}",
        "pod:trtllm_batch_fill:ratio",
    ),
    Query(
        "steps",
        Source.BOTH,
        _rate(_one("general_metrics", "iteration_counter")),
        "{{pod}}",
        "pod:trtllm_steps:rate",
    ),
)

_CACHE = (
    *_levels(
        "kv_cache_block_metrics",
        "blocks",
        {"used": "used", "free": "free", "max": "in the cache"},
    ),
    Query(
        "blocks_reserved",
        Source.CPU,
        _sum("nv_llm_kv_cache_reserved_blocks{<engine>}"),
        "{{pod}} promised",
    ),
    Query(
        "blocks_unreserved",
        Source.CPU,
        f"{_blocks('max')} - {_sum('nv_llm_kv_cache_reserved_blocks{<engine>}')}",
        "{{pod}} not promised",
        "pod:trtllm_kv_cache_unreserved_blocks:sum",
    ),
    Query(
        "kv_used",
        Source.BOTH,
        _KV_USED,
        "{{pod}}",
        "pod:trtllm_kv_cache_used:ratio",
    ),
    Query("kv_hit", Source.CPU, f"{_REUSED} / ({_REUSED} + {_MISSED})", "{{pod}}"),
    Query(
        "kv_reused",
        Source.BOTH,
        _rate(_one("kv_cache_block_metrics", "reused")),
        "{{pod}}",
    ),
    Query(
        "preemptions",
        Source.CPU,
        _rate("nv_llm_preemptions_total{<engine>}"),
        "{{pod}} preempted a second",
        "pod:trtllm_preemptions:rate",
    ),
)

_MEMORY = (
    *_levels(
        "runtime_memory_metrics",
        "memory",
        {"cpu": "host", "gpu": "GPU", "pinned": "pinned host"},
    ),
    Query(
        "host_memory",
        Source.BOTH,
        f"max by ({_POD}) (nv_cpu_memory_used_bytes{{<server>}})",
        "{{pod}} used on its machine",
    ),
    Query(
        "gpu_memory",
        Source.GPU,
        f"sum by ({_POD}, gpu_uuid) (nv_gpu_memory_used_bytes{{<server>}})",
        "{{pod}} {{gpu_uuid}}",
    ),
    Query(
        "gpu_busy",
        Source.GPU,
        f"max by ({_POD}, gpu_uuid) (nv_gpu_utilization{{<server>}})",
        "{{pod}} {{gpu_uuid}}",
    ),
)

_GATEWAY_ALL = _rate("llm_requests_total{<gateway>}", _DEPLOYMENT)
_GATEWAY_FAILED = _rate('llm_requests_total{code=~"5..",<gateway>}', _DEPLOYMENT)

_ERRORS = (
    Query(
        "failures_by_reason",
        Source.BOTH,
        _rate("nv_inference_request_failure{<engine>}", "reason"),
        "{{reason}}",
    ),
    Query(
        "server_errors",
        Source.BOTH,
        f"{_failed(_DEPLOYMENT)} / ({_failed(_DEPLOYMENT)} + {_answered(_DEPLOYMENT)})",
        "servers",
        "deployment:trtllm_server_errors:ratio",
    ),
    Query(
        "engine_errors",
        Source.CPU,
        _rate('nv_llm_requests_total{outcome="failed",<engine>}', _DEPLOYMENT)
        + " / "
        + _rate('nv_llm_requests_total{outcome=~"failed|finished",<engine>}', _DEPLOYMENT),
        "engines",
        "deployment:trtllm_engine_errors:ratio",
    ),
    Query(
        "gateway_errors",
        Source.GATEWAY,
        # A status that was never answered has no series, and is none of them.
        f"({_GATEWAY_FAILED} or 0 * {_GATEWAY_ALL}) / {_GATEWAY_ALL}",
        "gateway",
        "deployment:trtllm_gateway_errors:ratio",
    ),
    Query(
        "gateway_broken",
        Source.GATEWAY,
        _rate("llm_streams_broken_total{<gateway>}"),
        "{{pod}} streams broken",
    ),
    Query(
        "gateway_resumes",
        Source.GATEWAY,
        _rate("llm_resumes_total{<gateway>}", "outcome"),
        "{{outcome}}",
    ),
    Query(
        "gateway_servers",
        Source.GATEWAY,
        "min by (server) (llm_server_ready{<gateway>})",
        "{{server}}, for the gateway",
    ),
    Query(
        "restarts",
        Source.BOTH,
        f"max by ({_POD}) (resets({_one('general_metrics', 'iteration_counter')}[1h]))",
        "{{pod}} engine",
        "pod:trtllm_engine_restarts:resets1h",
    ),
    Query(
        "container_restarts",
        Source.CLUSTER,
        "max by (namespace, pod, container) "
        "(increase(kube_pod_container_status_restarts_total{<cluster>}[1h]))",
        "{{pod}} {{container}}",
    ),
    Query("up", Source.SCRAPE, f"max by ({_POD}) (up{{<server>}})", "{{pod}}"),
)

_SERVED = (
    Query(
        "builds",
        Source.SCRAPE,
        f"count by ({BUILD}) (up{{<server>}} == 1)",
        "{{" + BUILD + "}}",
    ),
)

_REPLICAS = (
    Query(
        "ready",
        Source.SCRAPE,
        f"count by ({_DEPLOYMENT}) (up{{<server>}} == 1)",
        "answering",
        "deployment:trtllm_replicas:count",
    ),
    Query(
        "wanted_by_waiting",
        Source.BOTH,
        f"clamp(ceil(sum({_requests('waiting')}) / <waiting>), <least>, <most>)",
        "wanted for what waits",
    ),
    Query(
        "wanted_by_batch",
        Source.BOTH,
        f"clamp(ceil(sum({_BATCH_FILL}) / <busy>), <least>, <most>)",
        "wanted for the batches",
    ),
    Query(
        "wanted_by_cache",
        Source.BOTH,
        f"clamp(ceil(sum({_KV_USED}) / <busy>), <least>, <most>)",
        "wanted for the KV cache",
    ),
    Query(
        "wanted_by_autoscaler",
        Source.CLUSTER,
        "max by (horizontalpodautoscaler) "
        "(kube_horizontalpodautoscaler_status_desired_replicas{<autoscaler>})",
        "wanted by {{horizontalpodautoscaler}}",
    ),
)

_ANSWERS = "sum(rate(nv_llm_output_token_len_sum{<engine>}[<window>]))"

_PRICE = (
    Query(
        "per_million",
        Source.BOTH,
        f"$price * count(up{{<server>}} == 1) / 3600 * 1e6 / {_ANSWERS}",
        "a million tokens of answers",
    ),
    Query(
        "per_day",
        Source.SCRAPE,
        "$price * 24 * count(up{<server>} == 1)",
        "a day at these replicas",
    ),
)

TABLE: Mapping[str, Query] = {
    query.name: query
    for query in (
        *_TRAFFIC,
        *_LATENCY,
        *_BATCHING,
        *_CACHE,
        *_MEMORY,
        *_ERRORS,
        *_SERVED,
        *_REPLICAS,
        *_PRICE,
    )
}
"""Every query by its name."""

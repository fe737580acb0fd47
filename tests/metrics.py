"""Names that NVIDIA gives to numbers: outputs of ``return_perf_metrics``, and metrics families."""

from __future__ import annotations

METRICS = (
    "kv_cache_alloc_new_blocks",
    "kv_cache_reused_blocks",
    "kv_cache_alloc_total_blocks",
    "arrival_time_ns",
    "first_scheduled_time_ns",
    "first_token_time_ns",
    "last_token_time_ns",
    "acceptance_rate",
    "total_accepted_draft_tokens",
    "total_draft_tokens",
)

UPSTREAM = {
    "nv_trt_llm_request_metrics": (
        "request_type",
        ("active", "max", "scheduled", "context", "waiting"),
    ),
    "nv_trt_llm_runtime_memory_metrics": ("memory_type", ("cpu", "gpu", "pinned")),
    "nv_trt_llm_kv_cache_block_metrics": (
        "kv_cache_block_type",
        ("max", "free", "used", "tokens_per", "reused", "fraction"),
    ),
    "nv_trt_llm_inflight_batcher_metrics": (
        "inflight_batcher_specific_metric",
        ("total_context_tokens", "generation_requests", "micro_batch_id", "paused_requests"),
    ),
    "nv_trt_llm_general_metrics": ("general_type", ("timestamp", "iteration_counter")),
    "nv_llm_input_token_len": ("response_metric_type", ("total_input_tokens",)),
    "nv_llm_output_token_len": ("response_metric_type", ("total_output_tokens",)),
}
"""Families of ``custom_metrics_reporter.cc``, with their label and its values."""

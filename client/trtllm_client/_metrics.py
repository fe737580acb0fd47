"""What a request cost, as the server measured it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class PerfMetrics:
    """The values that ``return_perf_metrics`` asks for, by their names on the wire.

    A streamed answer has them with every piece, each time as they are by then. Times are
    nanoseconds of the server's monotonic clock, so only their differences say something. None is a
    value that the server did not send.

    Attributes:
        kv_cache_alloc_new_blocks: Blocks of the KV cache that held nothing of use before.
        kv_cache_reused_blocks: Blocks of the prompt that were found in the KV cache.
        kv_cache_alloc_total_blocks: Blocks that were allocated.
        arrival_time_ns: When the request reached the engine.
        first_scheduled_time_ns: When the engine began with it.
        first_token_time_ns: When its first token was there.
        last_token_time_ns: When its last token was there.
        acceptance_rate: Accepted draft tokens by all draft tokens.
        total_accepted_draft_tokens: Draft tokens that were accepted.
        total_draft_tokens: Draft tokens.
    """

    kv_cache_alloc_new_blocks: int | None = None
    kv_cache_reused_blocks: int | None = None
    kv_cache_alloc_total_blocks: int | None = None
    arrival_time_ns: int | None = None
    first_scheduled_time_ns: int | None = None
    first_token_time_ns: int | None = None
    last_token_time_ns: int | None = None
    acceptance_rate: float | None = None
    total_accepted_draft_tokens: int | None = None
    total_draft_tokens: int | None = None


PERF_METRICS = tuple(field.name for field in fields(PerfMetrics))
"""Names of the outputs."""


def perf_metrics(outputs: Mapping[str, tuple[Any, ...]]) -> PerfMetrics | None:
    """Takes the metrics from the outputs of a response; None where there are none."""
    found = {name: outputs[name][0] for name in PERF_METRICS if outputs.get(name)}
    return PerfMetrics(**found) if found else None

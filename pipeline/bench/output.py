"""A table of measurements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.tables import print_table

_TIMES = ("ttft_ms", "itl_ms", "latency_ms")


def print_results(results: Mapping[str, Any]) -> None:
    """Prints what :func:`~pipeline.bench.load.measure` returned."""
    tokens = results["output_tokens"]
    print_table(
        ["streams", "requests", "tokens/s", "first token", "between tokens", "request"],
        [
            [
                row["concurrency"],
                row["requests"],
                float(row["tokens_per_second"]),
                *(_times(row[name]) for name in _TIMES),
            ]
            for row in results["measurements"]
        ],
        title=f"{results['model']}, {tokens} token{'s' * (tokens != 1)} per request",
        caption="times in ms, as p50/p95/p99",
    )


def _times(times: Mapping[str, float] | None) -> str:
    if times is None:
        return "-"
    return "/".join(f"{times[name]:.1f}" for name in ("p50", "p95", "p99"))

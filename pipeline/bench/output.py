"""A table of measurements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.bench.intervals import estimate_text, interval_text
from pipeline.tables import number, print_table

_TIMES = ("ttft_ms", "itl_ms", "latency_ms")


def print_results(results: Mapping[str, Any]) -> None:
    """Prints what :func:`~pipeline.bench.load.measure` returned."""
    tokens, rounds = results["output_tokens"], results["rounds"]
    print_table(
        ["streams", "requests", "tokens/s", "95 %", "first token", "per token", "request"],
        [
            [
                row["concurrency"],
                row["requests"],
                number(row["tokens_per_second"]["value"], 3),
                interval_text(row["tokens_per_second"]),
                *(_times(row[name]) for name in _TIMES),
            ]
            for row in results["measurements"]
        ],
        title=f"{results['model']}, {tokens} token{'s' * (tokens != 1)} per request",
        caption=f"95 %: interval of tokens/s over {rounds} round{'s' * (rounds != 1)}\n"
        "times in ms, as p50/p95; per token: a stream's average after its first",
    )
    phases = {
        "prefill": results["prefill_tokens_per_second"],
        "decode": results["decode_tokens_per_second"],
    }
    shown = [f"{name} {estimate_text(rate)}" for name, rate in phases.items() if rate]
    if shown:
        print(f"\none stream alone, tokens/s: {', '.join(shown)}")


def _times(times: Mapping[str, float] | None) -> str:
    if times is None:
        return "-"
    return "/".join(number(times[name], 3) for name in ("p50", "p95"))

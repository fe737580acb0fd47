"""A table of measurements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TIMES = ("ttft_ms", "itl_ms", "latency_ms")


def render_table(results: Mapping[str, Any]) -> None:
    """Prints what :func:`~pipeline.bench.load.measure` returned."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{results['model']}, {results['output_tokens']} tokens per request",
        title_justify="left",
        caption="times in ms, as p50 / p95 / p99",
        caption_justify="left",
    )
    for heading in ("streams", "requests", "tokens/s", "first token", "between tokens", "request"):
        table.add_column(heading, justify="right")
    for row in results["measurements"]:
        table.add_row(
            str(row["concurrency"]),
            str(row["requests"]),
            f"{row['tokens_per_second']:.1f}",
            *(_times(row[name]) for name in _TIMES),
        )
    Console().print(table)


def _times(times: Mapping[str, float] | None) -> str:
    if times is None:
        return "-"
    return " / ".join(f"{times[name]:.1f}" for name in ("p50", "p95", "p99"))

"""What has to be said about a measurement before its numbers are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.tables import count, number

_LATE_MS = 10.0
"""A client that sends one request in a hundred later than this has not kept its schedule."""
_BUSY = 0.8
"""The share of a core above which a client process may wait for itself."""
_KEPT_UP = 0.9
_SCATTER = 0.1


def remarks(row: Mapping[str, Any]) -> list[str]:
    """Says in sentences what is odd about a level.

    Args:
        row: What :func:`~pipeline.bench.traffic.summary.summary` computed.
    """
    return [*_failed(row), *_late(row), *_behind(row), *_busy(row), *_scattered(row)]


def _failed(row: Mapping[str, Any]) -> Iterator[str]:
    if not row["failed"]:
        return
    kinds = ", ".join(f"{found['count']:,} {kind}" for kind, found in row["failures"].items())
    first = next(iter(row["failures"].values()))["first"]
    yield (
        f"{row['failed']:,} of {count(row['failed'] + row['requests'], 'request')} failed and "
        f"{'is' if row['failed'] == 1 else 'are'} in no time and no rate: {kinds}. The first one: "
        f"{first}"
    )


def _late(row: Mapping[str, Any]) -> Iterator[str]:
    schedule = row["schedule"]
    if schedule is None or schedule["late_ms"] is None or schedule["late_ms"]["p99"] <= _LATE_MS:
        return
    yield (
        "The clients could not keep their schedule: one request in a hundred was sent "
        f"{number(schedule['late_ms']['p99'], 3)} ms late or later. Latencies count from the "
        "planned arrival and hold that wait; give more --clients, or a machine of their own."
    )


def _behind(row: Mapping[str, Any]) -> Iterator[str]:
    schedule = row["schedule"]
    if schedule is None:
        return
    # What failed is told apart.
    answered = schedule["planned_per_second"] - row["failed"] / row["seconds"]
    if row["requests_per_second"] >= _KEPT_UP * answered:
        return
    yield (
        f"The server did not keep up: {number(schedule['planned_per_second'], 3)} requests/s came "
        f"and {number(row['requests_per_second'], 3)} were finished. Latencies grow with the time "
        "measured."
    )


def _busy(row: Mapping[str, Any]) -> Iterator[str]:
    if row["client_busy"] < _BUSY:
        return
    yield (
        f"A client process computed {row['client_busy']:.0%} of the time and may have waited for "
        "itself: give more --clients."
    )


def _scattered(row: Mapping[str, Any]) -> Iterator[str]:
    variation = row["coefficient_of_variation"]
    if variation is None or variation <= _SCATTER or row["load"] != "closed":
        return
    yield (
        f"The rounds scatter by {variation:.0%} (coefficient of variation of tokens/s); measure "
        "longer, or on a quieter machine."
    )

"""What a report says of a build beside 16 bit, and of the servers that a traffic takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.economics.capacity.lines import (
    compared,
    heading,
    load_words,
    pair,
    sentences,
)
from pipeline.economics.cost import cost_per_million, money
from pipeline.report.blocks import Block, Paragraph, Table
from pipeline.report.words import estimate, percent
from pipeline.tables import number


def sixteen_bit_blocks(report: Mapping[str, Any]) -> list[Block]:
    """Lists what ``compare`` measured of the build and of 16 bit in one interleaved run."""
    found = report.get("sixteen_bit")
    if not found:
        return []
    cost = report["cost"] or _stated(report)
    columns = ["streams", "tokens/s", f"{found['baseline']}, tokens/s", "ratio"]
    if cost:
        unit = f"{cost['currency']} a million tokens"
        columns += [unit, f"{found['baseline']}, {unit}"]
    rows = []
    for level in found["levels"]:
        speeds = [level["tokens_per_second"], level["baseline_tokens_per_second"]]
        row = [
            number(level["concurrency"]),
            *(estimate(speed) for speed in speeds),
            estimate(level["ratio"]),
        ]
        if cost:
            row += [_million(speed["value"], cost) for speed in speeds]
        rows.append(row)
    said = (
        f"Loaded in turns with {found['baseline']} in one run of compare, on "
        f"{found['created'][:10]}; the ratio is that of pairs of one round."
    )
    if cost:
        said += (
            f" Prices are those of a machine that is busy {percent(cost['utilization'], 0)} of the "
            "time, at the throughput of so many streams."
        )
    return [Paragraph(said), Table(columns, rows, frozenset(range(len(columns))))]


def _stated(report: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The price that ``capacity`` was told, where the recipe has none."""
    cost = (report.get("capacity") or {}).get("cost")
    return {**cost, "utilization": report["recipe"]["cost"]["utilization"]} if cost else None


def _million(speed: float | None, cost: Mapping[str, Any]) -> str:
    if not speed:
        return "-"
    return money(cost_per_million(speed, cost["price_per_hour"], cost["utilization"]))


def capacity_blocks(report: Mapping[str, Any]) -> list[Block]:
    """Lists the servers that a stated traffic takes, as ``capacity --report`` computed them."""
    found = report.get("capacity")
    if not found:
        return []
    middle = f"p{found['objective']['percentile']:g}"
    times = (f"first token, p50 / {middle} ms", f"per token, p50 / {middle} ms")
    measured = [
        (
            load_words(row),
            number(float(row["requests_per_second"]), 3),
            number(float(row["tokens_per_second"]), 3),
            *(pair(row, name) for name in ("ttft", "itl")),
            percent(row["good"], 1),
            *(_ratio(row["simulated_over_measured"][key]) for key in _RATIOS),
        )
        for row in found["measured"]
    ]
    blocks: list[Block] = [
        Paragraph(heading(found)),
        Table(
            ("measured", "requests/s", "tokens/s", *times, "good", *_RATIOS.values()),
            measured,
            frozenset(range(1, 9)),
        ),
        Paragraph(
            "Good requests keep both limits. The last columns are a simulation of the same load "
            "over what was measured."
        ),
        _simulated(found, times),
        *_savings(found),
    ]
    return [*blocks, *(Paragraph(said) for said in sentences(found))]


_RATIOS = {
    "tokens_per_second": "tokens/s, simulated over measured",
    "ttft": "first token",
    "itl": "per token",
}


def _simulated(found: Mapping[str, Any], times: tuple[str, str]) -> Table:
    cost, named = found["cost"], found["baseline"] is not None
    columns = ["simulated", *(["build"] if named else [])]
    columns += ["requests/s", "servers", "load", *times, "good"]
    if cost:
        columns += [f"{cost['currency']} a day", f"{cost['currency']} a million tokens"]
    rows = []
    for row in found["simulated"]:
        for one in (row, row.get("baseline")):
            if one is None:
                continue
            cells = [f"{row['multiply']:g}x", *([str(one["name"])] if named else [])]
            cells.append(number(float(one["requests_per_second"]), 3))
            if one["replicas"] is None:
                cells.append("none is enough")
                rows.append([*cells, *["-"] * (len(columns) - len(cells))])
                continue
            cells += [
                number(one["replicas"]),
                percent(one["utilization"], 1),
                *(pair(one, name) for name in ("ttft", "itl")),
                percent(one["good"], 1),
            ]
            rows.append([*cells, *([money(one[k]) for k in _PRICES] if cost else [])])
    return Table(columns, rows, frozenset(range(1 + named, len(columns))))


_PRICES = ("per_day", "per_million_tokens")


def _savings(found: Mapping[str, Any]) -> list[Block]:
    return [
        Paragraph(
            f"{row['multiply']:g}x: {compared(row['per_day'], other['per_day'])} than "
            f"{other['name']}, measured in the same run."
        )
        for row in found["simulated"]
        if (other := row.get("baseline")) and row.get("per_day") and other.get("per_day")
    ]


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"

"""The sections of a report on size, speed and cost, and on other builds of the same model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.economics.cost import money
from pipeline.report.blocks import Block, Cell, Figure, Figures, Paragraph, Section, Table
from pipeline.report.capacity import capacity_blocks, sixteen_bit_blocks
from pipeline.report.charts import Bar, bars, histogram
from pipeline.report.plot import Point, pareto
from pipeline.report.siblings import as_point
from pipeline.report.words import (
    estimate,
    machine_words,
    percent,
    spread,
)
from pipeline.tables import count, number, size, streams
from pipeline.verdict.closing import best_measurement
from pipeline.verdict.decision import TONES
from pipeline.verdict.words import signed_percent, size_words


def siblings_section(report: Mapping[str, Any]) -> Iterator[Section]:
    """Yields the other builds of this model that lie beside this one."""
    if not report["siblings"] or report["checkpoint"] is None:
        return
    own = as_point(report)
    rows = [own, *report["siblings"]]
    level = report["load"] and best_measurement(report["load"])["concurrency"]
    cells = [
        (
            Cell(row["name"], "strong" if row is own else ""),
            row["format"],
            Cell(row["verdict"], TONES[row["verdict"]]),
            size(row["bytes"]),
            estimate(row["increase"], signed_percent),
            estimate(speed_at(row, level)),
        )
        for row in rows
    ]
    columns = ("build", "format", "verdict", "size", "perplexity increase", "tokens/s")
    said = "Other builds of this model that lay beside this one when this page was written."
    if level and len([row for row in rows if speed_at(row, level)]) > 1:
        said += (
            f" Tokens per second are those of {streams(level)}, each measured in its own run: "
            "trtllm-pipeline compare measures them side by side."
        )
    blocks: list[Block] = [Paragraph(said)]
    if drawn := _pareto(rows, own, level):
        blocks.append(Figures((drawn,)))
    blocks.append(Table(columns, cells, frozenset({3, 4, 5})))
    yield Section("Beside its siblings", tuple(blocks))


def speed_at(row: Mapping[str, Any], level: int | None) -> Mapping[str, float | None] | None:
    """Returns a build's tokens per second at that many streams; None where not measured."""
    found = (m["tokens_per_second"] for m in row["speed"] if m["concurrency"] == level)
    return next(found, None)


def size_section(report: Mapping[str, Any]) -> Iterator[Section]:
    """Yields how large the model is in each form, and what a server of it takes."""
    sizes = report["size"]
    if sizes is None or sizes["checkpoint_bytes"] is None:
        return
    forms = (
        ("16 bit", sizes["bytes_16bit"]),
        ("checkpoint", sizes["checkpoint_bytes"]),
        ("engine", sizes["engine_bytes"]),
    )
    rows = [(label, amount) for label, amount in forms if amount]
    drawn = bars(
        [
            Bar(label, float(amount), size(amount), faint=index == 0)
            for index, (label, amount) in enumerate(rows)
        ]
    )
    caption = f"The checkpoint is {size_words(sizes['share'])}."
    load = report["load"]
    if load and load["memory_bytes"]:
        caption += f" A server that has loaded the engine takes {size(load['memory_bytes'])}."
    table = Table(
        ("form", "size"),
        [(label, size(amount)) for label, amount in rows],
        frozenset({1}),
        markdown_only=True,
    )
    yield Section("Size", (Figures((Figure(drawn, ""),)), table, Paragraph(caption)))


def load_section(report: Mapping[str, Any]) -> Iterator[Section]:
    """Yields throughput and latency."""
    load = report["load"]
    if load is None:
        return
    rows = load["measurements"]
    streamed = any(row["ttft_ms"] for row in rows)
    kind = "Streamed requests" if streamed else "Requests"
    said = (
        f"{kind} of {count(load['output_tokens'], 'token')} over gRPC, with client, server and "
        "engine on this one machine. In brackets: where the number lies with 95 % confidence."
    )
    speeds = bars(
        [
            Bar(
                streams(row["concurrency"]),
                row["tokens_per_second"]["value"],
                f"{estimate(row['tokens_per_second'])} tokens/s",
                row["tokens_per_second"]["low"],
                row["tokens_per_second"]["high"],
            )
            for row in rows
        ]
    )
    latencies = tuple(_latencies(load))
    cells = [
        (
            number(row["concurrency"]),
            number(row["requests"]),
            estimate(row["tokens_per_second"]),
            spread(row["ttft_ms"]),
            spread(row["itl_ms"]),
            spread(row["latency_ms"]),
        )
        for row in rows
    ]
    columns = (
        *("streams", "requests", "tokens/s"),
        *("first token, p50 / p95 ms", "between tokens, p50 / p95 ms", "request, p50 / p95 ms"),
    )
    blocks: list[Block] = [
        Paragraph(said),
        Figures((Figure(speeds, "Tokens per second over all streams."),)),
        Table(columns, cells, frozenset(range(len(columns)))),
        *([Figures(latencies)] if latencies else []),
    ]
    alone = [
        f"{words} {estimate(load[name])} tokens/s"
        for name, words in (
            ("prefill_tokens_per_second", "reads a prompt at"),
            ("decode_tokens_per_second", "writes at"),
        )
        if load[name]
    ]
    if alone:
        blocks.append(Paragraph(f"One request alone {' and '.join(alone)}."))
    yield Section("Load", tuple(blocks))


def cost_section(report: Mapping[str, Any]) -> Iterator[Section]:
    """Yields what tokens cost, and how much of what the hardware allows was reached."""
    blocks: list[Block] = []
    if cost := report["cost"]:
        best = best_measurement(report["load"])
        blocks.append(
            Paragraph(
                f"A million tokens cost {price(cost)} at {number(cost['price_per_hour'])} "
                f"{cost['currency']} an hour, when the machine is asked for tokens "
                f"{percent(cost['utilization'], 0)} of the time, at the throughput of "
                f"{streams(best['concurrency'])}."
            )
        )
    blocks += sixteen_bit_blocks(report)
    blocks += capacity_blocks(report)
    if roofline := report.get("roofline"):
        blocks.append(
            Paragraph(
                f"With {streams(roofline['concurrency'])}, {percent(roofline['reached'], 0)} of "
                f"what the hardware allows at most was reached: "
                f"{number(roofline['bound_tokens_per_second'])} tokens/s, bound by "
                f"{roofline['by']} ({roofline['hardware']}, {roofline['source']})."
            )
        )
    if blocks:
        priced = report["cost"] or report.get("capacity") or report.get("sixteen_bit")
        yield Section(
            "Cost and capacity" if report.get("capacity") else "Cost" if priced else "Roofline",
            tuple(blocks),
        )


def price(cost: Mapping[str, Any]) -> str:
    """Formats the price of a million tokens, with its interval and currency."""
    return f"{estimate(cost['per_million_tokens'], money)} {cost['currency']}"


def _latencies(load: Mapping[str, Any]) -> Iterator[Figure]:
    """How latencies are spread, at the level with the most streams that has them."""
    levels = [row["concurrency"] for row in load["measurements"]]
    for name, what in (
        ("ttft_ms", "time to the first token"),
        ("itl_ms", "time between the tokens of a stream"),
    ):
        for level in sorted(levels, reverse=True):
            values = _samples(load, level).get(name) or []
            if drawn := histogram(values, unit="ms", counted="requests"):
                text = f"{what[0].upper()}{what[1:]}, {streams(level)}, on a logarithmic axis."
                yield Figure(drawn, text)
                break


def _samples(load: Mapping[str, Any], level: int) -> Mapping[str, Sequence[float]]:
    return next((made for made in load["samples"] if made["concurrency"] == level), {})


def _pareto(
    rows: Sequence[Mapping[str, Any]], own: Mapping[str, Any], level: int | None
) -> Figure | None:
    """Quality against speed, or against size where fewer than two speeds are known."""
    scored = [row for row in rows if row["increase"] and row["increase"]["value"] is not None]
    speeds = [(speed_at(row, level) or {}).get("value") for row in scored]
    by_speed = sum(speed is not None for speed in speeds) > 1
    sizes = [row["bytes"] / 2**20 for row in scored]
    points = [
        Point(row["name"], x, **row["increase"], marked=row is own)
        for row, x in zip(scored, speeds if by_speed else sizes, strict=True)
        if x is not None
    ]
    x_label = f"tokens/s, {streams(level)}" if by_speed and level else "size, MiB"
    drawn = pareto(
        points,
        x_label=x_label,
        y_label="perplexity increase",
        more_x_is_better=by_speed,
        show_y=signed_percent,
    )
    if not drawn:
        return None
    better = "right" if by_speed else "left"
    text = (
        f"Down and {better} is better. The line joins the builds that no other beats in both; "
        "upright lines are intervals."
    )
    return Figure(drawn, text)


def measured_on(report: Mapping[str, Any]) -> str | None:
    """Names the machine in words; None where no speed was measured."""
    return machine_words(report["machine"]) if report["machine"] else None

"""A comparison as Markdown, CSV and one HTML page."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.ladder.recommend import deciding_level
from pipeline.ladder.row import REFUSED, level_at
from pipeline.ladder.table import Block, blocks, claims, full, headings, wrong
from pipeline.report.plot import Point, frontier, pareto
from pipeline.report.render import environment
from pipeline.report.words import machine_words
from pipeline.tables import memory_size, number, streams
from pipeline.verdict import decision

HERE = Path(__file__).parent
TONES = {**decision.TONES, REFUSED: "open"}
CLAIMS = ("format", "measure", "claim", "measured here", "source", "setting")
_ESTIMATES = (
    *("perplexity", "perplexity_increase", "bits_per_byte", "kl_divergence"),
    *("kl_divergence_p99", "top1_agreement", "engine_perplexity_increase"),
    *("prefill_tokens_per_second", "decode_tokens_per_second", "cost_per_million"),
)
_NUMBERS = (
    *("name", "format", "verdict", "weight_bits", "activation_bits", "bits_per_parameter"),
    *("checkpoint_bytes", "engine_bytes", "share_of_16bit", "memory_bytes", "source_perplexity"),
)


def render_markdown(comparison: Mapping[str, Any]) -> str:
    """Renders a comparison for a pull request."""
    lines = [f"# {_title(comparison)}", ""]
    if comparison["recommendation"]:
        lines += [f"**{comparison['recommendation']['reason']}**", ""]
        lines += [comparison["recommendation"]["rule"], ""]
    for block in blocks(comparison, full):
        lines += _table([block.title, *block.columns], [[n, *cells] for n, cells in block.rows])
    for name, words in wrong(comparison):
        lines += [f"- {name}: {_cell(words)}"]
    rows, sources = claims(comparison)
    if rows:
        lines += ["", "## What is claimed elsewhere", ""]
        lines += _table(CLAIMS, rows)
        lines += [f"- [{index}] {source}" for index, source in enumerate(sources, 1)]
    lines += ["", how(comparison), ""]
    return "\n".join(lines)


def render_csv(comparison: Mapping[str, Any]) -> str:
    """Renders one line for each rung, with a column for each number and each end of an interval."""
    rows = [dict(_flat(rung)) for rung in comparison["rungs"]]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def render_html(comparison: Mapping[str, Any]) -> str:
    """Renders one page that is safe to open and to archive: no scripts, nothing from outside."""
    rows, sources = claims(comparison)
    level, points = _points(comparison)
    chart = pareto(
        points,
        x_label=f"tokens/s, {streams(level or 1)}",
        y_label="KL, nats a token from the source",
    )
    page = (
        environment(HERE, html=True)
        .get_template("compare.html.j2")
        .render(
            comparison=comparison,
            title=_title(comparison),
            blocks=[_drawn(block) for block in blocks(comparison, full)],
            tones=TONES,
            bad=wrong(comparison),
            claim_columns=CLAIMS,
            claims=rows,
            sources=sources,
            chart=chart,
            line=sum(frontier(points)) > 1,
            how=how(comparison),
        )
    )
    return str(page)


def how(comparison: Mapping[str, Any]) -> str:
    """Says how the numbers came about."""
    load, cost = comparison["load"], comparison["cost"]
    parts = ["Intervals hold the true number in 95 of 100 repetitions."]
    if load:
        parts.append(
            f"Speeds are of one run over all servers in turns, {load['rounds']} rounds, at least "
            f"{number(float(load['seconds']))} s each, on {load['created']} "
            f"({machine_words(load['machine'])}); client and "
            "servers share the machine. A ratio is paired by round, and there is no difference "
            "where its interval holds 1. Times are medians."
        )
    elif any(rung["load"] for rung in comparison["rungs"]):
        parts.append(
            "Speeds are those of each recipe's own run, at different times, so they give no ratio; "
            "compare RECIPE --formats measures in turns."
        )
    if cost and "price_per_hour" in cost:
        at = f" at {streams(cost['concurrency'])}" if cost["concurrency"] else ""
        parts.append(
            f"Cost{at}: {number(float(cost['price_per_hour']))} {cost['currency']} an hour, asked "
            f"for tokens {cost['utilization'] * 100:.0f} % of the time."
        )
    elif load:
        parts.append("No cost: give cost.price_per_hour or --price.")
    return " ".join([*parts, *(f"Note: {note}." for note in comparison["notes"])])


def _title(comparison: Mapping[str, Any]) -> str:
    name = comparison["name"]
    return f"{name} in {len(comparison['rungs'])} formats" if name else "Builds side by side"


def _table(columns: Any, rows: Any) -> list[str]:
    return [
        f"| {' | '.join(_cell(column) for column in columns)} |",
        f"|{'---|' * len(columns)}",
        *(f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows),
        "",
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _flat(rung: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in _NUMBERS:
        yield name, rung[name]
    for name in _ESTIMATES:
        yield from _ends(name, rung[name])
    for task in rung["tasks"]:
        yield from _ends(f"{task['name']}_accuracy", task["accuracy"])
        yield from _ends(f"{task['name']}_accuracy_change", task["accuracy_change"])
    for level in rung["load"]:
        at = level["concurrency"]
        yield from _ends(f"tokens_per_second_{at}", level["tokens_per_second"])
        yield from _ends(f"ratio_{at}", level["ratio"])
        yield f"difference_{at}", level["difference"]
        for name in ("ttft_ms", "itl_ms"):
            yield f"{name}_p50_{at}", level[name]["p50"] if level[name] else None


def _ends(name: str, found: Mapping[str, Any] | None) -> Iterator[tuple[str, Any]]:
    for end in ("value", "low", "high"):
        yield name if end == "value" else f"{name}_{end}", found[end] if found else None


def _drawn(block: Block) -> dict[str, Any]:
    return {
        "title": block.title,
        "columns": list(block.columns),
        "cells": [[label, *cells] for label, cells in block.rows],
    }


def _points(comparison: Mapping[str, Any]) -> tuple[int | None, list[Point]]:
    """What the chart shows: the level, and a point for each rung that has both measures."""
    rungs = comparison["rungs"]
    recommended = comparison["recommendation"]
    level = recommended["concurrency"] if recommended else deciding_level(rungs, None)
    points = []
    for name, rung in zip(headings(rungs), rungs, strict=True):
        at = level_at(rung, level)
        speed, quality = at["tokens_per_second"] if at else None, rung["kl_divergence"]
        if speed and quality and None not in (speed["value"], quality["value"]):
            size = rung["checkpoint_bytes"]
            label = f"{name}, {memory_size(size).strip()}" if size else name
            chosen = bool(recommended and recommended["name"] == rung["name"])
            points.append(Point(label, float(speed["value"]), **quality, marked=chosen))
    return level, points
